{{if .MergeSelectorBase -}}
ALTER TABLE {{.Database}}.flows_local{{.OnCluster}} RESET SETTING merge_selector_base;
ALTER TABLE {{.Database}}.spans_local{{.OnCluster}} RESET SETTING merge_selector_base;
{{- else -}}
ALTER TABLE {{.Database}}.flows_local{{.OnCluster}} MODIFY SETTING ttl_only_drop_parts = 1;
ALTER TABLE {{.Database}}.spans_local{{.OnCluster}} MODIFY SETTING ttl_only_drop_parts = 1;
{{- end}}
