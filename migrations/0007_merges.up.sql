-- How unequal the parts of a merge may be. Writers insert about once a second. With
-- ClickHouse's own 5, which suits few large inserts, each row is merged six times within a
-- minute, and each merge builds the skip indexes again. With 12 it is merged once, which
-- halves the CPU of ClickHouse at a thousand spans a second; a table has some ten parts
-- more. Servers that do not know the setting merge as they did.
{{if .MergeSelectorBase -}}
ALTER TABLE {{.Database}}.spans_local{{.OnCluster}} MODIFY SETTING merge_selector_base = 12;
ALTER TABLE {{.Database}}.flows_local{{.OnCluster}} MODIFY SETTING merge_selector_base = 12;
{{- else -}}
ALTER TABLE {{.Database}}.spans_local{{.OnCluster}} MODIFY SETTING ttl_only_drop_parts = 1;
ALTER TABLE {{.Database}}.flows_local{{.OnCluster}} MODIFY SETTING ttl_only_drop_parts = 1;
{{- end}}
