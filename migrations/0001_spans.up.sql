-- What stores the spans. Writers insert here, into the shard of the partition.
CREATE TABLE IF NOT EXISTS {{.Database}}.spans_local{{.OnCluster}}
(
    trace_id FixedString(32) CODEC(ZSTD(1)),
    span_id FixedString(16) CODEC(ZSTD(1)),
    parent_span_id String CODEC(ZSTD(1)),
    trace_state String CODEC(ZSTD(1)),
    flags UInt32 CODEC(ZSTD(1)),
    name LowCardinality(String) CODEC(ZSTD(1)),
    kind Enum8('unspecified' = 0, 'internal' = 1, 'server' = 2, 'client' = 3, 'producer' = 4, 'consumer' = 5) CODEC(ZSTD(1)),
    start_time DateTime64(9, 'UTC') CODEC(Delta(8), ZSTD(1)),
    duration_ns Int64 CODEC(ZSTD(1)),
    status_code Enum8('unset' = 0, 'ok' = 1, 'error' = 2) CODEC(ZSTD(1)),
    status_message String CODEC(ZSTD(1)),
    service_name LowCardinality(String) CODEC(ZSTD(1)),
    service_namespace LowCardinality(String) CODEC(ZSTD(1)),
    service_instance_id LowCardinality(String) CODEC(ZSTD(1)),
    resource LowCardinality(String) CODEC(ZSTD(1)),
    resource_schema_url LowCardinality(String) CODEC(ZSTD(1)),
    resource_dropped_attributes_count UInt32 CODEC(ZSTD(1)),
    scope_name LowCardinality(String) CODEC(ZSTD(1)),
    scope_version LowCardinality(String) CODEC(ZSTD(1)),
    scope_attributes LowCardinality(String) CODEC(ZSTD(1)),
    scope_schema_url LowCardinality(String) CODEC(ZSTD(1)),
    scope_dropped_attributes_count UInt32 CODEC(ZSTD(1)),
    attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    dropped_attributes_count UInt32 CODEC(ZSTD(1)),
    events Array(Tuple(
        time DateTime64(9, 'UTC'),
        name LowCardinality(String),
        attributes Map(LowCardinality(String), String),
        dropped_attributes_count UInt32)) CODEC(ZSTD(1)),
    dropped_events_count UInt32 CODEC(ZSTD(1)),
    links Array(Tuple(
        trace_id String,
        span_id String,
        trace_state String,
        attributes Map(LowCardinality(String), String),
        dropped_attributes_count UInt32,
        flags UInt32)) CODEC(ZSTD(1)),
    dropped_links_count UInt32 CODEC(ZSTD(1)),
    protocol LowCardinality(String) CODEC(ZSTD(1)),
    method LowCardinality(String) CODEC(ZSTD(1)),
    endpoint LowCardinality(String) CODEC(ZSTD(1)),
    response_code LowCardinality(String) CODEC(ZSTD(1)),
    ip IPv6 CODEC(ZSTD(1)),
    port UInt16 CODEC(ZSTD(1)),
    peer_ip IPv6 CODEC(ZSTD(1)),
    peer_port UInt16 CODEC(ZSTD(1)),
    cluster LowCardinality(String) CODEC(ZSTD(1)),
    namespace LowCardinality(String) CODEC(ZSTD(1)),
    pod LowCardinality(String) CODEC(ZSTD(1)),
    pod_uid LowCardinality(String) CODEC(ZSTD(1)),
    node LowCardinality(String) CODEC(ZSTD(1)),
    workload LowCardinality(String) CODEC(ZSTD(1)),
    agent_id LowCardinality(String) CODEC(ZSTD(1))
)
ENGINE = {{engine "MergeTree"}}
PARTITION BY toDate(start_time)
ORDER BY (toStartOfHour(start_time), trace_id, span_id)
{{ttl "start_time" .SpansRetention}}
SETTINGS ttl_only_drop_parts = 1, {{deduplication}};

{{- if .Cluster}}

-- The rows of all shards. Read-only for MetaFlow itself; the sharding key is
-- for whoever else inserts, so that a trace stays in one piece.
CREATE TABLE IF NOT EXISTS {{.Database}}.spans_distributed{{.OnCluster}} AS {{.Database}}.spans_local
ENGINE = Distributed('{{.Cluster}}', '{{.Database}}', 'spans_local', cityHash64(trace_id));
{{- end}}

-- What people query. A filter on a column that stands here under its own name
-- reaches the primary key and the indexes of spans_local.
CREATE VIEW IF NOT EXISTS {{.Database}}.spans{{.OnCluster}} AS
SELECT
    trace_id,
    span_id,
    parent_span_id,
    trace_state,
    flags,
    name,
    kind,
    service_name,
    service_namespace,
    service_instance_id,
    start_time,
    fromUnixTimestamp64Nano(toUnixTimestamp64Nano(start_time) + duration_ns, 'UTC') AS end_time,
    duration_ns,
    status_code,
    status_message,
    protocol,
    method,
    endpoint,
    response_code,
    ip,
    port,
    peer_ip,
    peer_port,
    cluster,
    namespace,
    pod,
    pod_uid,
    node,
    workload,
    attributes,
    JSONExtract(resource, 'Map(String, String)') AS resource_attributes,
    events,
    links,
    scope_name,
    scope_version,
    JSONExtract(scope_attributes, 'Map(String, String)') AS scope_attributes,
    resource_schema_url,
    scope_schema_url,
    dropped_attributes_count,
    dropped_events_count,
    dropped_links_count,
    resource_dropped_attributes_count,
    scope_dropped_attributes_count,
    agent_id
FROM {{.Spans}};
