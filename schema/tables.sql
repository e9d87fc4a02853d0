-- Rendered from migrations/ for one node: go test ./migrations -update

CREATE DATABASE IF NOT EXISTS metaflow;

CREATE TABLE IF NOT EXISTS metaflow.schema_migrations
(
    version UInt32,
    name String,
    applied Bool,
    at DateTime64(9, 'UTC') DEFAULT now64(9)
)
ENGINE = ReplacingMergeTree(at)
ORDER BY version;

CREATE TABLE IF NOT EXISTS metaflow.spans_local
(
    trace_id String CODEC(ZSTD(1)),
    span_id FixedString(16) CODEC(ZSTD(1)),
    parent_span_id String CODEC(ZSTD(1)),
    trace_state String CODEC(ZSTD(1)),
    flags UInt32 CODEC(ZSTD(1)),
    name LowCardinality(String) CODEC(ZSTD(1)),
    kind Enum8('unspecified' = 0, 'internal' = 1, 'server' = 2, 'client' = 3, 'producer' = 4, 'consumer' = 5) CODEC(ZSTD(1)),
    start_time DateTime64(9, 'UTC') CODEC(Delta(8), ZSTD(1)),
    duration_ns Int64 CODEC(T64, ZSTD(1)),
    status_code Enum8('unset' = 0, 'ok' = 1, 'error' = 2) CODEC(ZSTD(1)),
    status_message String CODEC(ZSTD(1)),
    service_name LowCardinality(String) CODEC(ZSTD(1)),
    resource LowCardinality(String) CODEC(ZSTD(1)),
    origin LowCardinality(String) CODEC(ZSTD(1)),
    scope LowCardinality(String) CODEC(ZSTD(1)),
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
    namespace LowCardinality(String) CODEC(ZSTD(1)),
    pod LowCardinality(String) CODEC(ZSTD(1)),
    workload LowCardinality(String) CODEC(ZSTD(1)),
    INDEX trace_id trace_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX attribute_values mapValues(attributes) TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(start_time)
ORDER BY (toStartOfHour(start_time), trace_id, start_time)
PRIMARY KEY (toStartOfHour(start_time), trace_id)
TTL toDateTime(start_time) + toIntervalSecond(2592000)
SETTINGS
    auto_statistics_types = '',
    string_serialization_version = 'single_stream',
    min_bytes_for_wide_part = 50331648,
    ttl_only_drop_parts = 1,
    non_replicated_deduplication_window = 10000;

CREATE VIEW IF NOT EXISTS metaflow.spans
(
    trace_id String,
    span_id String,
    parent_span_id String,
    trace_state String,
    flags UInt32,
    name LowCardinality(String),
    kind Enum8('unspecified' = 0, 'internal' = 1, 'server' = 2, 'client' = 3, 'producer' = 4, 'consumer' = 5),
    service_name LowCardinality(String),
    service_namespace LowCardinality(String),
    service_instance_id LowCardinality(String),
    start_time DateTime64(9, 'UTC'),
    end_time DateTime64(9, 'UTC'),
    duration_ns Int64,
    status_code Enum8('unset' = 0, 'ok' = 1, 'error' = 2),
    status_message String,
    protocol LowCardinality(String),
    method LowCardinality(String),
    endpoint LowCardinality(String),
    response_code LowCardinality(String),
    ip IPv6,
    port UInt16,
    peer_ip IPv6,
    peer_port UInt16,
    cluster LowCardinality(String),
    namespace LowCardinality(String),
    pod LowCardinality(String),
    pod_uid LowCardinality(String),
    node LowCardinality(String),
    workload LowCardinality(String),
    attributes Map(LowCardinality(String), String),
    resource_attributes Map(LowCardinality(String), String),
    events Array(Tuple(
        time DateTime64(9, 'UTC'),
        name LowCardinality(String),
        attributes Map(LowCardinality(String), String),
        dropped_attributes_count UInt32)),
    links Array(Tuple(
        trace_id String,
        span_id String,
        trace_state String,
        attributes Map(LowCardinality(String), String),
        dropped_attributes_count UInt32,
        flags UInt32)),
    scope_name LowCardinality(String),
    scope_version LowCardinality(String),
    scope_attributes Map(LowCardinality(String), String),
    resource_schema_url LowCardinality(String),
    scope_schema_url LowCardinality(String),
    dropped_attributes_count UInt32,
    dropped_events_count UInt32,
    dropped_links_count UInt32,
    resource_dropped_attributes_count UInt32,
    scope_dropped_attributes_count UInt32,
    agent_id LowCardinality(String)
)
AS SELECT
    trace_id,
    span_id,
    parent_span_id,
    trace_state,
    flags,
    name,
    kind,
    service_name,
    simpleJSONExtractString(origin, 'service_namespace') AS service_namespace,
    simpleJSONExtractString(origin, 'service_instance_id') AS service_instance_id,
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
    simpleJSONExtractString(origin, 'cluster') AS cluster,
    namespace,
    pod,
    simpleJSONExtractString(origin, 'pod_uid') AS pod_uid,
    simpleJSONExtractString(origin, 'node') AS node,
    workload,
    attributes,
    JSONExtract(resource, 'Map(LowCardinality(String), String)') AS resource_attributes,
    events,
    links,
    simpleJSONExtractString(scope, 'name') AS scope_name,
    simpleJSONExtractString(scope, 'version') AS scope_version,
    JSONExtract(simpleJSONExtractString(scope, 'attributes'), 'Map(LowCardinality(String), String)') AS scope_attributes,
    simpleJSONExtractString(origin, 'schema_url') AS resource_schema_url,
    simpleJSONExtractString(scope, 'schema_url') AS scope_schema_url,
    dropped_attributes_count,
    dropped_events_count,
    dropped_links_count,
    toUInt32(simpleJSONExtractUInt(origin, 'dropped_attributes_count')) AS resource_dropped_attributes_count,
    toUInt32(simpleJSONExtractUInt(scope, 'dropped_attributes_count')) AS scope_dropped_attributes_count,
    simpleJSONExtractString(origin, 'agent_id') AS agent_id
FROM metaflow.spans_local;

CREATE VIEW IF NOT EXISTS metaflow.otel_traces
(
    Timestamp DateTime64(9),
    TraceId String,
    SpanId String,
    ParentSpanId String,
    TraceState String,
    SpanName LowCardinality(String),
    SpanKind LowCardinality(String),
    ServiceName LowCardinality(String),
    ResourceAttributes Map(LowCardinality(String), String),
    ScopeName String,
    ScopeVersion String,
    SpanAttributes Map(LowCardinality(String), String),
    Duration UInt64,
    StatusCode LowCardinality(String),
    StatusMessage String,
    `Events.Timestamp` Array(DateTime64(9)),
    `Events.Name` Array(LowCardinality(String)),
    `Events.Attributes` Array(Map(LowCardinality(String), String)),
    `Links.TraceId` Array(String),
    `Links.SpanId` Array(String),
    `Links.TraceState` Array(String),
    `Links.Attributes` Array(Map(LowCardinality(String), String))
)
AS SELECT
    start_time AS Timestamp,
    trace_id AS TraceId,
    span_id AS SpanId,
    parent_span_id AS ParentSpanId,
    trace_state AS TraceState,
    name AS SpanName,
    transform(toInt8(kind), [1, 2, 3, 4, 5], ['Internal', 'Server', 'Client', 'Producer', 'Consumer'], 'Unspecified') AS SpanKind,
    service_name AS ServiceName,
    JSONExtract(resource, 'Map(LowCardinality(String), String)') AS ResourceAttributes,
    simpleJSONExtractString(scope, 'name') AS ScopeName,
    simpleJSONExtractString(scope, 'version') AS ScopeVersion,
    attributes AS SpanAttributes,
    toUInt64(greatest(duration_ns, 0)) AS Duration,
    transform(toInt8(status_code), [1, 2], ['Ok', 'Error'], 'Unset') AS StatusCode,
    status_message AS StatusMessage,
    events.time AS `Events.Timestamp`,
    events.name AS `Events.Name`,
    events.attributes AS `Events.Attributes`,
    links.trace_id AS `Links.TraceId`,
    links.span_id AS `Links.SpanId`,
    links.trace_state AS `Links.TraceState`,
    links.attributes AS `Links.Attributes`
FROM metaflow.spans_local;

CREATE VIEW IF NOT EXISTS metaflow.otel_traces_trace_id_ts
(
    TraceId String,
    Start DateTime,
    End DateTime
)
AS SELECT
    trace_id AS TraceId,
    min(start_time) AS Start,
    max(start_time) AS End
FROM metaflow.spans_local
GROUP BY trace_id;
