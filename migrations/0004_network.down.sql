DROP VIEW IF EXISTS {{.Database}}.network_trouble_with{{.OnCluster}} SYNC;

DROP VIEW IF EXISTS {{.Database}}.network_trouble{{.OnCluster}} SYNC;

DROP VIEW IF EXISTS {{.Database}}.service_network{{.OnCluster}} SYNC;

DROP VIEW IF EXISTS {{.Database}}.trace_network_with{{.OnCluster}} SYNC;

DROP VIEW IF EXISTS {{.Database}}.trace_network{{.OnCluster}} SYNC;

DROP VIEW IF EXISTS {{.Database}}.flow_addresses_of_flows{{.OnCluster}} SYNC;

{{- if .Cluster}}

DROP TABLE IF EXISTS {{.Database}}.flow_addresses_distributed{{.OnCluster}} SYNC;
{{- end}}

DROP TABLE IF EXISTS {{.Database}}.flow_addresses_local{{.OnCluster}} SYNC;

DROP VIEW IF EXISTS {{.Database}}.service_addresses_of_spans{{.OnCluster}} SYNC;

{{- if .Cluster}}

DROP TABLE IF EXISTS {{.Database}}.service_addresses_distributed{{.OnCluster}} SYNC;
{{- end}}

DROP TABLE IF EXISTS {{.Database}}.service_addresses_local{{.OnCluster}} SYNC;
