{{- if .Cluster}}
DROP TABLE IF EXISTS {{.Database}}.spans_distributed{{.OnCluster}} SYNC;

{{end -}}
DROP TABLE IF EXISTS {{.Database}}.spans_local{{.OnCluster}} SYNC;
