{{- if .Cluster}}
DROP TABLE IF EXISTS {{.Database}}.flow_addresses_distributed{{.OnCluster}} SYNC;
DROP TABLE IF EXISTS {{.Database}}.service_addresses_distributed{{.OnCluster}} SYNC;

{{end -}}
DROP TABLE IF EXISTS {{.Database}}.flow_addresses_local{{.OnCluster}} SYNC;
DROP TABLE IF EXISTS {{.Database}}.service_addresses_local{{.OnCluster}} SYNC;
