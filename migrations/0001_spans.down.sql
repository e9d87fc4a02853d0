DROP VIEW IF EXISTS {{.Database}}.spans{{.OnCluster}} SYNC;

{{- if .Cluster}}

DROP TABLE IF EXISTS {{.Database}}.spans_distributed{{.OnCluster}} SYNC;
{{- end}}

DROP TABLE IF EXISTS {{.Database}}.spans_local{{.OnCluster}} SYNC;
