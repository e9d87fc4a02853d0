DROP VIEW IF EXISTS {{.Database}}.otel_traces_trace_id_ts{{.OnCluster}} SYNC;
DROP VIEW IF EXISTS {{.Database}}.otel_traces{{.OnCluster}} SYNC;
