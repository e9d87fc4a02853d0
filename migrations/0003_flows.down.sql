{{- if .Cluster}}
DROP TABLE IF EXISTS {{.Database}}.flows_distributed{{.OnCluster}} SYNC;

{{end -}}
DROP TABLE IF EXISTS {{.Database}}.flows_local{{.OnCluster}} SYNC;
