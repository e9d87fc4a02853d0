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

CREATE TABLE IF NOT EXISTS metaflow.flows_local
(
    time DateTime64(9, 'UTC') CODEC(Delta(8), ZSTD(1)),
    start_time DateTime64(9, 'UTC') CODEC(Delta(8), ZSTD(1)),
    role Enum8('unknown' = 0, 'client' = 1, 'server' = 2) CODEC(ZSTD(1)),
    ip IPv6 CODEC(ZSTD(1)),
    port UInt16 CODEC(ZSTD(1)),
    peer_ip IPv6 CODEC(ZSTD(1)),
    peer_port UInt16 CODEC(ZSTD(1)),
    network_namespace UInt64 CODEC(ZSTD(1)),
    connection UInt64 CODEC(ZSTD(1)),
    state Enum8('unknown' = 0, 'living' = 1, 'closed' = 2) CODEC(ZSTD(1)),
    end_reason Enum8('unknown' = 0, 'orderly' = 1, 'reset' = 2, 'timed out' = 3, 'connect failed' = 4) CODEC(ZSTD(1)),
    connections UInt32 CODEC(T64, ZSTD(1)),
    connect_failures UInt32 CODEC(T64, ZSTD(1)),
    resets UInt32 CODEC(T64, ZSTD(1)),
    timeouts UInt32 CODEC(T64, ZSTD(1)),
    bytes_sent UInt64 CODEC(T64, ZSTD(1)),
    bytes_received UInt64 CODEC(T64, ZSTD(1)),
    segments_sent UInt64 CODEC(T64, ZSTD(1)),
    retransmits UInt64 CODEC(T64, ZSTD(1)),
    retransmitted_bytes UInt64 CODEC(T64, ZSTD(1)),
    rtt_us UInt32 CODEC(T64, ZSTD(1)),
    rtt_min_us UInt32 CODEC(T64, ZSTD(1)),
    receive_window_limited_us UInt64 CODEC(T64, ZSTD(1)),
    send_buffer_limited_us UInt64 CODEC(T64, ZSTD(1)),
    busy_us UInt64 CODEC(T64, ZSTD(1)),
    agent_id LowCardinality(String) CODEC(ZSTD(1)),
    cluster LowCardinality(String) CODEC(ZSTD(1)),
    node LowCardinality(String) CODEC(ZSTD(1)),
    namespace LowCardinality(String) CODEC(ZSTD(1)),
    pod LowCardinality(String) CODEC(ZSTD(1)),
    pod_uid LowCardinality(String) CODEC(ZSTD(1)),
    workload LowCardinality(String) CODEC(ZSTD(1)),
    container LowCardinality(String) CODEC(ZSTD(1)),
    container_id LowCardinality(String) CODEC(ZSTD(1)),
    process LowCardinality(String) CODEC(ZSTD(1)),
    peer_node LowCardinality(String) CODEC(ZSTD(1)),
    peer_namespace LowCardinality(String) CODEC(ZSTD(1)),
    peer_pod LowCardinality(String) CODEC(ZSTD(1)),
    peer_pod_uid LowCardinality(String) CODEC(ZSTD(1)),
    peer_workload LowCardinality(String) CODEC(ZSTD(1)),
    peer_service LowCardinality(String) CODEC(ZSTD(1)),
    INDEX pod_uid pod_uid TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX time time TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toDate(time)
ORDER BY (toStartOfHour(time), ip, peer_ip, time)
PRIMARY KEY (toStartOfHour(time), ip, peer_ip)
TTL toDateTime(time) + toIntervalSecond(604800)
SETTINGS
    auto_statistics_types = '',
    min_bytes_for_wide_part = 50331648,
    ttl_only_drop_parts = 1,
    non_replicated_deduplication_window = 10000;

CREATE TABLE IF NOT EXISTS metaflow.service_addresses_local
(
    hour DateTime('UTC') CODEC(Delta(4), ZSTD(1)),
    ip IPv6 CODEC(ZSTD(1)),
    service_name LowCardinality(String) CODEC(ZSTD(1)),
    spans SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1))
)
ENGINE = AggregatingMergeTree
PARTITION BY toDate(hour)
ORDER BY (hour, ip, service_name)
TTL toDateTime(hour) + toIntervalSecond(2592000)
SETTINGS ttl_only_drop_parts = 1,
    non_replicated_deduplication_window = 10000;

CREATE TABLE IF NOT EXISTS metaflow.flow_addresses_local
(
    hour DateTime('UTC') CODEC(Delta(4), ZSTD(1)),
    ip IPv6 CODEC(ZSTD(1)),
    pod_uid LowCardinality(String) CODEC(ZSTD(1)),
    flows SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1))
)
ENGINE = AggregatingMergeTree
PARTITION BY toDate(hour)
ORDER BY (hour, ip, pod_uid)
TTL toDateTime(hour) + toIntervalSecond(604800)
SETTINGS ttl_only_drop_parts = 1,
    non_replicated_deduplication_window = 10000;

CREATE TABLE IF NOT EXISTS metaflow.pods_local
(
    cluster LowCardinality(String) CODEC(ZSTD(1)),
    ip IPv6 CODEC(ZSTD(1)),
    uid String CODEC(ZSTD(1)),
    pod String CODEC(ZSTD(1)),
    namespace LowCardinality(String) CODEC(ZSTD(1)),
    node LowCardinality(String) CODEC(ZSTD(1)),
    workload LowCardinality(String) CODEC(ZSTD(1)),
    workload_kind LowCardinality(String) CODEC(ZSTD(1)),
    host_network Bool CODEC(ZSTD(1)),
    valid_from DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    valid_to DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    seen DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    recorded DateTime64(9, 'UTC') CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(recorded)
ORDER BY (cluster, ip, uid)
TTL toDateTime(seen) + toIntervalSecond(2592000)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE TABLE IF NOT EXISTS metaflow.services_local
(
    cluster LowCardinality(String) CODEC(ZSTD(1)),
    ip IPv6 CODEC(ZSTD(1)),
    namespace LowCardinality(String) CODEC(ZSTD(1)),
    service String CODEC(ZSTD(1)),
    ports Array(UInt16) CODEC(ZSTD(1)),
    endpoints Array(IPv6) CODEC(ZSTD(1)),
    valid_from DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    valid_to DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    seen DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    recorded DateTime64(9, 'UTC') CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(recorded)
ORDER BY (cluster, ip, namespace, service, valid_from)
TTL toDateTime(seen) + toIntervalSecond(2592000)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE TABLE IF NOT EXISTS metaflow.agents_local
(
    agent_id String CODEC(ZSTD(1)),
    name String CODEC(ZSTD(1)),
    host String CODEC(ZSTD(1)),
    addresses Array(IPv6) CODEC(ZSTD(1)),
    agent_version LowCardinality(String) CODEC(ZSTD(1)),
    cluster LowCardinality(String) CODEC(ZSTD(1)),
    group_id LowCardinality(String) CODEC(ZSTD(1)),
    revision UInt64 CODEC(ZSTD(1)),
    exceptions Array(String) CODEC(ZSTD(1)),
    started DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    seen DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    connected Bool CODEC(ZSTD(1)),
    deleted Bool CODEC(ZSTD(1)),
    recorded DateTime64(9, 'UTC') CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(recorded)
ORDER BY agent_id
SETTINGS non_replicated_deduplication_window = 10000;

ALTER TABLE metaflow.services_local ADD COLUMN IF NOT EXISTS endpoint_count UInt32 CODEC(T64, ZSTD(1)) AFTER endpoints;

ALTER TABLE metaflow.spans_local MODIFY SETTING merge_selector_base = 12;

ALTER TABLE metaflow.flows_local MODIFY SETTING merge_selector_base = 12;

ALTER TABLE metaflow.flows_local ADD COLUMN IF NOT EXISTS protocol Enum8('tcp' = 0, 'dns' = 1) CODEC(ZSTD(1)) AFTER role,
    ADD COLUMN IF NOT EXISTS peer_name LowCardinality(String) CODEC(ZSTD(1)) AFTER peer_port,
    ADD COLUMN IF NOT EXISTS translated_ip IPv6 CODEC(ZSTD(1)) AFTER peer_name,
    ADD COLUMN IF NOT EXISTS translated_port UInt16 CODEC(ZSTD(1)) AFTER translated_ip,
    ADD COLUMN IF NOT EXISTS translated_peer_ip IPv6 CODEC(ZSTD(1)) AFTER translated_port,
    ADD COLUMN IF NOT EXISTS translated_peer_port UInt16 CODEC(ZSTD(1)) AFTER translated_peer_ip,
    ADD COLUMN IF NOT EXISTS refused UInt32 CODEC(T64, ZSTD(1)) AFTER connect_failures,
    ADD COLUMN IF NOT EXISTS gave_up UInt32 CODEC(T64, ZSTD(1)) AFTER timeouts,
    ADD COLUMN IF NOT EXISTS rtt_usual_us UInt32 CODEC(T64, ZSTD(1)) AFTER rtt_min_us,
    ADD COLUMN IF NOT EXISTS rtt_max_us UInt32 CODEC(T64, ZSTD(1)) AFTER rtt_usual_us,
    ADD COLUMN IF NOT EXISTS queue_us UInt32 CODEC(T64, ZSTD(1)) AFTER rtt_max_us,
    ADD COLUMN IF NOT EXISTS retransmit_timeout_us UInt64 CODEC(T64, ZSTD(1)) AFTER busy_us,
    ADD COLUMN IF NOT EXISTS unread_bytes UInt64 CODEC(T64, ZSTD(1)) AFTER retransmit_timeout_us,
    ADD COLUMN IF NOT EXISTS unsent_bytes UInt64 CODEC(T64, ZSTD(1)) AFTER unread_bytes,
    ADD COLUMN IF NOT EXISTS accept_queue_full UInt32 CODEC(T64, ZSTD(1)) AFTER unsent_bytes,
    ADD COLUMN IF NOT EXISTS queries UInt32 CODEC(T64, ZSTD(1)) AFTER accept_queue_full,
    ADD COLUMN IF NOT EXISTS query_failures UInt32 CODEC(T64, ZSTD(1)) AFTER queries,
    ADD COLUMN IF NOT EXISTS queries_unanswered UInt32 CODEC(T64, ZSTD(1)) AFTER query_failures,
    ADD COLUMN IF NOT EXISTS query_time_us UInt64 CODEC(T64, ZSTD(1)) AFTER queries_unanswered,
    ADD COLUMN IF NOT EXISTS query_time_max_us UInt32 CODEC(T64, ZSTD(1)) AFTER query_time_us,
    ADD COLUMN IF NOT EXISTS query_code LowCardinality(String) CODEC(ZSTD(1)) AFTER query_time_max_us;

ALTER TABLE metaflow.flow_addresses_local ADD COLUMN IF NOT EXISTS owner UInt64 CODEC(ZSTD(1)) AFTER pod_uid, MODIFY ORDER BY (hour, ip, pod_uid, owner);

CREATE OR REPLACE VIEW metaflow.spans
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

CREATE OR REPLACE VIEW metaflow.otel_traces
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
    `Links.Attributes` Array(Map(LowCardinality(String), String)),
    `__hdx_materialized_rum.sessionId` String,
    SampleRate UInt64
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
    links.attributes AS `Links.Attributes`,
    simpleJSONExtractString(resource, 'rum.sessionId') AS `__hdx_materialized_rum.sessionId`,
    greatest(toUInt64OrZero(attributes['SampleRate']), 1) AS SampleRate
FROM metaflow.spans_local
COMMENT 'made by metaflow-server, form 2310b5eeb3cc526f';

CREATE OR REPLACE VIEW metaflow.otel_traces_trace_id_ts
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
GROUP BY trace_id
COMMENT 'made by metaflow-server, form 9522ab91f5f84305';

CREATE OR REPLACE VIEW metaflow.flows
AS SELECT
    time,
    start_time,
    time AS end_time,
    agent_id,
    role,
    protocol,
    ip,
    port,
    peer_ip,
    peer_port,
    peer_name,
    translated_ip,
    translated_port,
    translated_peer_ip,
    translated_peer_port,
    cluster,
    namespace,
    pod,
    pod_uid,
    node,
    workload,
    container,
    container_id,
    process,
    peer_node,
    peer_namespace,
    peer_pod,
    peer_pod_uid,
    peer_workload,
    peer_service,
    network_namespace,
    connection,
    state,
    end_reason,
    connections,
    connect_failures,
    refused,
    resets,
    timeouts,
    gave_up,
    bytes_sent,
    bytes_received,
    segments_sent,
    retransmits,
    retransmitted_bytes,
    rtt_us,
    rtt_min_us,
    rtt_usual_us,
    rtt_max_us,
    queue_us,
    receive_window_limited_us,
    send_buffer_limited_us,
    busy_us,
    retransmit_timeout_us,
    unread_bytes,
    unsent_bytes,
    accept_queue_full,
    queries,
    query_failures,
    queries_unanswered,
    query_time_us,
    query_time_max_us,
    query_code
FROM metaflow.flows_local;

CREATE MATERIALIZED VIEW IF NOT EXISTS metaflow.service_addresses_of_spans TO metaflow.service_addresses_local
AS SELECT toStartOfHour(start_time) AS hour, ip, service_name, count() AS spans
FROM metaflow.spans_local
WHERE ip != toIPv6('::') AND service_name != ''
GROUP BY hour, ip, service_name
COMMENT 'made by metaflow-server, form 87cb3d34ad5ca466';

CREATE MATERIALIZED VIEW IF NOT EXISTS metaflow.flow_addresses_of_flows TO metaflow.flow_addresses_local
AS SELECT toStartOfHour(time) AS hour, ip, pod_uid, cityHash64(agent_id, network_namespace) AS owner, count() AS flows
FROM metaflow.flows_local
GROUP BY hour, ip, pod_uid, owner
COMMENT 'made by metaflow-server, form 4dee41b9ce524d5d';

CREATE OR REPLACE VIEW metaflow.call_ends
(
    trace_id String,
    span_id String,
    start_time DateTime64(9, 'UTC'),
    end_time DateTime64(9, 'UTC'),
    ip IPv6,
    peer_ip IPv6,
    pod_uid String,
    cluster String,
    role String,
    wanted_port UInt16,
    wanted_client_port UInt16,
    host String,
    full_host String,
    limit_us Float64,
    other_ip IPv6,
    other_pod_uid String,
    span Tuple(String, LowCardinality(String), LowCardinality(String), Enum8('unspecified' = 0, 'internal' = 1, 'server' = 2, 'client' = 3, 'producer' = 4, 'consumer' = 5),
        DateTime64(9, 'UTC'), Int64, Enum8('unset' = 0, 'ok' = 1, 'error' = 2), IPv6, String, IPv6, UInt16, String, String, String, String, LowCardinality(String), IPv6, Int64)
)
AS SELECT
    trace_id,
    span_id,
    start_time,
    start_time + toIntervalNanosecond(duration_ns) AS end_time,
    ip,
    peer_ip,
    pod_uid,
    cluster,
    role,
    if(kind = 'server', port, peer_port) AS wanted_port,
    if(kind = 'server', peer_port, other.6) AS wanted_client_port,
    host,
    if(position(host, '.') = 0 AND namespace != '', concat(host, '.', namespace), host) AS full_host,
    multiIf(
        (status_code = 'error') * (other.8 != 'error') > answered, 0,
        other.1 = '', if(duration_ns < 10 * 1000000, 9e18, intDiv(duration_ns, 2000)),
        gap_ns < greatest(10 * 1000000, intDiv(greatest(duration_ns, other.7) * 20, 100)), 9e18,
        intDiv(gap_ns, 3000)) AS limit_us,
    other.4 AS other_ip,
    other.5 AS other_pod_uid,
    (parent_span_id, service_name, name, kind, start_time, duration_ns, status_code, ip, pod_uid, peer_ip, peer_port, role, edge, host, other.1, other.3, other.4, gap_ns) AS span
FROM
(
    SELECT *, multiIf(other.1 = '', 0, kind = 'client', duration_ns - other.7, other.7 - duration_ns) AS gap_ns
    FROM
    (
        SELECT *, arrayFirst(x -> x.2 = multiIf(kind = 'server', 'client', kind = 'client', 'server', 'unspecified'), groupArray((span_id, kind, service_name, ip, pod_uid, peer_port, duration_ns, status_code)) OVER (PARTITION BY trace_id, edge)) AS other
        FROM
        (
            SELECT
                trace_id,
                span_id,
                parent_span_id,
                service_name,
                name,
                kind,
                start_time,
                duration_ns,
                status_code,
                ip,
                port,
                peer_ip,
                peer_port,
                namespace,
                simpleJSONExtractString(origin, 'pod_uid') AS pod_uid,
                simpleJSONExtractString(origin, 'cluster') AS cluster,
                multiIf(kind = 'server', 'server', kind IN ('client', 'producer', 'consumer'), 'client', '') AS role,
                if(kind = 'server' AND parent_span_id != '', parent_span_id, span_id) AS edge,
                (match(response_code, '^(4..|50[015-9]|5[1-9].)$') OR response_code IN ('3', '5', '6', '7', '8', '9', '10', '11', '12', '15', '16', 'INVALID_ARGUMENT', 'NOT_FOUND', 'ALREADY_EXISTS', 'PERMISSION_DENIED', 'RESOURCE_EXHAUSTED', 'FAILED_PRECONDITION', 'ABORTED', 'OUT_OF_RANGE', 'UNIMPLEMENTED', 'DATA_LOSS', 'UNAUTHENTICATED')) + match(response_code, '^[123]..$') > 0 AS answered,
                if(kind = 'server', '', replaceRegexpOne(lower(arrayFirst(x -> x != '', arrayMap(x -> attributes[x],
                    ['server.address', 'net.peer.name', 'network.peer.address', 'net.sock.peer.addr', 'url.full', 'http.url', 'db.connection_string', 'http.host']))),
                    '^(?:[a-z0-9+.-]+://)?(?:[^/@]*@)?(unix:.*|/.*|[^/:]*?)(?:[.]svc(?:[.][^/:]*)?)?(?:[:/].*)?$', '\\1')) AS host
            FROM metaflow.spans_local
        )
    )
)
COMMENT 'made by metaflow-server, form ae38cd3eaa5e7ade';

CREATE OR REPLACE VIEW metaflow.flow_ends
(
    time DateTime64(9, 'UTC'),
    start_time DateTime64(9, 'UTC'),
    ip IPv6,
    peer_ip IPv6,
    owner_id UInt64,
    served Bool,
    dns Bool,
    cluster String,
    client Tuple(IPv6, UInt16, IPv6, String, String, IPv6, UInt16),
    server Tuple(IPv6, UInt16, IPv6, String, String, String),
    names Array(String),
    rtt_us UInt32,
    rtt_min_us UInt32,
    counters Array(UInt64)
)
AS SELECT
    time,
    start_time,
    ip,
    peer_ip,
    cityHash64(agent_id, network_namespace) AS owner_id,
    served,
    protocol = 'dns' AS dns,
    cluster,
    if(served, (wire_peer.1, wire_peer.2, wire_peer.1, peer_pod_uid, peer_label, wire.1, wire.2), (wire.1, wire.2, ip, pod_uid, label, peer_ip, peer_port)) AS client,
    if(served, (wire.1, wire.2, ip, pod_uid, label, pod), (wire_peer.1, wire_peer.2, wire_peer.1, peer_pod_uid, peer_label, peer_pod)) AS server,
    [peer_name, replaceRegexpOne(peer_name, '[.]svc([.].*)?$', ''), concat(if(served, workload, peer_service), '.', if(served, namespace, peer_namespace))] AS names,
    rtt_us,
    rtt_min_us,
    [connect_failures, resets, timeouts, 1, connections, bytes_sent, bytes_received, segments_sent, retransmits, retransmitted_bytes,
        receive_window_limited_us, send_buffer_limited_us, busy_us, refused, accept_queue_full, unread_bytes, greatest(retransmit_timeout_us, 200000 * retransmits),
        rtt_max_us, rtt_usual_us, rtt_longer_us, queue_us,
        query_failures + queries_unanswered, queries, if(query_time_max_us < 100000, 0, query_time_max_us), gave_up,
        rtt_longer_us * (1 + least(intDiv(segments_sent, 10), 3)),
        receive_window_limited_us * (20 * retransmits <= segments_sent) * (receive_window_limited_us >= 10 * 1000)] AS counters
FROM
(
    SELECT
        *,
        role = 'server' AS served,
        if(translated_port = 0, (ip, port), (translated_ip, translated_port)) AS wire,
        if(translated_peer_port = 0, (peer_ip, peer_port), (translated_peer_ip, translated_peer_port)) AS wire_peer,
        multiIf(rtt_usual_us = 0, 0, rtt_max_us > greatest(3 * rtt_usual_us, rtt_usual_us + 20000), rtt_max_us - rtt_usual_us, 0) AS rtt_longer_us,
        if(pod = '', process, pod) AS label,
        arrayFirst(x -> x != '', [peer_pod, peer_service, peer_name]) AS peer_label
    FROM metaflow.flows_local
    WHERE role != 'unknown'
)
COMMENT 'made by metaflow-server, form a6eb0e5a59f70cbc';

CREATE OR REPLACE VIEW metaflow.trace_network AS
WITH
    toIntervalMillisecond(1000) AS slack,
    toIntervalMinute(11) AS longest,
    toIPv6('::') AS unknown,
    [unknown, toIPv6('0.0.0.0')] AS unspecified,
    ['connect refused', 'accept queue full', 'connect failed', 'reset', 'timed out', 'receiver''s window full', 'receiver does not read', 'retransmission', 'slow handshake',
        'slow queue', 'slow network', 'DNS failed', 'slow DNS', 'network clean'] AS words,
    [14, 15, 1, 2, 3, 11, 16, 9, 9, 21, 18, 22, 24, 25] AS amounts,
    [1, 1, 1, 1, 1, 13, 1, 8, 8, 18, 19, 23, 23, 1] AS wholes,
    [1, 1, 1, 1, 1, 1000, 1, 1, 1, 1000, 1000, 1, 1000, 1] AS units,
    ['connects refused, as nothing listens there: {}', 'looks at a full accept queue: {}', 'connects without an answer: {}', 'connections reset: {}', 'connections timed out: {}',
        'waited {} of {} ms for the receiver to read', '{} bytes received and not read', '{} of {} segments sent again', 'segments of the handshake sent again: {}',
        'rtt {} ms longer by a queue of its own bytes, {} in all', 'rtt {} ms, usually {} ms', '{} of {} queries failed', 'a query took {} ms', 'connections that the client gave up: {}'] AS texts,
    (
        SELECT (min(start_time) - slack, max(start_time + toIntervalNanosecond(duration_ns)) + slack, groupUniqArrayIf(ip, ip != unknown),
            groupUniqArrayIf(simpleJSONExtractString(origin, 'pod_uid'), simpleJSONExtractString(origin, 'pod_uid') != ''), groupUniqArray(peer_ip))
        FROM metaflow.spans_local
        WHERE trace_id = {trace_id:String}
    ) AS read,
    (
        SELECT arrayConcat(groupArray((ips, pods, id)), arrayMap(x -> ([x], [], 0), arrayFilter(x -> NOT has(groupArrayArray(ips), x), read.3)))
        FROM
        (
            SELECT
                multiIf(owner != 0, owner, pod_uid != '', cityHash64(pod_uid), cityHash64(ip)) AS id,
                groupUniqArrayIf(ip, NOT has(unspecified, ip)) AS ips,
                groupUniqArrayIf(pod_uid, pod_uid != '') AS pods
            FROM metaflow.flow_addresses_local
            WHERE hour >= toStartOfHour(read.1) AND hour <= toStartOfHour(read.2 + longest)
            GROUP BY id
            HAVING hasAny(ips, read.3) + hasAny(pods, read.4) > 0
        )
    ) AS owners,
    (
        SELECT (arrayFlatten(owners.1), arrayFlatten(arrayMap((ips, i) -> arrayMap(x -> i, ips), owners.1, arrayEnumerate(owners))), owners.3, arrayConcat(arrayFlatten(owners.1), unspecified), arrayConcat(groupUniqArrayArray([peer_ip, translated_peer_ip]), read.5), groupUniqArray(translated_ip), read.1, read.2)
        FROM metaflow.flows_local
        WHERE time >= read.1 AND time <= read.2 + longest AND start_time <= read.2 AND role = 'client' AND has(arrayFlatten(owners.1), ip)
    ) AS places,
    (
        SELECT groupArray((call, span, best, dns))
        FROM
        (
            SELECT call, any(span) AS span, argMin((rank, worst, servers, owner, reported, far_owner, far_label, own_sums, far_sums, rtt_us, rtt_min_us, far_rtt_us), rank) AS best, anyIf(worst, rank = 90) AS dns
            FROM
            (
                SELECT
                    call, role, any(span) AS span, rank,
                    min((multiIf(rank = 99, 99, cause = 0, 99, cause), -toInt64(counters[amounts[cause]]), counters[wholes[cause]], flow_start, flow_end)) AS worst,
                    uniqExact(callee.3) AS servers,
                    any(owner) AS owner,
                    any(reported) AS reported,
                    any(side.3) AS far_owner,
                    max(side.6) AS far_label,
                    sumForEachIf(counters, is_own) AS own_sums,
                    sumForEachIf(counters, NOT is_own) AS far_sums,
                    maxIf(flow_rtt_us, is_own) AS rtt_us,
                    minIf(flow_rtt_min_us, is_own * (flow_rtt_min_us > 0) > 0) AS rtt_min_us,
                    maxIf(flow_rtt_us, NOT is_own) AS far_rtt_us
                FROM
                (
                    SELECT
                        call, span, role, owner, reported, callee, side, counters, flow_start, flow_end, flow_rtt_us, flow_rtt_min_us,
                        served = (role = 'server') AS is_own,
                        arrayFirstIndex((n, d, most, also, cost, scale) -> (counters[n] > most * counters[d]) * (counters[also] > 0) * (counters[cost] * scale >= limit_us) > 0,
                            [14, 15, 1, 2, 3, 11, 16, 9, 9, 21, 20, 22, 24, 25], [1, 1, 1, 1, 1, 13, 1, 8, 8, 1, 1, 23, 1, 1],
                            [0, 0, 0, 0, 0, 20 / 100, 0, 1 / 100, 1 / 100, 0, 0, 0.99, 0, 0],
                            [14, 15, 1, 2, 3, 27, 16, 10, 9, 20, 20, 22, 24, 25], [14, 15, 1, 2, 3, 11, 16, 17, 9, 21, 26, 22, 24, 25],
                            [1e10, 1e10, 1e10, 1e10, 1e10, 1, 1e10, 1, if(limit_us BETWEEN 1 AND 333332, 0, 1e6), 1, 1, 0, 1, 0]) AS cause,
                        multiIf(
                            fits = 0, 99,
                            dns, if(named, 90, 99),
                            caller.1 = unknown, if(on_port * (role = 'server') > 0, 90, 99),
                            to_peer * on_connection > 0, 1,
                            to_peer * on_port > 0, if(wanted_port * (role = 'client') > 0, 1, 2),
                            to_peer * (role = 'server') > 0, 3,
                            named * on_port > 0, 4,
                            side.3 * (side.3 = other_owner) > 0, if(on_port, 5, if(owner = other_owner, 99, 6)),
                            (peer_ip = unknown) * wanted_port * on_port > 0, 7,
                            99) AS rank
                    FROM
                    (
                        SELECT
                            call, span, role, peer_ip, wanted_port, limit_us, owner, other_owner, reported, served, dns, caller, callee, side, flow_start, flow_end, flow_rtt_us, flow_rtt_min_us,
                            arrayMap((x, last, i) -> greatest(x, (i = 15) * swallowed) * (last <= (flow_end <= late)), arrayResize(flow_counters, 27),
                                [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], range(1, 28)) AS counters,
                            arrayMax(q -> q.3 * (q.1 <= late) * (q.2 >= early), queue_full) AS swallowed,
                            (side.2 > 0) * multiIf(pod_uid = '', 1, side.5 = '', 1, pod_uid = side.5) * multiIf(cluster = '', 1, flow_cluster = '', 1, cluster = flow_cluster) AS fits,
                            has(side.4, peer_ip) AS to_peer,
                            wanted_client_port * (wanted_client_port = caller.2) > 0 AS on_connection,
                            multiIf(wanted_port = 0, 1, callee.2 = 0, 1, has([caller.7, callee.2], wanted_port)) AS on_port,
                            multiIf(host = '', 0, arrayExists(x -> (x = host) + startsWith(concat(x, '.'), concat(full_host, '.')) > 0, known_names), 1,
                                callee.6 = '', 0, startsWith(concat(host, '.'), concat(callee.6, '.'))) AS named
                        FROM
                        (
                            SELECT
                                (trace_id, span_id) AS call, span, pod_uid, cluster, peer_ip, role, host, full_host, wanted_port, wanted_client_port, limit_us,
                                start_time - slack AS early, end_time + slack AS late,
                                arrayFirstIndex(o -> has(o.1, ip) + has(o.2, pod_uid) > 0, owners) AS owner,
                                arrayFirstIndex(o -> has(o.1, other_ip) + has(o.2, other_pod_uid) > 0, owners) AS other_owner,
                                arrayExists(o -> o.3 * (has(o.1, ip) + has(o.2, pod_uid)) > 0, owners) AS reported
                            FROM metaflow.call_ends
                            WHERE trace_id = {trace_id:String}
                        ) AS c
                        LEFT JOIN
                        (
                            SELECT flow_start, flow_end, served, dns, flow_cluster, flow_rtt_us, flow_rtt_min_us,
                                if((callee.3 != unknown) * (counters[1] + counters[9] * (counters[10] = 0)) > 0,
                                    groupArrayIf((flow_start, flow_end, counters[15]), counters[15] > 0) OVER (PARTITION BY if(server_owner > 0, unknown, callee.3), server_owner, callee.2), []) AS queue_full,
                                counters AS flow_counters, caller, callee, known_names, side, side.1 AS end_role, side.2 AS end_owner
                            FROM
                            (
                                SELECT
                                    time AS flow_end, start_time AS flow_start, served, dns, cluster AS flow_cluster, rtt_us AS flow_rtt_us, rtt_min_us AS flow_rtt_min_us, counters,
                                    argMin(client, served) OVER w AS caller,
                                    argMax(server, served) OVER w AS callee,
                                    argMin(arrayMin(arrayFilter(i -> i > 0, [if(served, 0, transform(owner_id, places.3, arrayEnumerate(places.3), 0)), transform(client.3, places.1, places.2, 0)])), served) OVER w AS client_owner,
                                    argMax(arrayMin(arrayFilter(i -> i > 0, [if(served, transform(owner_id, places.3, arrayEnumerate(places.3), 0), 0), transform(server.3, places.1, places.2, 0)])), served) OVER w AS server_owner,
                                    groupUniqArrayArray(names) OVER w AS known_names
                                FROM metaflow.flow_ends
                                WHERE time >= places.7 AND time <= places.8 + longest AND start_time <= places.8
                                    AND (has(places.4, ip) OR has(places.5, ip) AND has(arrayConcat(places.4, places.6), peer_ip))
                                WINDOW w AS (PARTITION BY client.1, client.2, server.1, server.2, (client.2 = 0) * owner_id, if(dns, names, []))
                            )
                            ARRAY JOIN
                                [('client', client_owner, server_owner, [caller.6, callee.1, callee.3], caller.4, callee.5),
                                 ('server', server_owner, client_owner, [caller.1, caller.3, caller.1], callee.4, caller.5)] AS side
                        ) AS f ON (end_owner, end_role) = (owner, role) AND flow_start <= late AND flow_end >= early
                    )
                )
                GROUP BY call, role, rank
            )
            GROUP BY call, role
        )
    ) AS spans
SELECT
    call.2 AS span_id,
    s.1 AS parent_span_id,
    s.2 AS service_name,
    s.3 AS name,
    s.4 AS kind,
    s.5 AS start_time,
    s.6 AS duration_ns,
    s.7 AS status_code,
    s.8 AS ip,
    if(s.10 = unknown, s.17, s.10) AS peer_ip,
    s.11 AS peer_port,
    s.15 AS peer_span_id,
    s.16 AS peer_service_name,
    s.18 AS gap_ns,
    matched,
    multiIf(
        matched != '', '',
        s.12 = '', 'the span is no call over a network',
        bad.1 = 12, 'the name was not resolved',
        match(s.14, '^(unix:|/)'), 'a UNIX socket: it is no network',
        match(concat(s.14, ' ', IPv6NumToString(s.10)), '^localhost |^127[.]| ::ffff:127[.]| ::1$'), 'loopback: the connection does not leave the host or pod',
        (s.8 = unknown) * (s.9 = '') > 0, 'no address: the resource says neither pod nor IP',
        m.1 = 7, 'several peers are possible: the span names none of them',
        (s.10 = unknown) * (s.14 = '') * (s.17 = unknown) > 0, 'no peer address: neither the span nor the trace says it',
        NOT m.5, 'no flow data of that address: no agent on that node',
        'no flow in that time') AS unmatched,
    verdict,
    own[4] AS flows,
    own[5] AS connections,
    own[1] AS connect_failures,
    own[2] AS resets,
    own[3] AS timeouts,
    own[6] AS bytes_sent,
    own[7] AS bytes_received,
    own[8] AS segments_sent,
    own[9] AS retransmits,
    own[10] AS retransmitted_bytes,
    notEmpty(own) * m.10 AS rtt_us,
    notEmpty(own) * m.11 AS rtt_min_us,
    own[11] AS receive_window_limited_us,
    own[12] AS send_buffer_limited_us,
    own[13] AS busy_us,
    peer[2] AS peer_resets,
    peer[8] AS peer_segments_sent,
    peer[9] AS peer_retransmits,
    notEmpty(peer) * if(notEmpty(far), m.12, b.10) AS peer_rtt_us,
    peer[11] AS peer_receive_window_limited_us,
    peer[13] AS peer_busy_us,
    if(there, b.8, hop_why) AS why,
    multiIf(verdict = '', '', if(there, b.6.5 <= b.6.4 + toIntervalSecond(20), bad.5 <= bad.4 + toIntervalSecond(20)), 'sample', 'interval') AS evidence,
    ['client end', 'server end', 'both ends'][bitOr(ends_seen, same * b.11)] AS seen,
    multiIf(matched = '', [], b.7 = '', [], same, [], s.12 = 'client',
        [(s.2, m.7, word, hop_why), (b.5, s.16, b.7, b.8)],
        [(s.16, b.5, b.7, b.8), (m.7, s.2, word, hop_why)]) AS hops,
    call.1 AS trace_id
FROM
(
    SELECT call, s, m, matched, own, far, bad, word, hop_why, ends_seen, b, same, there, if(there, b.7, word) AS verdict, if(empty(far), b.9, far) AS peer
    FROM
    (
        SELECT call, s, m, matched, own, far, bad, word, hop_why, ends_seen, b, same,
            multiIf(b.6.1 % 99 = 0, 0, bad.1 = 0, 1, b.6.1 < bad.1) + (word = '') * same > 0 AS there
        FROM
        (
            SELECT call, s, m, matched, own, far, bad, word, hop_why, ends_seen, b,
                multiIf(b.7 = '', 0, matched = '', has([0, b.4], m.4), b.3 = m.6) AS same
            FROM
            (
                SELECT call, s, m, matched, own, far, bad, word, hop_why, ends_seen,
                    arrayFirst(y -> (y.1 = s.15) > (y.2 = s.12), groupArray((call.2, s.12, m.4, m.6, m.7, bad, word, hop_why, own, m.10, ends_seen)) OVER (PARTITION BY call.1, s.13)) AS b
                FROM
                (
                    SELECT
                        call, s, m, matched, own, far, bad,
                        multiIf(bad.1 % 99 > 0, words[bad.1], matched != '', 'network clean', '') AS word,
                        if(bad.1 % 99 = 0, '', concat(
                            replaceOne(replaceOne(texts[bad.1], '{}', toString(round(-bad.2 / units[bad.1], 2))), '{}', toString(round(bad.3 / units[bad.1], 2))),
                            ' between ', formatDateTime(bad.4, '%H:%i:%S'), ' and ', formatDateTime(bad.5, '%H:%i:%S'))) AS hop_why,
                        if(s.12 = 'client', notEmpty(own) + 2 * notEmpty(far), 2 * notEmpty(own) + notEmpty(far)) AS ends_seen
                    FROM
                    (
                        SELECT
                            call, s, m, matched,
                            if(matched = '', [], m.8) AS own,
                            if(matched = '', [], m.9) AS far,
                            arraySort(arrayFilter(w -> w.1 > 0, [if(matched = '', dns, m.2), dns]))[1] AS bad
                        FROM
                        (
                            SELECT x.1 AS call, x.2 AS s, x.3 AS m, x.4 AS dns,
                                if((m.1 = 7) * m.3 > 1, '', ['ip and port', 'ip', 'ip', 'name', 'trace edge', 'trace edge', 'port'][m.1]) AS matched
                            FROM (SELECT arrayJoin(spans) AS x)
                        )
                    )
                )
            )
        )
    )
)
ORDER BY start_time, span_id;

CREATE OR REPLACE VIEW metaflow.trace_network_with AS
WITH
    toIntervalMillisecond({slack_ms:UInt32}) AS slack,
    toIntervalMinute(11) AS longest,
    toIPv6('::') AS unknown,
    [unknown, toIPv6('0.0.0.0')] AS unspecified,
    ['connect refused', 'accept queue full', 'connect failed', 'reset', 'timed out', 'receiver''s window full', 'receiver does not read', 'retransmission', 'slow handshake',
        'slow queue', 'slow network', 'DNS failed', 'slow DNS', 'network clean'] AS words,
    [14, 15, 1, 2, 3, 11, 16, 9, 9, 21, 18, 22, 24, 25] AS amounts,
    [1, 1, 1, 1, 1, 13, 1, 8, 8, 18, 19, 23, 23, 1] AS wholes,
    [1, 1, 1, 1, 1, 1000, 1, 1, 1, 1000, 1000, 1, 1000, 1] AS units,
    ['connects refused, as nothing listens there: {}', 'looks at a full accept queue: {}', 'connects without an answer: {}', 'connections reset: {}', 'connections timed out: {}',
        'waited {} of {} ms for the receiver to read', '{} bytes received and not read', '{} of {} segments sent again', 'segments of the handshake sent again: {}',
        'rtt {} ms longer by a queue of its own bytes, {} in all', 'rtt {} ms, usually {} ms', '{} of {} queries failed', 'a query took {} ms', 'connections that the client gave up: {}'] AS texts,
    (
        SELECT (min(start_time) - slack, max(start_time + toIntervalNanosecond(duration_ns)) + slack, groupUniqArrayIf(ip, ip != unknown),
            groupUniqArrayIf(simpleJSONExtractString(origin, 'pod_uid'), simpleJSONExtractString(origin, 'pod_uid') != ''), groupUniqArray(peer_ip))
        FROM metaflow.spans_local
        WHERE trace_id = {trace_id:String}
    ) AS read,
    (
        SELECT arrayConcat(groupArray((ips, pods, id)), arrayMap(x -> ([x], [], 0), arrayFilter(x -> NOT has(groupArrayArray(ips), x), read.3)))
        FROM
        (
            SELECT
                multiIf(owner != 0, owner, pod_uid != '', cityHash64(pod_uid), cityHash64(ip)) AS id,
                groupUniqArrayIf(ip, NOT has(unspecified, ip)) AS ips,
                groupUniqArrayIf(pod_uid, pod_uid != '') AS pods
            FROM metaflow.flow_addresses_local
            WHERE hour >= toStartOfHour(read.1) AND hour <= toStartOfHour(read.2 + longest)
            GROUP BY id
            HAVING hasAny(ips, read.3) + hasAny(pods, read.4) > 0
        )
    ) AS owners,
    (
        SELECT (arrayFlatten(owners.1), arrayFlatten(arrayMap((ips, i) -> arrayMap(x -> i, ips), owners.1, arrayEnumerate(owners))), owners.3, arrayConcat(arrayFlatten(owners.1), unspecified), arrayConcat(groupUniqArrayArray([peer_ip, translated_peer_ip]), read.5), groupUniqArray(translated_ip), read.1, read.2)
        FROM metaflow.flows_local
        WHERE time >= read.1 AND time <= read.2 + longest AND start_time <= read.2 AND role = 'client' AND has(arrayFlatten(owners.1), ip)
    ) AS places,
    (
        SELECT groupArray((call, span, best, dns))
        FROM
        (
            SELECT call, any(span) AS span, argMin((rank, worst, servers, owner, reported, far_owner, far_label, own_sums, far_sums, rtt_us, rtt_min_us, far_rtt_us), rank) AS best, anyIf(worst, rank = 90) AS dns
            FROM
            (
                SELECT
                    call, role, any(span) AS span, rank,
                    min((multiIf(rank = 99, 99, cause = 0, 99, cause), -toInt64(counters[amounts[cause]]), counters[wholes[cause]], flow_start, flow_end)) AS worst,
                    uniqExact(callee.3) AS servers,
                    any(owner) AS owner,
                    any(reported) AS reported,
                    any(side.3) AS far_owner,
                    max(side.6) AS far_label,
                    sumForEachIf(counters, is_own) AS own_sums,
                    sumForEachIf(counters, NOT is_own) AS far_sums,
                    maxIf(flow_rtt_us, is_own) AS rtt_us,
                    minIf(flow_rtt_min_us, is_own * (flow_rtt_min_us > 0) > 0) AS rtt_min_us,
                    maxIf(flow_rtt_us, NOT is_own) AS far_rtt_us
                FROM
                (
                    SELECT
                        call, span, role, owner, reported, callee, side, counters, flow_start, flow_end, flow_rtt_us, flow_rtt_min_us,
                        served = (role = 'server') AS is_own,
                        arrayFirstIndex((n, d, most, also, cost, scale) -> (counters[n] > most * counters[d]) * (counters[also] > 0) * (counters[cost] * scale >= limit_us) > 0,
                            [14, 15, 1, 2, 3, 11, 16, 9, 9, 21, 20, 22, 24, 25], [1, 1, 1, 1, 1, 13, 1, 8, 8, 1, 1, 23, 1, 1],
                            [0, 0, 0, 0, 0, {window_percent:Float64} / 100, 0, {retransmit_percent:Float64} / 100, {retransmit_percent:Float64} / 100, 0, 0, 0.99, 0, 0],
                            [14, 15, 1, 2, 3, 27, 16, 10, 9, 20, 20, 22, 24, 25], [14, 15, 1, 2, 3, 11, 16, 17, 9, 21, 26, 22, 24, 25],
                            [1e10, 1e10, 1e10, 1e10, 1e10, 1, 1e10, 1, if(limit_us BETWEEN 1 AND 333332, 0, 1e6), 1, 1, 0, 1, 0]) AS cause,
                        multiIf(
                            fits = 0, 99,
                            dns, if(named, 90, 99),
                            caller.1 = unknown, if(on_port * (role = 'server') > 0, 90, 99),
                            to_peer * on_connection > 0, 1,
                            to_peer * on_port > 0, if(wanted_port * (role = 'client') > 0, 1, 2),
                            to_peer * (role = 'server') > 0, 3,
                            named * on_port > 0, 4,
                            side.3 * (side.3 = other_owner) > 0, if(on_port, 5, if(owner = other_owner, 99, 6)),
                            (peer_ip = unknown) * wanted_port * on_port > 0, 7,
                            99) AS rank
                    FROM
                    (
                        SELECT
                            call, span, role, peer_ip, wanted_port, limit_us, owner, other_owner, reported, served, dns, caller, callee, side, flow_start, flow_end, flow_rtt_us, flow_rtt_min_us,
                            arrayMap((x, last, i) -> greatest(x, (i = 15) * swallowed) * (last <= (flow_end <= late)), arrayResize(flow_counters, 27),
                                [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], range(1, 28)) AS counters,
                            arrayMax(q -> q.3 * (q.1 <= late) * (q.2 >= early), queue_full) AS swallowed,
                            (side.2 > 0) * multiIf(pod_uid = '', 1, side.5 = '', 1, pod_uid = side.5) * multiIf(cluster = '', 1, flow_cluster = '', 1, cluster = flow_cluster) AS fits,
                            has(side.4, peer_ip) AS to_peer,
                            wanted_client_port * (wanted_client_port = caller.2) > 0 AS on_connection,
                            multiIf(wanted_port = 0, 1, callee.2 = 0, 1, has([caller.7, callee.2], wanted_port)) AS on_port,
                            multiIf(host = '', 0, arrayExists(x -> (x = host) + startsWith(concat(x, '.'), concat(full_host, '.')) > 0, known_names), 1,
                                callee.6 = '', 0, startsWith(concat(host, '.'), concat(callee.6, '.'))) AS named
                        FROM
                        (
                            SELECT
                                (trace_id, span_id) AS call, span, pod_uid, cluster, peer_ip, role, host, full_host, wanted_port, wanted_client_port, limit_us,
                                start_time - slack AS early, end_time + slack AS late,
                                arrayFirstIndex(o -> has(o.1, ip) + has(o.2, pod_uid) > 0, owners) AS owner,
                                arrayFirstIndex(o -> has(o.1, other_ip) + has(o.2, other_pod_uid) > 0, owners) AS other_owner,
                                arrayExists(o -> o.3 * (has(o.1, ip) + has(o.2, pod_uid)) > 0, owners) AS reported
                            FROM metaflow.call_ends
                            WHERE trace_id = {trace_id:String}
                        ) AS c
                        LEFT JOIN
                        (
                            SELECT flow_start, flow_end, served, dns, flow_cluster, flow_rtt_us, flow_rtt_min_us,
                                if((callee.3 != unknown) * (counters[1] + counters[9] * (counters[10] = 0)) > 0,
                                    groupArrayIf((flow_start, flow_end, counters[15]), counters[15] > 0) OVER (PARTITION BY if(server_owner > 0, unknown, callee.3), server_owner, callee.2), []) AS queue_full,
                                counters AS flow_counters, caller, callee, known_names, side, side.1 AS end_role, side.2 AS end_owner
                            FROM
                            (
                                SELECT
                                    time AS flow_end, start_time AS flow_start, served, dns, cluster AS flow_cluster, rtt_us AS flow_rtt_us, rtt_min_us AS flow_rtt_min_us, counters,
                                    argMin(client, served) OVER w AS caller,
                                    argMax(server, served) OVER w AS callee,
                                    argMin(arrayMin(arrayFilter(i -> i > 0, [if(served, 0, transform(owner_id, places.3, arrayEnumerate(places.3), 0)), transform(client.3, places.1, places.2, 0)])), served) OVER w AS client_owner,
                                    argMax(arrayMin(arrayFilter(i -> i > 0, [if(served, transform(owner_id, places.3, arrayEnumerate(places.3), 0), 0), transform(server.3, places.1, places.2, 0)])), served) OVER w AS server_owner,
                                    groupUniqArrayArray(names) OVER w AS known_names
                                FROM metaflow.flow_ends
                                WHERE time >= places.7 AND time <= places.8 + longest AND start_time <= places.8
                                    AND (has(places.4, ip) OR has(places.5, ip) AND has(arrayConcat(places.4, places.6), peer_ip))
                                WINDOW w AS (PARTITION BY client.1, client.2, server.1, server.2, (client.2 = 0) * owner_id, if(dns, names, []))
                            )
                            ARRAY JOIN
                                [('client', client_owner, server_owner, [caller.6, callee.1, callee.3], caller.4, callee.5),
                                 ('server', server_owner, client_owner, [caller.1, caller.3, caller.1], callee.4, caller.5)] AS side
                        ) AS f ON (end_owner, end_role) = (owner, role) AND flow_start <= late AND flow_end >= early
                    )
                )
                GROUP BY call, role, rank
            )
            GROUP BY call, role
        )
    ) AS spans
SELECT
    call.2 AS span_id,
    s.1 AS parent_span_id,
    s.2 AS service_name,
    s.3 AS name,
    s.4 AS kind,
    s.5 AS start_time,
    s.6 AS duration_ns,
    s.7 AS status_code,
    s.8 AS ip,
    if(s.10 = unknown, s.17, s.10) AS peer_ip,
    s.11 AS peer_port,
    s.15 AS peer_span_id,
    s.16 AS peer_service_name,
    s.18 AS gap_ns,
    matched,
    multiIf(
        matched != '', '',
        s.12 = '', 'the span is no call over a network',
        bad.1 = 12, 'the name was not resolved',
        match(s.14, '^(unix:|/)'), 'a UNIX socket: it is no network',
        match(concat(s.14, ' ', IPv6NumToString(s.10)), '^localhost |^127[.]| ::ffff:127[.]| ::1$'), 'loopback: the connection does not leave the host or pod',
        (s.8 = unknown) * (s.9 = '') > 0, 'no address: the resource says neither pod nor IP',
        m.1 = 7, 'several peers are possible: the span names none of them',
        (s.10 = unknown) * (s.14 = '') * (s.17 = unknown) > 0, 'no peer address: neither the span nor the trace says it',
        NOT m.5, 'no flow data of that address: no agent on that node',
        'no flow in that time') AS unmatched,
    verdict,
    own[4] AS flows,
    own[5] AS connections,
    own[1] AS connect_failures,
    own[2] AS resets,
    own[3] AS timeouts,
    own[6] AS bytes_sent,
    own[7] AS bytes_received,
    own[8] AS segments_sent,
    own[9] AS retransmits,
    own[10] AS retransmitted_bytes,
    notEmpty(own) * m.10 AS rtt_us,
    notEmpty(own) * m.11 AS rtt_min_us,
    own[11] AS receive_window_limited_us,
    own[12] AS send_buffer_limited_us,
    own[13] AS busy_us,
    peer[2] AS peer_resets,
    peer[8] AS peer_segments_sent,
    peer[9] AS peer_retransmits,
    notEmpty(peer) * if(notEmpty(far), m.12, b.10) AS peer_rtt_us,
    peer[11] AS peer_receive_window_limited_us,
    peer[13] AS peer_busy_us,
    if(there, b.8, hop_why) AS why,
    multiIf(verdict = '', '', if(there, b.6.5 <= b.6.4 + toIntervalSecond(20), bad.5 <= bad.4 + toIntervalSecond(20)), 'sample', 'interval') AS evidence,
    ['client end', 'server end', 'both ends'][bitOr(ends_seen, same * b.11)] AS seen,
    multiIf(matched = '', [], b.7 = '', [], same, [], s.12 = 'client',
        [(s.2, m.7, word, hop_why), (b.5, s.16, b.7, b.8)],
        [(s.16, b.5, b.7, b.8), (m.7, s.2, word, hop_why)]) AS hops,
    call.1 AS trace_id
FROM
(
    SELECT call, s, m, matched, own, far, bad, word, hop_why, ends_seen, b, same, there, if(there, b.7, word) AS verdict, if(empty(far), b.9, far) AS peer
    FROM
    (
        SELECT call, s, m, matched, own, far, bad, word, hop_why, ends_seen, b, same,
            multiIf(b.6.1 % 99 = 0, 0, bad.1 = 0, 1, b.6.1 < bad.1) + (word = '') * same > 0 AS there
        FROM
        (
            SELECT call, s, m, matched, own, far, bad, word, hop_why, ends_seen, b,
                multiIf(b.7 = '', 0, matched = '', has([0, b.4], m.4), b.3 = m.6) AS same
            FROM
            (
                SELECT call, s, m, matched, own, far, bad, word, hop_why, ends_seen,
                    arrayFirst(y -> (y.1 = s.15) > (y.2 = s.12), groupArray((call.2, s.12, m.4, m.6, m.7, bad, word, hop_why, own, m.10, ends_seen)) OVER (PARTITION BY call.1, s.13)) AS b
                FROM
                (
                    SELECT
                        call, s, m, matched, own, far, bad,
                        multiIf(bad.1 % 99 > 0, words[bad.1], matched != '', 'network clean', '') AS word,
                        if(bad.1 % 99 = 0, '', concat(
                            replaceOne(replaceOne(texts[bad.1], '{}', toString(round(-bad.2 / units[bad.1], 2))), '{}', toString(round(bad.3 / units[bad.1], 2))),
                            ' between ', formatDateTime(bad.4, '%H:%i:%S'), ' and ', formatDateTime(bad.5, '%H:%i:%S'))) AS hop_why,
                        if(s.12 = 'client', notEmpty(own) + 2 * notEmpty(far), 2 * notEmpty(own) + notEmpty(far)) AS ends_seen
                    FROM
                    (
                        SELECT
                            call, s, m, matched,
                            if(matched = '', [], m.8) AS own,
                            if(matched = '', [], m.9) AS far,
                            arraySort(arrayFilter(w -> w.1 > 0, [if(matched = '', dns, m.2), dns]))[1] AS bad
                        FROM
                        (
                            SELECT x.1 AS call, x.2 AS s, x.3 AS m, x.4 AS dns,
                                if((m.1 = 7) * m.3 > 1, '', ['ip and port', 'ip', 'ip', 'name', 'trace edge', 'trace edge', 'port'][m.1]) AS matched
                            FROM (SELECT arrayJoin(spans) AS x)
                        )
                    )
                )
            )
        )
    )
)
ORDER BY start_time, span_id;

CREATE OR REPLACE VIEW metaflow.traces_network AS
WITH
    toIntervalMillisecond(1000) AS slack,
    toIntervalMinute(11) AS longest,
    toIPv6('::') AS unknown,
    [unknown, toIPv6('0.0.0.0')] AS unspecified,
    ['connect refused', 'accept queue full', 'connect failed', 'reset', 'timed out', 'receiver''s window full', 'receiver does not read', 'retransmission', 'slow handshake',
        'slow queue', 'slow network', 'DNS failed', 'slow DNS', 'network clean'] AS words,
    [14, 15, 1, 2, 3, 11, 16, 9, 9, 21, 18, 22, 24, 25] AS amounts,
    [1, 1, 1, 1, 1, 13, 1, 8, 8, 18, 19, 23, 23, 1] AS wholes,
    [1, 1, 1, 1, 1, 1000, 1, 1, 1, 1000, 1000, 1, 1000, 1] AS units,
    ['connects refused, as nothing listens there: {}', 'looks at a full accept queue: {}', 'connects without an answer: {}', 'connections reset: {}', 'connections timed out: {}',
        'waited {} of {} ms for the receiver to read', '{} bytes received and not read', '{} of {} segments sent again', 'segments of the handshake sent again: {}',
        'rtt {} ms longer by a queue of its own bytes, {} in all', 'rtt {} ms, usually {} ms', '{} of {} queries failed', 'a query took {} ms', 'connections that the client gave up: {}'] AS texts,
    (
        SELECT (min(start_time) - slack, max(start_time + toIntervalNanosecond(duration_ns)) + slack, groupUniqArrayIf(ip, ip != unknown),
            groupUniqArrayIf(simpleJSONExtractString(origin, 'pod_uid'), simpleJSONExtractString(origin, 'pod_uid') != ''), groupUniqArray(peer_ip))
        FROM metaflow.spans_local
        WHERE trace_id IN {trace_ids:Array(String)}
    ) AS read,
    (
        SELECT arrayConcat(groupArray((ips, pods, id)), arrayMap(x -> ([x], [], 0), arrayFilter(x -> NOT has(groupArrayArray(ips), x), read.3)))
        FROM
        (
            SELECT
                multiIf(owner != 0, owner, pod_uid != '', cityHash64(pod_uid), cityHash64(ip)) AS id,
                groupUniqArrayIf(ip, NOT has(unspecified, ip)) AS ips,
                groupUniqArrayIf(pod_uid, pod_uid != '') AS pods
            FROM metaflow.flow_addresses_local
            WHERE hour >= toStartOfHour(read.1) AND hour <= toStartOfHour(read.2 + longest)
            GROUP BY id
            HAVING hasAny(ips, read.3) + hasAny(pods, read.4) > 0
        )
    ) AS owners,
    (
        SELECT (arrayFlatten(owners.1), arrayFlatten(arrayMap((ips, i) -> arrayMap(x -> i, ips), owners.1, arrayEnumerate(owners))), owners.3, arrayConcat(arrayFlatten(owners.1), unspecified), arrayConcat(groupUniqArrayArray([peer_ip, translated_peer_ip]), read.5), groupUniqArray(translated_ip), read.1, read.2)
        FROM metaflow.flows_local
        WHERE time >= read.1 AND time <= read.2 + longest AND start_time <= read.2 AND role = 'client' AND has(arrayFlatten(owners.1), ip)
    ) AS places,
    (
        SELECT groupArray((call, span, best, dns))
        FROM
        (
            SELECT call, any(span) AS span, argMin((rank, worst, servers, owner, reported, far_owner, far_label, own_sums, far_sums, rtt_us, rtt_min_us, far_rtt_us), rank) AS best, anyIf(worst, rank = 90) AS dns
            FROM
            (
                SELECT
                    call, role, any(span) AS span, rank,
                    min((multiIf(rank = 99, 99, cause = 0, 99, cause), -toInt64(counters[amounts[cause]]), counters[wholes[cause]], flow_start, flow_end)) AS worst,
                    uniqExact(callee.3) AS servers,
                    any(owner) AS owner,
                    any(reported) AS reported,
                    any(side.3) AS far_owner,
                    max(side.6) AS far_label,
                    sumForEachIf(counters, is_own) AS own_sums,
                    sumForEachIf(counters, NOT is_own) AS far_sums,
                    maxIf(flow_rtt_us, is_own) AS rtt_us,
                    minIf(flow_rtt_min_us, is_own * (flow_rtt_min_us > 0) > 0) AS rtt_min_us,
                    maxIf(flow_rtt_us, NOT is_own) AS far_rtt_us
                FROM
                (
                    SELECT
                        call, span, role, owner, reported, callee, side, counters, flow_start, flow_end, flow_rtt_us, flow_rtt_min_us,
                        served = (role = 'server') AS is_own,
                        arrayFirstIndex((n, d, most, also, cost, scale) -> (counters[n] > most * counters[d]) * (counters[also] > 0) * (counters[cost] * scale >= limit_us) > 0,
                            [14, 15, 1, 2, 3, 11, 16, 9, 9, 21, 20, 22, 24, 25], [1, 1, 1, 1, 1, 13, 1, 8, 8, 1, 1, 23, 1, 1],
                            [0, 0, 0, 0, 0, 20 / 100, 0, 1 / 100, 1 / 100, 0, 0, 0.99, 0, 0],
                            [14, 15, 1, 2, 3, 27, 16, 10, 9, 20, 20, 22, 24, 25], [14, 15, 1, 2, 3, 11, 16, 17, 9, 21, 26, 22, 24, 25],
                            [1e10, 1e10, 1e10, 1e10, 1e10, 1, 1e10, 1, if(limit_us BETWEEN 1 AND 333332, 0, 1e6), 1, 1, 0, 1, 0]) AS cause,
                        multiIf(
                            fits = 0, 99,
                            dns, if(named, 90, 99),
                            caller.1 = unknown, if(on_port * (role = 'server') > 0, 90, 99),
                            to_peer * on_connection > 0, 1,
                            to_peer * on_port > 0, if(wanted_port * (role = 'client') > 0, 1, 2),
                            to_peer * (role = 'server') > 0, 3,
                            named * on_port > 0, 4,
                            side.3 * (side.3 = other_owner) > 0, if(on_port, 5, if(owner = other_owner, 99, 6)),
                            (peer_ip = unknown) * wanted_port * on_port > 0, 7,
                            99) AS rank
                    FROM
                    (
                        SELECT
                            call, span, role, peer_ip, wanted_port, limit_us, owner, other_owner, reported, served, dns, caller, callee, side, flow_start, flow_end, flow_rtt_us, flow_rtt_min_us,
                            arrayMap((x, last, i) -> greatest(x, (i = 15) * swallowed) * (last <= (flow_end <= late)), arrayResize(flow_counters, 27),
                                [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], range(1, 28)) AS counters,
                            arrayMax(q -> q.3 * (q.1 <= late) * (q.2 >= early), queue_full) AS swallowed,
                            (side.2 > 0) * multiIf(pod_uid = '', 1, side.5 = '', 1, pod_uid = side.5) * multiIf(cluster = '', 1, flow_cluster = '', 1, cluster = flow_cluster) AS fits,
                            has(side.4, peer_ip) AS to_peer,
                            wanted_client_port * (wanted_client_port = caller.2) > 0 AS on_connection,
                            multiIf(wanted_port = 0, 1, callee.2 = 0, 1, has([caller.7, callee.2], wanted_port)) AS on_port,
                            multiIf(host = '', 0, arrayExists(x -> (x = host) + startsWith(concat(x, '.'), concat(full_host, '.')) > 0, known_names), 1,
                                callee.6 = '', 0, startsWith(concat(host, '.'), concat(callee.6, '.'))) AS named
                        FROM
                        (
                            SELECT
                                (trace_id, span_id) AS call, span, pod_uid, cluster, peer_ip, role, host, full_host, wanted_port, wanted_client_port, limit_us,
                                start_time - slack AS early, end_time + slack AS late,
                                arrayFirstIndex(o -> has(o.1, ip) + has(o.2, pod_uid) > 0, owners) AS owner,
                                arrayFirstIndex(o -> has(o.1, other_ip) + has(o.2, other_pod_uid) > 0, owners) AS other_owner,
                                arrayExists(o -> o.3 * (has(o.1, ip) + has(o.2, pod_uid)) > 0, owners) AS reported
                            FROM metaflow.call_ends
                            WHERE trace_id IN {trace_ids:Array(String)}
                        ) AS c
                        LEFT JOIN
                        (
                            SELECT flow_start, flow_end, served, dns, flow_cluster, flow_rtt_us, flow_rtt_min_us,
                                if((callee.3 != unknown) * (counters[1] + counters[9] * (counters[10] = 0)) > 0,
                                    groupArrayIf((flow_start, flow_end, counters[15]), counters[15] > 0) OVER (PARTITION BY if(server_owner > 0, unknown, callee.3), server_owner, callee.2), []) AS queue_full,
                                counters AS flow_counters, caller, callee, known_names, side, side.1 AS end_role, side.2 AS end_owner
                            FROM
                            (
                                SELECT
                                    time AS flow_end, start_time AS flow_start, served, dns, cluster AS flow_cluster, rtt_us AS flow_rtt_us, rtt_min_us AS flow_rtt_min_us, counters,
                                    argMin(client, served) OVER w AS caller,
                                    argMax(server, served) OVER w AS callee,
                                    argMin(arrayMin(arrayFilter(i -> i > 0, [if(served, 0, transform(owner_id, places.3, arrayEnumerate(places.3), 0)), transform(client.3, places.1, places.2, 0)])), served) OVER w AS client_owner,
                                    argMax(arrayMin(arrayFilter(i -> i > 0, [if(served, transform(owner_id, places.3, arrayEnumerate(places.3), 0), 0), transform(server.3, places.1, places.2, 0)])), served) OVER w AS server_owner,
                                    groupUniqArrayArray(names) OVER w AS known_names
                                FROM metaflow.flow_ends
                                WHERE time >= places.7 AND time <= places.8 + longest AND start_time <= places.8
                                    AND (has(places.4, ip) OR has(places.5, ip) AND has(arrayConcat(places.4, places.6), peer_ip))
                                WINDOW w AS (PARTITION BY client.1, client.2, server.1, server.2, (client.2 = 0) * owner_id, if(dns, names, []))
                            )
                            ARRAY JOIN
                                [('client', client_owner, server_owner, [caller.6, callee.1, callee.3], caller.4, callee.5),
                                 ('server', server_owner, client_owner, [caller.1, caller.3, caller.1], callee.4, caller.5)] AS side
                        ) AS f ON (end_owner, end_role) = (owner, role) AND flow_start <= late AND flow_end >= early
                    )
                )
                GROUP BY call, role, rank
            )
            GROUP BY call, role
        )
    ) AS spans
SELECT
    call.2 AS span_id,
    s.1 AS parent_span_id,
    s.2 AS service_name,
    s.3 AS name,
    s.4 AS kind,
    s.5 AS start_time,
    s.6 AS duration_ns,
    s.7 AS status_code,
    s.8 AS ip,
    if(s.10 = unknown, s.17, s.10) AS peer_ip,
    s.11 AS peer_port,
    s.15 AS peer_span_id,
    s.16 AS peer_service_name,
    s.18 AS gap_ns,
    matched,
    multiIf(
        matched != '', '',
        s.12 = '', 'the span is no call over a network',
        bad.1 = 12, 'the name was not resolved',
        match(s.14, '^(unix:|/)'), 'a UNIX socket: it is no network',
        match(concat(s.14, ' ', IPv6NumToString(s.10)), '^localhost |^127[.]| ::ffff:127[.]| ::1$'), 'loopback: the connection does not leave the host or pod',
        (s.8 = unknown) * (s.9 = '') > 0, 'no address: the resource says neither pod nor IP',
        m.1 = 7, 'several peers are possible: the span names none of them',
        (s.10 = unknown) * (s.14 = '') * (s.17 = unknown) > 0, 'no peer address: neither the span nor the trace says it',
        NOT m.5, 'no flow data of that address: no agent on that node',
        'no flow in that time') AS unmatched,
    verdict,
    own[4] AS flows,
    own[5] AS connections,
    own[1] AS connect_failures,
    own[2] AS resets,
    own[3] AS timeouts,
    own[6] AS bytes_sent,
    own[7] AS bytes_received,
    own[8] AS segments_sent,
    own[9] AS retransmits,
    own[10] AS retransmitted_bytes,
    notEmpty(own) * m.10 AS rtt_us,
    notEmpty(own) * m.11 AS rtt_min_us,
    own[11] AS receive_window_limited_us,
    own[12] AS send_buffer_limited_us,
    own[13] AS busy_us,
    peer[2] AS peer_resets,
    peer[8] AS peer_segments_sent,
    peer[9] AS peer_retransmits,
    notEmpty(peer) * if(notEmpty(far), m.12, b.10) AS peer_rtt_us,
    peer[11] AS peer_receive_window_limited_us,
    peer[13] AS peer_busy_us,
    if(there, b.8, hop_why) AS why,
    multiIf(verdict = '', '', if(there, b.6.5 <= b.6.4 + toIntervalSecond(20), bad.5 <= bad.4 + toIntervalSecond(20)), 'sample', 'interval') AS evidence,
    ['client end', 'server end', 'both ends'][bitOr(ends_seen, same * b.11)] AS seen,
    multiIf(matched = '', [], b.7 = '', [], same, [], s.12 = 'client',
        [(s.2, m.7, word, hop_why), (b.5, s.16, b.7, b.8)],
        [(s.16, b.5, b.7, b.8), (m.7, s.2, word, hop_why)]) AS hops,
    call.1 AS trace_id
FROM
(
    SELECT call, s, m, matched, own, far, bad, word, hop_why, ends_seen, b, same, there, if(there, b.7, word) AS verdict, if(empty(far), b.9, far) AS peer
    FROM
    (
        SELECT call, s, m, matched, own, far, bad, word, hop_why, ends_seen, b, same,
            multiIf(b.6.1 % 99 = 0, 0, bad.1 = 0, 1, b.6.1 < bad.1) + (word = '') * same > 0 AS there
        FROM
        (
            SELECT call, s, m, matched, own, far, bad, word, hop_why, ends_seen, b,
                multiIf(b.7 = '', 0, matched = '', has([0, b.4], m.4), b.3 = m.6) AS same
            FROM
            (
                SELECT call, s, m, matched, own, far, bad, word, hop_why, ends_seen,
                    arrayFirst(y -> (y.1 = s.15) > (y.2 = s.12), groupArray((call.2, s.12, m.4, m.6, m.7, bad, word, hop_why, own, m.10, ends_seen)) OVER (PARTITION BY call.1, s.13)) AS b
                FROM
                (
                    SELECT
                        call, s, m, matched, own, far, bad,
                        multiIf(bad.1 % 99 > 0, words[bad.1], matched != '', 'network clean', '') AS word,
                        if(bad.1 % 99 = 0, '', concat(
                            replaceOne(replaceOne(texts[bad.1], '{}', toString(round(-bad.2 / units[bad.1], 2))), '{}', toString(round(bad.3 / units[bad.1], 2))),
                            ' between ', formatDateTime(bad.4, '%H:%i:%S'), ' and ', formatDateTime(bad.5, '%H:%i:%S'))) AS hop_why,
                        if(s.12 = 'client', notEmpty(own) + 2 * notEmpty(far), 2 * notEmpty(own) + notEmpty(far)) AS ends_seen
                    FROM
                    (
                        SELECT
                            call, s, m, matched,
                            if(matched = '', [], m.8) AS own,
                            if(matched = '', [], m.9) AS far,
                            arraySort(arrayFilter(w -> w.1 > 0, [if(matched = '', dns, m.2), dns]))[1] AS bad
                        FROM
                        (
                            SELECT x.1 AS call, x.2 AS s, x.3 AS m, x.4 AS dns,
                                if((m.1 = 7) * m.3 > 1, '', ['ip and port', 'ip', 'ip', 'name', 'trace edge', 'trace edge', 'port'][m.1]) AS matched
                            FROM (SELECT arrayJoin(spans) AS x)
                        )
                    )
                )
            )
        )
    )
)
ORDER BY start_time, span_id;

CREATE OR REPLACE VIEW metaflow.edges
(
    minute DateTime('UTC'),
    client_service String,
    server_service String,
    client_address String,
    server_address String,
    calls Array(UInt64),
    served Array(UInt64),
    cl Array(UInt64),
    sv Array(UInt64),
    most Array(UInt64),
    ms Array(Float64),
    server_ms Array(Float64),
    rtt_min_us UInt32,
    accept_queue_full UInt64,
    since DateTime64(9, 'UTC'),
    until DateTime64(9, 'UTC'),
    places Array(Tuple(String, String, String, String, UInt8)),
    telemetry UInt8,
    names Array(String),
    dns Array(Tuple(String, UInt64, UInt64, UInt64))
)
AS
WITH
    toIPv6('::') AS unknown,
    addresses AS (
        SELECT hour, ip, owner, seen, min(ip) OVER of_owner AS main, groupUniqArrayArray(names) OVER of_owner AS services,
            if(max(pod) OVER of_owner * length(services) = 1, services[1], '') AS only
        FROM
        (
            SELECT hour, ip, groupUniqArrayIf(service, service != '') AS names, max(told) > 0 AS seen, max(told) = 2 AS pod,
                if(uniqExactIf(owner, owner NOT IN (0, cityHash64('', toUInt64(0)))) = 1, max(owner), cityHash64(ip)) AS owner
            FROM
            (
                SELECT hour, ip, toString(service_name) AS service, toUInt64(0) AS owner, 0 AS told FROM metaflow.service_addresses_local
                UNION ALL
                SELECT hour, ip, '', owner, if(pod_uid = '', 1, 2) FROM metaflow.flow_addresses_local
            )
            GROUP BY hour, ip
        )
        WINDOW of_owner AS (PARTITION BY hour, owner)
    ),
    callers AS (
        SELECT toStartOfMinute(start_time) AS minute, reinterpretAsUInt64(unhex(toString(span_id))) AS call, service_name, ip, peer_ip, peer_port, ''::LowCardinality(String) AS name,
            duration_ns, status_code = 'error' AS failed, failed AND NOT (match(response_code, '^(4..|50[015-9]|5[1-9].)$') OR response_code IN ('3', '5', '6', '7', '8', '9', '10', '11', '12', '15', '16', 'INVALID_ARGUMENT', 'NOT_FOUND', 'ALREADY_EXISTS', 'PERMISSION_DENIED', 'RESOURCE_EXHAUSTED', 'FAILED_PRECONDITION', 'ABORTED', 'OUT_OF_RANGE', 'UNIMPLEMENTED', 'DATA_LOSS', 'UNAUTHENTICATED')) AS unanswered
        FROM metaflow.spans_local
        WHERE kind IN ('client', 'producer', 'consumer') AND peer_ip != toIPv6('::')
        UNION ALL
        SELECT toStartOfMinute(start_time), reinterpretAsUInt64(unhex(toString(span_id))), service_name, ip, peer_ip, peer_port,
            trimRight(lower(arrayFirst(x -> x != '', [attributes['server.address'], attributes['net.peer.name'], domain(attributes['url.full']), domain(attributes['http.url']), attributes['peer.service']])), '.')::LowCardinality(String),
            duration_ns, status_code = 'error' AS failed, failed AND NOT (match(response_code, '^(4..|50[015-9]|5[1-9].)$') OR response_code IN ('3', '5', '6', '7', '8', '9', '10', '11', '12', '15', '16', 'INVALID_ARGUMENT', 'NOT_FOUND', 'ALREADY_EXISTS', 'PERMISSION_DENIED', 'RESOURCE_EXHAUSTED', 'FAILED_PRECONDITION', 'ABORTED', 'OUT_OF_RANGE', 'UNIMPLEMENTED', 'DATA_LOSS', 'UNAUTHENTICATED')) AS unanswered
        FROM metaflow.spans_local
        WHERE kind IN ('client', 'producer', 'consumer') AND peer_ip = toIPv6('::')
    ),
    callees AS (
        SELECT toStartOfMinute(start_time) AS minute, reinterpretAsUInt64(unhex(if(parent_span_id = '', toString(span_id), parent_span_id))) AS call, service_name, ip, port, peer_ip,
            duration_ns, status_code = 'error' AS failed
        FROM metaflow.spans_local
        WHERE kind = 'server'
    ),
    sources AS (
        SELECT minute, 'client' AS source, client_ip, server_ip, server_port, caller, callee, name,
            [count(), countIf(failed), countIf(callee != ''), countIf(harmed), countIf(broken), countIf(unanswered)] AS calls, quantilesTDigestState(0.5, 0.9, 0.99)(toFloat32(duration_ns)) AS durations,
            emptyArrayUInt64() AS cl, emptyArrayUInt64() AS sv, emptyArrayUInt64() AS most, toUInt32(0) AS rtt_min_us,
            ''::LowCardinality(String) AS client_workload, ''::LowCardinality(String) AS client_process, ''::LowCardinality(String) AS server_workload, ''::LowCardinality(String) AS server_process, toDateTime64(0, 9, 'UTC') AS since, toDateTime64(0, 9, 'UTC') AS until, ('', '', '', '', 0) AS places
        FROM
        (
            SELECT minute, caller, callee, name, duration_ns, failed, unanswered, if(met, toIPv6('::'), ip) AS client_ip, if(met, toIPv6('::'), peer_ip) AS server_ip, if(met, 0, peer_port) AS server_port,
                failed AND NOT callee_failed AS broken,
                broken OR callee != '' AND gap_ns > 10 * 1000000 AND 100 * gap_ns > 20 * duration_ns AS harmed
            FROM
            (
                SELECT ca.minute AS minute, ca.service_name AS caller, ce.service_name AS callee, ca.name AS name, ca.duration_ns AS duration_ns, ca.failed AS failed, ca.unanswered AS unanswered,
                    ca.ip AS ip, ca.peer_ip AS peer_ip, ca.peer_port AS peer_port, ca.duration_ns - ce.duration_ns AS gap_ns, ce.failed AS callee_failed,
                    ce.service_name != '' AND (ca.peer_ip = ce.ip OR ca.peer_ip = toIPv6('::')) AS met
                FROM callers AS ca LEFT ANY JOIN callees AS ce ON ca.minute = ce.minute AND ca.call = ce.call
            )
        )
        GROUP BY minute, client_ip, server_ip, server_port, caller, callee, name
        UNION ALL
        SELECT minute, 'server', client_ip, unknown, 0, caller, callee, ''::LowCardinality(String),
            [count(), countIf(failed)], quantilesTDigestState(0.5, 0.9, 0.99)(toFloat32(duration_ns)),
            emptyArrayUInt64(), emptyArrayUInt64(), emptyArrayUInt64(), 0, ''::LowCardinality(String), ''::LowCardinality(String), ''::LowCardinality(String), ''::LowCardinality(String), toDateTime64(0, 9, 'UTC'), toDateTime64(0, 9, 'UTC'), ('', '', '', '', 0)
        FROM
        (
            SELECT ce.minute AS minute, ca.service_name AS caller, ce.service_name AS callee, if(ca.service_name != '', toIPv6('::'), ce.peer_ip) AS client_ip,
                ce.duration_ns AS duration_ns, ce.failed AS failed
            FROM callees AS ce LEFT ANY JOIN callers AS ca ON ca.minute = ce.minute AND ca.call = ce.call
        )
        GROUP BY minute, client_ip, caller, callee
        UNION ALL
        SELECT minute, 'callee', unknown, ip, port, ''::LowCardinality(String), service_name, ''::LowCardinality(String),
            emptyArrayUInt64(), arrayReduce('quantilesTDigestState(0.5, 0.9, 0.99)', emptyArrayFloat32()),
            emptyArrayUInt64(), emptyArrayUInt64(), emptyArrayUInt64(), 0, ''::LowCardinality(String), ''::LowCardinality(String), ''::LowCardinality(String), ''::LowCardinality(String), toDateTime64(0, 9, 'UTC'), toDateTime64(0, 9, 'UTC'), ('', '', '', '', 0)
        FROM callees
        GROUP BY minute, ip, port, service_name
        UNION ALL
        SELECT minute, 'caller', ip, peer_ip, peer_port, service_name, ''::LowCardinality(String), ''::LowCardinality(String),
            emptyArrayUInt64(), arrayReduce('quantilesTDigestState(0.5, 0.9, 0.99)', emptyArrayFloat32()),
            emptyArrayUInt64(), emptyArrayUInt64(), emptyArrayUInt64(), 0, ''::LowCardinality(String), ''::LowCardinality(String), ''::LowCardinality(String), ''::LowCardinality(String), toDateTime64(0, 9, 'UTC'), toDateTime64(0, 9, 'UTC'), ('', '', '', '', 0)
        FROM (SELECT toStartOfMinute(start_time) AS minute, ip, peer_ip, peer_port, service_name FROM metaflow.spans_local
            WHERE kind IN ('client', 'producer', 'consumer') AND peer_ip != toIPv6('::'))
        GROUP BY minute, ip, peer_ip, peer_port, service_name
        UNION ALL
        SELECT minute, 'flows', client_ip, server_ip, server_port, ''::LowCardinality(String), ''::LowCardinality(String), anyIf(peer_name, NOT served AND peer_name != ''),
            emptyArrayUInt64(), arrayReduce('quantilesTDigestState(0.5, 0.9, 0.99)', emptyArrayFloat32()),
            sumForEachIf(counters, NOT served), sumForEachIf(counters, served), [max(unread_bytes), max(greatest(rtt_max_us, rtt_us)), max(queue_us)], minIf(rtt_min_us, rtt_min_us > 0),
            if(anyIf(own_workload, NOT served AND own_workload != '') != '', anyIf(own_workload, NOT served AND own_workload != ''), anyIf(peer, served AND peer != '')), anyIf(process, NOT served AND process != ''), if(anyIf(own_workload, served AND own_workload != '') != '', anyIf(own_workload, served AND own_workload != ''), anyIf(peer, NOT served AND peer != '')), anyIf(process, served AND process != ''), minIf(start_time, bad), maxIf(time, bad),
            (toString(anyIf(node, NOT served AND node != '')), toString(anyIf(node, served AND node != '')), toString(anyIf(pod, NOT served AND pod != '')), toString(anyIf(pod, served AND pod != '')), max(bad))
        FROM
        (
            SELECT minute, served, process, peer_name, rtt_us, rtt_min_us, rtt_max_us, queue_us, unread_bytes,
                if(workload != '', workload, pod) AS own_workload, multiIf(peer_workload != '', peer_workload, peer_pod != '', peer_pod, peer_service) AS peer,
                multiIf(served, if(translated_peer_ip != toIPv6('::'), translated_peer_ip, peer_ip), ip) AS client_ip,
                multiIf(served, ip, translated_peer_ip != toIPv6('::'), translated_peer_ip, peer_ip) AS server_ip,
                multiIf(served, port, translated_peer_port != 0, translated_peer_port, peer_port) AS server_port,
                [1, connections, connect_failures, refused, resets, timeouts, gave_up, bytes_sent, bytes_received, segments_sent, retransmits, retransmitted_bytes, receive_window_limited_us, send_buffer_limited_us, busy_us, accept_queue_full, segments_sent + 1, if(rtt_max_us = 0, rtt_us, certain_rtt_us) * (segments_sent + 1), (rtt_usual_us > 0) * (segments_sent + 1), rtt_usual_us * (segments_sent + 1), slow, lossy * retransmits, lossy * segments_sent]::Array(UInt64) AS counters, start_time, time, node, pod, lossy OR slow OR connect_failures + resets + timeouts > 0 OR unread_bytes > 0 OR 100 * receive_window_limited_us > 20 * busy_us AS bad
            FROM
            (
                SELECT toStartOfMinute(time) AS minute, role = 'server' AS served, ip, port, peer_ip, peer_port, peer_name, translated_peer_ip, translated_peer_port,
                    workload, pod, process, peer_workload, peer_pod, peer_service, connections, connect_failures, refused, resets, timeouts, gave_up, bytes_sent, bytes_received,
                    segments_sent, retransmits, retransmitted_bytes, rtt_us, rtt_min_us, rtt_usual_us, rtt_max_us, queue_us, receive_window_limited_us, send_buffer_limited_us, busy_us,
                    unread_bytes, accept_queue_full, start_time, time, node,
                    retransmits > 0 AND 100 * retransmits > 1 * segments_sent AS lossy,
                    least(rtt_us, rtt_max_us) AS certain_rtt_us,
                    rtt_usual_us > 0 AND certain_rtt_us > 3 * rtt_usual_us AND certain_rtt_us > rtt_usual_us + 10 * 1000 AS slow
                FROM metaflow.flows_local
                WHERE role IN ('client', 'server') AND protocol = 'tcp'
            )
        )
        GROUP BY minute, client_ip, server_ip, server_port
        UNION ALL
        SELECT minute, 'flows', unknown, any(its.ip), port, ''::LowCardinality(String), ''::LowCardinality(String), ''::LowCardinality(String),
            emptyArrayUInt64(), arrayReduce('quantilesTDigestState(0.5, 0.9, 0.99)', emptyArrayFloat32()),
            emptyArrayUInt64(), arrayPushBack(arrayWithConstant(15, toUInt64(0)), sum(accept_queue_full)), emptyArrayUInt64(), 0, ''::LowCardinality(String), ''::LowCardinality(String), ''::LowCardinality(String), any(process), min(start_time), max(time), ('', '', '', '', 0)
        FROM
        (
            SELECT toStartOfMinute(time) AS minute, toStartOfHour(time) AS hour, cityHash64(agent_id, network_namespace) AS owner, port, process, accept_queue_full, start_time, time
            FROM metaflow.flows_local
            WHERE accept_queue_full > 0 AND ip IN (toIPv6('::'), toIPv6('0.0.0.0'))
        ) AS q
        INNER ANY JOIN (SELECT hour, owner, ip FROM metaflow.flow_addresses_local WHERE ip NOT IN (toIPv6('::'), toIPv6('0.0.0.0'))) AS its USING (hour, owner)
        GROUP BY minute, owner, port
        UNION ALL
        SELECT toStartOfMinute(time) AS minute, 'dns', ip, unknown, 53, ''::LowCardinality(String), ''::LowCardinality(String), trimRight(lower(toString(peer_name)), '.')::LowCardinality(String) AS asked,
            [sum(queries), sum(query_failures + queries_unanswered)], arrayReduce('quantilesTDigestState(0.5, 0.9, 0.99)', emptyArrayFloat32()),
            emptyArrayUInt64(), emptyArrayUInt64(), [0, 0, 0, toUInt64(max(query_time_max_us))], 0, ''::LowCardinality(String), ''::LowCardinality(String), ''::LowCardinality(String), ''::LowCardinality(String), min(start_time), max(time), ('', '', '', '', 0)
        FROM metaflow.flows_local
        WHERE protocol = 'dns' AND peer_name != '' AND (query_failures + queries_unanswered > 0 OR query_time_max_us >= 100000)
        GROUP BY minute, ip, asked
    ),
    owned AS (
        SELECT minute, source, name, server_port,
            multiIf(caller != '', caller, source IN ('server', 'flows', 'dns'), a.only, '') AS calling, multiIf(callee != '', callee, source IN ('client', 'flows'), b.only, '') AS target_name,
            multiIf(client_ip = unknown, 0, a.only != '', cityHash64(a.only), a.owner != 0, a.owner, cityHash64(client_ip)) AS client_key,
            multiIf(server_ip = unknown, 0, b.only != '', cityHash64(b.only), b.owner != 0, b.owner, cityHash64(server_ip)) AS target_key,
            if(b.only != '', 0, server_port) AS port,
            any(if(a.owner != 0, a.main, client_ip)) AS client_main, any(if(b.owner != 0, b.main, server_ip)) AS target_main,
            any(a.services) AS client_services, any(b.services) AS target_services, max(b.seen) AS server_seen,
            sumForEach(x.calls) AS calls, quantilesTDigestMergeState(0.5, 0.9, 0.99)(x.durations) AS durations, sumForEach(x.cl) AS cl, sumForEach(x.sv) AS sv,
            maxForEach(x.most) AS most, minIf(x.rtt_min_us, x.rtt_min_us > 0) AS rtt_min_us,
            max(x.client_workload) AS client_workload, max(x.client_process) AS client_process, max(x.server_workload) AS server_workload, max(x.server_process) AS server_process, minIf(x.since, x.since > toDateTime64(0, 9, 'UTC')) AS since, max(x.until) AS until,
            min((x.server_port IN (4317, 4318, 38086, 20035)) + (x.server_process IN ('metaflow-agent', 'metaflow-server', 'otelcol', 'otelcol-contrib', 'otelcol-k8s', 'kubelet')) + (x.client_process IN ('metaflow-agent', 'metaflow-server', 'otelcol', 'otelcol-contrib', 'otelcol-k8s', 'kubelet')) > 0) AS telemetry,
            groupUniqArrayIf(100)(x.places, x.places.1 || x.places.2 || x.places.3 || x.places.4 != '') AS places
        FROM sources AS x
        LEFT JOIN addresses AS a ON a.hour = toStartOfHour(x.minute) AND a.ip = x.client_ip
        LEFT JOIN addresses AS b ON b.hour = toStartOfHour(x.minute) AND b.ip = x.server_ip
        GROUP BY minute, source, name, server_port, calling, target_name, client_key, target_key, port
    ),
    located AS (
        SELECT * EXCEPT (peers, of_name, of_port, at), at.1 AS server_key, at.2 AS called, at.3 AS server_main, at.4 AS server_services
        FROM
        (
            SELECT *, multiIf(length(of_name) = 1, of_name[1], length(of_port) = 1, of_port[1], (target_key, target_name, target_main, target_services)) AS at
            FROM
            (
                SELECT *, arrayDistinct(arrayMap(x -> x.2, arrayFilter(x -> x.1 = name, peers))) AS of_name,
                    arrayDistinct(arrayMap(x -> x.2, arrayFilter(x -> (calls[1] > calls[2]) + (x.1 = '') + startsWith(concat(x.1, '.'), concat(name, '.')) + startsWith(concat(name, '.'), concat(x.1, '.')) > 0, peers))) AS of_port
                FROM
                (
                    SELECT * EXCEPT (all_peers), if(blind, all_peers, []) AS peers
                    FROM
                    (
                        SELECT *, (source = 'client') * (target_key = 0) * (target_name = '') * (name != '') > 0 AS blind,
                            groupUniqArrayIf(16)((name, (target_key, target_name, target_main, target_services)), (source = 'flows') * (client_key != 0) > 0) OVER (PARTITION BY minute, client_key, server_port) AS all_peers
                        FROM owned
                    )
                )
            )
        )
    ),
    told AS (
        SELECT *,
            groupUniqArrayIf(2)(called, (called != '') * (server_key != 0) * ((source = 'callee') + (source = 'client') * ((server_seen = 0) + has(server_services, called))) > 0) OVER of_server AS callees,
            max(server_workload) OVER of_server AS server_workloads, max(server_process) OVER of_server AS server_processes, max(name) OVER of_server AS server_names,
            sumIf(sv[16], client_key = 0) OVER (PARTITION BY minute, server_key, port) AS accept_queue_full,
            groupUniqArrayIf(2)(calling, source = 'caller') OVER (PARTITION BY minute, client_key, server_key, port) AS callers_here,
            groupUniqArrayIf(2)(called, called != '') OVER (PARTITION BY minute, calling, name, server_port) AS namesakes
        FROM located
        WINDOW of_server AS (PARTITION BY minute, server_key, port)
    ),
    judged AS (
        SELECT *,
            max((source = 'flows') * notEmpty(callees)) OVER (PARTITION BY minute, server_key) AS server_told,
            max((source = 'flows') * notEmpty(callers_here)) OVER of_client AS client_told,
            groupUniqArrayIf(client_process, (source = 'flows') * notEmpty(callers_here) * (client_process != '') > 0) OVER of_client AS told_processes,
            max(client_workload) OVER of_client AS client_workloads
        FROM told
        WINDOW of_client AS (PARTITION BY minute, client_key)
    ),
    named AS (
        SELECT *,
            multiIf(
                calling != '', calling,
                length(callers_here) = 1, callers_here[1],
                length(callers_here) > 1, 'several services',
                (client_workloads != '') * (length(client_services) = 1) > 0, client_services[1],
                client_workloads != '', client_workloads,
                (length(client_services) = 1) * ((client_told = 0) + (client_process = '') + has(told_processes, client_process)) > 0, client_services[1],
                (length(client_services) > 1) * ((client_told = 0) + (client_process = '')) > 0, 'several services',
                '') AS client_name,
            multiIf(
                called != '', called,
                length(callees) = 1, callees[1],
                length(callees) > 1, 'several services',
                blind * length(namesakes) = 1, namesakes[1],
                blind * length(namesakes) > 1, 'several services',
                (server_workloads != '') * length(server_services) = 1, server_services[1],
                server_workloads != '', server_workloads,
                (length(server_services) = 1) * ((server_told = 0) + (server_port = 0) + (server_processes = '')) > 0, server_services[1],
                (length(server_services) > 1) * (server_told = 0) > 0, 'several services',
                '') AS server_name
        FROM judged
        WHERE multiIf(source IN ('flows', 'dns'), client_key != 0, source IN ('client', 'server'))
    ),
    ended AS (
        SELECT *, (client_key != 0) * (client_name = '') * ((client_process != '') + (arrayCount(x -> x <= client_main, [toIPv6('::ffff:10.0.0.0'), toIPv6('::ffff:11.0.0.0'), toIPv6('::ffff:100.64.0.0'), toIPv6('::ffff:100.128.0.0'), toIPv6('::ffff:127.0.0.0'), toIPv6('::ffff:128.0.0.0'), toIPv6('::ffff:169.254.0.0'), toIPv6('::ffff:169.255.0.0'), toIPv6('::ffff:172.16.0.0'), toIPv6('::ffff:172.32.0.0'), toIPv6('::ffff:192.168.0.0'), toIPv6('::ffff:192.169.0.0'), toIPv6('fc00::'), toIPv6('fe00::'), toIPv6('fe80::'), toIPv6('fec0::')]) % 2 = 1)) > 0 AS client_alone, (server_key != 0) * (server_name = '') > 0 AS server_alone,
            replaceOne(toString(client_main), '::ffff:', '') AS client_text, replaceOne(toString(server_main), '::ffff:', '') AS server_text
        FROM named
    )
SELECT minute, ends.1 AS client_service, ends.2 AS server_service, ends.3 AS client_address, ends.4 AS server_address,
    sumForEachIf(x.calls, source = 'client') AS calls, sumForEachIf(x.calls, source = 'server') AS served, sumForEach(x.cl) AS cl, sumForEach(x.sv) AS sv, maxForEach(x.most) AS most,
    arrayMap(q -> ifNotFinite(q, 0) / 1e6, quantilesTDigestMergeIf(0.5, 0.9, 0.99)(durations, source = 'client')) AS ms,
    arrayMap(q -> ifNotFinite(q, 0) / 1e6, quantilesTDigestMergeIf(0.5, 0.9, 0.99)(durations, source = 'server')) AS server_ms,
    minIf(x.rtt_min_us, x.rtt_min_us > 0) AS rtt_min_us, max(x.accept_queue_full) AS accept_queue_full, minIf(x.since, x.since > toDateTime64(0, 9, 'UTC')) AS since, max(x.until) AS until, groupUniqArrayArray(100)(x.places) AS places,
    minIf(x.telemetry, source = 'flows') AS telemetry, groupUniqArrayIf(16)(toString(x.name), x.name != '') AS names,
    groupArrayIf(16)((toString(x.name), x.calls[1], x.calls[2], x.most[4]), source = 'dns') AS dns
FROM
(
    SELECT minute, source, name, calls, durations, cl, sv, most, rtt_min_us, accept_queue_full,
        (multiIf(client_name != '', client_name, client_process != '', client_process, client_alone, client_text, client_key != 0, 'internet', ''),
        multiIf(source = 'dns', '', server_name != '', server_name, server_processes != '', server_processes, name != '', name, server_names != '', server_names, server_alone, server_text, ''),
        if(client_alone, client_text, ''), if(server_alone, server_text, '')) AS ends, since, until, places, telemetry
    FROM ended
) AS x
WHERE (ends.1 != '') * ((ends.2 != '') + (source = 'dns')) > 0
GROUP BY minute, ends
COMMENT 'made by metaflow-server, form 1739500949d9f692';

CREATE OR REPLACE VIEW metaflow.service_network
(
    minute DateTime('UTC'),
    client_service LowCardinality(String),
    server_service LowCardinality(String),
    requests UInt64,
    errors UInt64,
    p50_ms Float64,
    p90_ms Float64,
    p99_ms Float64,
    server_requests UInt64,
    server_errors UInt64,
    server_p50_ms Float64,
    server_p90_ms Float64,
    server_p99_ms Float64,
    connections UInt64,
    connect_failures UInt64,
    resets UInt64,
    timeouts UInt64,
    bytes_sent UInt64,
    bytes_received UInt64,
    segments_sent UInt64,
    retransmits UInt64,
    retransmit_percent Float64,
    rtt_us Float64,
    rtt_min_us UInt32,
    receive_window_limited_us UInt64,
    send_buffer_limited_us UInt64,
    busy_us UInt64,
    client_address String,
    server_address String,
    harmed UInt64,
    connects_refused UInt64,
    gave_up UInt64,
    accept_queue_full UInt64,
    unread_bytes UInt64,
    rtt_usual_us Float64,
    rtt_max_us UInt64,
    queue_us UInt64
)
AS
SELECT
    minute, client_service, server_service, calls[1] AS requests, calls[2] AS errors, ms[1] AS p50_ms, ms[2] AS p90_ms, ms[3] AS p99_ms,
    served[1] AS server_requests, served[2] AS server_errors, server_ms[1] AS server_p50_ms, server_ms[2] AS server_p90_ms, server_ms[3] AS server_p99_ms,
    greatest(cl[2], sv[2]) AS connections,
    greatest(cl[3], sv[3]) AS connect_failures,
    greatest(cl[5], sv[5]) AS resets,
    greatest(cl[6], sv[6]) AS timeouts,
    greatest(cl[8], sv[9]) AS bytes_sent,
    greatest(cl[9], sv[8]) AS bytes_received,
    cl[10] + sv[10] AS segments_sent,
    cl[11] + sv[11] AS retransmits,
    round(100 * (cl[11] + sv[11]) / greatest(cl[10] + sv[10], 1), 2) AS retransmit_percent,
    (cl[18] + sv[18]) / greatest(cl[17] + sv[17], 1) AS rtt_us,
    rtt_min_us,
    cl[13] + sv[13] AS receive_window_limited_us,
    cl[14] + sv[14] AS send_buffer_limited_us,
    cl[15] + sv[15] AS busy_us,
    client_address, server_address, calls[4] AS harmed, cl[4] AS connects_refused, cl[7] AS gave_up, accept_queue_full, most[1] AS unread_bytes,
    (cl[20] + sv[20]) / greatest(cl[19] + sv[19], 1) AS rtt_usual_us, most[2] AS rtt_max_us, most[3] AS queue_us
FROM metaflow.edges
WHERE server_service != '';

CREATE OR REPLACE VIEW metaflow.network_trouble AS
WITH
    minutes AS (
        SELECT * EXCEPT (ms, server_ms), ms[1] AS p50_ms, ms[3] AS p99_ms, server_ms[3] AS server_p99_ms,
            greatest(cl[2], sv[2]) AS connections, greatest(cl[3], sv[3]) AS connect_failures,
            greatest(cl[5], sv[5]) AS resets, greatest(cl[6], sv[6]) AS timeouts,
            cl[10] + sv[10] AS segments_sent, cl[11] + sv[11] AS retransmits, cl[12] + sv[12] AS retransmitted_bytes,
            cl[22] + sv[22] AS lossy_retransmits, cl[23] + sv[23] AS lossy_segments,
            cl[13] + sv[13] AS receive_window_limited_us, cl[15] + sv[15] AS busy_us,
            (cl[18] + sv[18]) / greatest(cl[17] + sv[17], 1) AS rtt_us, (cl[20] + sv[20]) / greatest(cl[19] + sv[19], 1) AS rtt_usual_us,
            cl[1] + sv[1] AS rows, cl[21] + sv[21] AS slow_rows
        FROM metaflow.edges
        WHERE minute >= now() - toIntervalMinute({minutes:UInt32})
    ),
    around AS (
        SELECT *,
            sum(calls[1]) OVER edge > 0 AS traced, quantileExactIf(0.5)(p50_ms, p50_ms > 0) OVER edge AS usual_ms,
            sum(calls[1]) OVER near AS requests_near, sum(calls[6]) OVER near AS unanswered_near, sum(calls[5]) OVER near AS broken_near, sum(calls[4]) OVER near AS harmed_near,
            max((calls[1] > calls[3]) * p99_ms) OVER near AS alone_ms, max((calls[1] > 2 * calls[3]) * p50_ms) OVER near AS alone_p50_ms, toUInt64(sum(calls[1] - calls[3]) OVER near) AS alone_near, max(accept_queue_full) OVER near AS queue_full_near,
            groupArrayArray(64)(dns) OVER (PARTITION BY client_service, client_address ORDER BY minute RANGE BETWEEN 60 PRECEDING AND 60 FOLLOWING) AS dns_near
        FROM minutes
        WINDOW edge AS (PARTITION BY client_service, server_service, client_address, server_address),
            near AS (PARTITION BY client_service, server_service, client_address, server_address ORDER BY minute RANGE BETWEEN 120 PRECEDING AND 60 FOLLOWING)
    ),
    harmed AS (
        SELECT *, harmed_near + (alone_ms > greatest(3 * usual_ms, usual_ms + 10)) AS harm, connect_failures - cl[4] AS swallowed,
            arrayFilter(d -> arrayExists(n -> startsWith(concat(d.1, '.'), concat(n, '.')), names), dns_near) AS asked,
            arraySum(d -> d.3, asked) AS failed_queries, arrayMax(d -> d.4, arrayPushBack(asked, ('', 0, 0, 0))) AS query_us,
            arraySum(d -> (d.4 >= 100000) * d.2, asked) AS slow_queries,
            (alone_p50_ms > 0) * (2 * (rtt_us - rtt_usual_us) >= 1000 * alone_p50_ms) AS far_alone,
            (slow_rows > 0) * (slow_rows * if(traced, 3, 2) >= rows) * (rtt_us > 3 * rtt_usual_us) * (rtt_us > rtt_usual_us + 2 * 10 * 1000)
                * if(traced, (harm > 0) + far_alone > 0, 1) * if(2 * most[3] > rtt_us - rtt_usual_us, 2, 1) AS slower,
            (slower > 0) * (harm = 0) * alone_near AS far_near
        FROM around
        WHERE server_service != ''
    ),
    judged AS (
        SELECT *,
            multiIf(
                (cl[4] > 0) * if(traced, broken_near > 0, (cl[4] >= 3) * (10 * cl[4] >= connections)) > 0, 'connect refused',
                (queue_full_near > 0) * ((swallowed > 0) + (accept_queue_full > 0)) * if(traced, harm > 0, 1) > 0, 'accept queue full',
                (swallowed > 0) * if(traced, harm > 0, (swallowed >= 3) * (10 * swallowed >= connections)) > 0, 'connect failed',
                (resets > 0) * if(traced, (unanswered_near > 0) * (4 * if(slower > 0, resets, greatest(resets, unanswered_near)) >= harmed_near), (resets >= 3) * (20 * resets >= connections) * (cl[8] + sv[9] > 0)) > 0, 'reset',
                (timeouts > 0) * if(traced, (harm > 0) * (4 * greatest(timeouts, broken_near) >= harmed_near), 1) > 0, 'timed out',
                (100 * receive_window_limited_us > 20 * busy_us) * (20 * lossy_retransmits <= lossy_segments) * traced * (harm > 0) > 0, 'receiver''s window full',
                slower = 2, 'slow queue',
                (most[1] > 0) * traced * (harm > 0) > 0, 'receiver does not read',
                if(traced, (harm > 0) * ((100 * retransmits > 1 * segments_sent) + (slower = 0) * (lossy_retransmits >= 3)),
                    (100 * retransmits > 1 * segments_sent) * (retransmits >= 3)) > 0,
                    if(retransmitted_bytes > 0, 'retransmission', 'slow handshake'),
                slower = 1, 'slow network',
                (failed_queries > 0) * traced * (broken_near > 0) > 0, 'DNS failed',
                (query_us >= 100000) * traced * (harm > 0) * ((10 * slow_queries >= requests_near) + (query_us >= 1000000)) > 0, 'slow DNS',
                (resets > 0) * traced * (unanswered_near > 0) > 0, 'reset',
                (timeouts > 0) * (harm > 0) > 0, 'timed out',
                '') AS verdict
        FROM harmed
    ),
    explained AS (
        SELECT *, (verdict != '', harmed_near + far_near, connect_failures + resets + timeouts, retransmits) AS weight,
            formatDateTime(if(since > toDateTime64(0, 9, 'UTC'), toDateTime(since, 'UTC'), minute), '%H:%i:%S') AS from_time,
            formatDateTime(if(since > toDateTime64(0, 9, 'UTC'), toDateTime(until, 'UTC'), minute + 60), '%H:%i:%S') AS to_time,
            concat(
                multiIf(
                    verdict = 'connect refused', concat(toString(cl[4]), ' of ', toString(connections + connect_failures), ' connection attempts refused'),
                    verdict = 'accept queue full', concat('looks at a full accept queue: ', toString(queue_full_near)),
                    verdict = 'connect failed', concat(toString(swallowed), ' of ', toString(connections + connect_failures), ' connection attempts unanswered'),
                    verdict = 'reset', concat('connections reset: ', toString(resets)),
                    verdict = 'timed out', concat('connections timed out: ', toString(timeouts)),
                    verdict = 'receiver''s window full', concat('waited ', toString(intDiv(receive_window_limited_us, 1000)), ' of ', toString(intDiv(busy_us, 1000)), ' ms for the receiver to read'),
                    verdict = 'receiver does not read', concat(toString(most[1]), ' bytes received and not read'),
                    verdict IN ('slow network', 'slow queue'), concat('rtt ', toString(round(rtt_us / 1000, 2)), ' ms, usually ', toString(round(rtt_usual_us / 1000, 2)), ' ms'),
                    verdict = 'DNS failed', concat('failed queries of ', asked[1].1, ': ', toString(failed_queries)),
                    verdict = 'slow DNS', concat('a query of ', asked[1].1, ' took ', toString(round(query_us / 1000, 2)), ' ms'),
                    lossy_segments > 0, concat(toString(lossy_retransmits), ' of ', toString(lossy_segments), ' segments sent again'),
                    concat(toString(retransmits), ' of ', toString(segments_sent), ' segments sent again')),
                ' between ', from_time, ' and ', to_time,
                multiIf(traced = 0, '', harmed_near > 0, concat(', requests slow or failed: ', toString(harmed_near)),
                    verdict = 'reset', concat(', requests failed without an answer: ', toString(unanswered_near)),
                    harm = 0, concat(', half of the requests took ', toString(round(alone_p50_ms, 1)), ' ms or more'),
                    concat(', the slowest requests took ', toString(round(alone_ms, 1)), ' ms, usually ', toString(round(usual_ms, 1)), ' ms'))) AS why
        FROM judged
    ),
    edges AS (
        SELECT client_service, server_service, client_address, server_address, max(verdict != '') AS bad, min(telemetry) AS telemetry,
            argMax((verdict, why, minute), weight) AS worst,
            sum(calls[1]) AS requests, sum(calls[2]) AS errors, greatest(sum(calls[4]), max(far_near)) AS harmed, max(p99_ms) AS p99_ms, max(server_p99_ms) AS server_p99_ms,
            sum(connections) AS connections, sum(connect_failures) AS connect_failures, sum(resets) AS resets, sum(timeouts) AS timeouts,
            sum(retransmits) AS retransmits, sum(segments_sent) AS segments_sent, max(rtt_us) AS rtt_us, max(rtt_usual_us) AS rtt_usual_us,
            sum(receive_window_limited_us) AS receive_window_limited_us, sum(busy_us) AS busy_us,
            groupUniqArrayArrayIf(arrayMap(p -> (p.1, p.2, p.3, p.4), arrayFilter(p -> p.5, places)), verdict != '') AS bad_places,
            groupUniqArrayArray(arrayMap(p -> (p.1, p.2, p.3, p.4), places)) AS all_places
        FROM explained
        GROUP BY client_service, server_service, client_address, server_address
        HAVING (telemetry = 0) + (requests > 0) > 0
    ),
    together AS (
        SELECT groupArray((bad, bad_places, (client_service, server_service, client_address, server_address, worst, requests, errors, harmed, p99_ms, server_p99_ms,
                connections, connect_failures, resets, timeouts, retransmits, segments_sent, rtt_us, rtt_usual_us, receive_window_limited_us, busy_us))) AS every,
            arrayFlatten(groupArray(arrayMap(p -> (p, has(bad_places, p)), all_places))) AS hops
        FROM edges
    ),
    suspected AS (
        SELECT every, hops, arrayFilter(n -> n.2 != '', arrayDistinct(arrayFlatten(arrayMap(h -> if(h.2, [('node', h.1.1), ('node', h.1.2), ('pod', h.1.3), ('pod', h.1.4)], []), hops)))) AS suspects
        FROM together
    ),
    blamed AS (
        SELECT every, suspects, arrayMap(n -> arrayFilter(h -> has(if(n.1 = 'node', [h.1.1, h.1.2], [h.1.3, h.1.4]), n.2), hops), suspects) AS their_hops,
            arrayCount(h -> h.2, hops) AS bad_hops, length(hops) AS all_hops
        FROM suspected
    ),
    compared AS (
        SELECT every, bad_hops, all_hops, arrayMap((n, own) -> (n, length(own), arrayCount(h -> h.2, own),
                length(arrayDistinct(arrayFilter(o -> o != n.2, arrayFlatten(arrayMap(h -> if(h.2, if(n.1 = 'node', [h.1.1, h.1.2], [h.1.3, h.1.4]), []), own)))))), suspects, their_hops) AS counts
        FROM blamed
    ),
    culprits AS (
        SELECT arrayJoin(arrayFilter(e -> e.1, every)) AS e,
            arrayMap(x -> x.1, arrayFilter(x -> (x.3 >= 3) * (10 * x.3 >= 7 * x.2) * (all_hops > x.2) * (10 * (bad_hops - x.3) <= 2 * (all_hops - x.2)) * (x.4 >= 2) > 0, counts)) AS guilty
        FROM compared
    ),
    placed AS (
        SELECT e.3 AS v, arrayFirst(n -> arrayAll(p -> has(if(n.1 = 'node', [p.1, p.2], [p.3, p.4]), n.2), e.2) * notEmpty(e.2) > 0, guilty) AS place FROM culprits
    ),
    lines AS (
        SELECT v, place.1 AS scope, if(place.2 != '', (concat(place.1, ' ', place.2), 'all', '', ''), (v.1, v.2, v.3, v.4)) AS ends FROM placed
    ),
    summed AS (
        SELECT ends, count() AS n, argMax((v.5, v.1, v.2), v.8) AS worst, sumForEach([v.6, v.7, v.8, v.11, v.12, v.13, v.14, v.15, v.16, v.19, v.20]) AS sums,
            maxForEach([v.9, v.10, v.17, v.18]) AS most, any(scope) AS scope
        FROM lines
        GROUP BY ends
    )
SELECT ends.1 AS client_service, ends.2 AS server_service, worst.1.1 AS verdict, sums[1] AS requests, sums[2] AS errors, most[1] AS p99_ms, most[2] AS server_p99_ms,
    sums[4] AS connections, sums[5] AS connect_failures, sums[6] AS resets, sums[7] AS timeouts, sums[8] AS retransmits, sums[9] AS segments_sent,
    round(100 * sums[8] / greatest(sums[9], 1), 2) AS retransmit_percent, most[3] AS rtt_us, sums[10] AS receive_window_limited_us, sums[11] AS busy_us,
    ends.3 AS client_address, ends.4 AS server_address, sums[3] AS harmed,
    concat(if(n > 1, concat(toString(n), ' edges, the worst ', worst.2, ' -> ', worst.3, ': '), ''), worst.1.2) AS why,
    worst.1.3 AS worst_minute, most[4] AS rtt_usual_us, scope
FROM summed
ORDER BY harmed DESC, sums[5] + sums[6] + sums[7] DESC, retransmit_percent DESC, client_service, server_service;

CREATE OR REPLACE VIEW metaflow.network_trouble_with AS
WITH
    minutes AS (
        SELECT * EXCEPT (ms, server_ms), ms[1] AS p50_ms, ms[3] AS p99_ms, server_ms[3] AS server_p99_ms,
            greatest(cl[2], sv[2]) AS connections, greatest(cl[3], sv[3]) AS connect_failures,
            greatest(cl[5], sv[5]) AS resets, greatest(cl[6], sv[6]) AS timeouts,
            cl[10] + sv[10] AS segments_sent, cl[11] + sv[11] AS retransmits, cl[12] + sv[12] AS retransmitted_bytes,
            cl[22] + sv[22] AS lossy_retransmits, cl[23] + sv[23] AS lossy_segments,
            cl[13] + sv[13] AS receive_window_limited_us, cl[15] + sv[15] AS busy_us,
            (cl[18] + sv[18]) / greatest(cl[17] + sv[17], 1) AS rtt_us, (cl[20] + sv[20]) / greatest(cl[19] + sv[19], 1) AS rtt_usual_us,
            cl[1] + sv[1] AS rows, cl[21] + sv[21] AS slow_rows
        FROM metaflow.edges
        WHERE minute >= now() - toIntervalMinute({minutes:UInt32})
    ),
    around AS (
        SELECT *,
            sum(calls[1]) OVER edge > 0 AS traced, quantileExactIf(0.5)(p50_ms, p50_ms > 0) OVER edge AS usual_ms,
            sum(calls[1]) OVER near AS requests_near, sum(calls[6]) OVER near AS unanswered_near, sum(calls[5]) OVER near AS broken_near, sum(calls[4]) OVER near AS harmed_near,
            max((calls[1] > calls[3]) * p99_ms) OVER near AS alone_ms, max((calls[1] > 2 * calls[3]) * p50_ms) OVER near AS alone_p50_ms, toUInt64(sum(calls[1] - calls[3]) OVER near) AS alone_near, max(accept_queue_full) OVER near AS queue_full_near,
            groupArrayArray(64)(dns) OVER (PARTITION BY client_service, client_address ORDER BY minute RANGE BETWEEN 60 PRECEDING AND 60 FOLLOWING) AS dns_near
        FROM minutes
        WINDOW edge AS (PARTITION BY client_service, server_service, client_address, server_address),
            near AS (PARTITION BY client_service, server_service, client_address, server_address ORDER BY minute RANGE BETWEEN 120 PRECEDING AND 60 FOLLOWING)
    ),
    harmed AS (
        SELECT *, harmed_near + (alone_ms > greatest(3 * usual_ms, usual_ms + 10)) AS harm, connect_failures - cl[4] AS swallowed,
            arrayFilter(d -> arrayExists(n -> startsWith(concat(d.1, '.'), concat(n, '.')), names), dns_near) AS asked,
            arraySum(d -> d.3, asked) AS failed_queries, arrayMax(d -> d.4, arrayPushBack(asked, ('', 0, 0, 0))) AS query_us,
            arraySum(d -> (d.4 >= 100000) * d.2, asked) AS slow_queries,
            (alone_p50_ms > 0) * (2 * (rtt_us - rtt_usual_us) >= 1000 * alone_p50_ms) AS far_alone,
            (slow_rows > 0) * (slow_rows * if(traced, 3, 2) >= rows) * (rtt_us > 3 * rtt_usual_us) * (rtt_us > rtt_usual_us + 2 * 10 * 1000)
                * if(traced, (harm > 0) + far_alone > 0, 1) * if(2 * most[3] > rtt_us - rtt_usual_us, 2, 1) AS slower,
            (slower > 0) * (harm = 0) * alone_near AS far_near
        FROM around
        WHERE server_service != ''
    ),
    judged AS (
        SELECT *,
            multiIf(
                (cl[4] > 0) * if(traced, broken_near > 0, (cl[4] >= 3) * (10 * cl[4] >= connections)) > 0, 'connect refused',
                (queue_full_near > 0) * ((swallowed > 0) + (accept_queue_full > 0)) * if(traced, harm > 0, 1) > 0, 'accept queue full',
                (swallowed > 0) * if(traced, harm > 0, (swallowed >= 3) * (10 * swallowed >= connections)) > 0, 'connect failed',
                (resets > 0) * if(traced, (unanswered_near > 0) * (4 * if(slower > 0, resets, greatest(resets, unanswered_near)) >= harmed_near), (resets >= 3) * (20 * resets >= connections) * (cl[8] + sv[9] > 0)) > 0, 'reset',
                (timeouts > 0) * if(traced, (harm > 0) * (4 * greatest(timeouts, broken_near) >= harmed_near), 1) > 0, 'timed out',
                (100 * receive_window_limited_us > {window_percent:Float64} * busy_us) * (20 * lossy_retransmits <= lossy_segments) * traced * (harm > 0) > 0, 'receiver''s window full',
                slower = 2, 'slow queue',
                (most[1] > 0) * traced * (harm > 0) > 0, 'receiver does not read',
                if(traced, (harm > 0) * ((100 * retransmits > {retransmit_percent:Float64} * segments_sent) + (slower = 0) * (lossy_retransmits >= 3)),
                    (100 * retransmits > {retransmit_percent:Float64} * segments_sent) * (retransmits >= 3)) > 0,
                    if(retransmitted_bytes > 0, 'retransmission', 'slow handshake'),
                slower = 1, 'slow network',
                (failed_queries > 0) * traced * (broken_near > 0) > 0, 'DNS failed',
                (query_us >= 100000) * traced * (harm > 0) * ((10 * slow_queries >= requests_near) + (query_us >= 1000000)) > 0, 'slow DNS',
                (resets > 0) * traced * (unanswered_near > 0) > 0, 'reset',
                (timeouts > 0) * (harm > 0) > 0, 'timed out',
                '') AS verdict
        FROM harmed
    ),
    explained AS (
        SELECT *, (verdict != '', harmed_near + far_near, connect_failures + resets + timeouts, retransmits) AS weight,
            formatDateTime(if(since > toDateTime64(0, 9, 'UTC'), toDateTime(since, 'UTC'), minute), '%H:%i:%S') AS from_time,
            formatDateTime(if(since > toDateTime64(0, 9, 'UTC'), toDateTime(until, 'UTC'), minute + 60), '%H:%i:%S') AS to_time,
            concat(
                multiIf(
                    verdict = 'connect refused', concat(toString(cl[4]), ' of ', toString(connections + connect_failures), ' connection attempts refused'),
                    verdict = 'accept queue full', concat('looks at a full accept queue: ', toString(queue_full_near)),
                    verdict = 'connect failed', concat(toString(swallowed), ' of ', toString(connections + connect_failures), ' connection attempts unanswered'),
                    verdict = 'reset', concat('connections reset: ', toString(resets)),
                    verdict = 'timed out', concat('connections timed out: ', toString(timeouts)),
                    verdict = 'receiver''s window full', concat('waited ', toString(intDiv(receive_window_limited_us, 1000)), ' of ', toString(intDiv(busy_us, 1000)), ' ms for the receiver to read'),
                    verdict = 'receiver does not read', concat(toString(most[1]), ' bytes received and not read'),
                    verdict IN ('slow network', 'slow queue'), concat('rtt ', toString(round(rtt_us / 1000, 2)), ' ms, usually ', toString(round(rtt_usual_us / 1000, 2)), ' ms'),
                    verdict = 'DNS failed', concat('failed queries of ', asked[1].1, ': ', toString(failed_queries)),
                    verdict = 'slow DNS', concat('a query of ', asked[1].1, ' took ', toString(round(query_us / 1000, 2)), ' ms'),
                    lossy_segments > 0, concat(toString(lossy_retransmits), ' of ', toString(lossy_segments), ' segments sent again'),
                    concat(toString(retransmits), ' of ', toString(segments_sent), ' segments sent again')),
                ' between ', from_time, ' and ', to_time,
                multiIf(traced = 0, '', harmed_near > 0, concat(', requests slow or failed: ', toString(harmed_near)),
                    verdict = 'reset', concat(', requests failed without an answer: ', toString(unanswered_near)),
                    harm = 0, concat(', half of the requests took ', toString(round(alone_p50_ms, 1)), ' ms or more'),
                    concat(', the slowest requests took ', toString(round(alone_ms, 1)), ' ms, usually ', toString(round(usual_ms, 1)), ' ms'))) AS why
        FROM judged
    ),
    edges AS (
        SELECT client_service, server_service, client_address, server_address, max(verdict != '') AS bad, min(telemetry) AS telemetry,
            argMax((verdict, why, minute), weight) AS worst,
            sum(calls[1]) AS requests, sum(calls[2]) AS errors, greatest(sum(calls[4]), max(far_near)) AS harmed, max(p99_ms) AS p99_ms, max(server_p99_ms) AS server_p99_ms,
            sum(connections) AS connections, sum(connect_failures) AS connect_failures, sum(resets) AS resets, sum(timeouts) AS timeouts,
            sum(retransmits) AS retransmits, sum(segments_sent) AS segments_sent, max(rtt_us) AS rtt_us, max(rtt_usual_us) AS rtt_usual_us,
            sum(receive_window_limited_us) AS receive_window_limited_us, sum(busy_us) AS busy_us,
            groupUniqArrayArrayIf(arrayMap(p -> (p.1, p.2, p.3, p.4), arrayFilter(p -> p.5, places)), verdict != '') AS bad_places,
            groupUniqArrayArray(arrayMap(p -> (p.1, p.2, p.3, p.4), places)) AS all_places
        FROM explained
        GROUP BY client_service, server_service, client_address, server_address
        HAVING (telemetry = 0) + (requests > 0) > 0
    ),
    together AS (
        SELECT groupArray((bad, bad_places, (client_service, server_service, client_address, server_address, worst, requests, errors, harmed, p99_ms, server_p99_ms,
                connections, connect_failures, resets, timeouts, retransmits, segments_sent, rtt_us, rtt_usual_us, receive_window_limited_us, busy_us))) AS every,
            arrayFlatten(groupArray(arrayMap(p -> (p, has(bad_places, p)), all_places))) AS hops
        FROM edges
    ),
    suspected AS (
        SELECT every, hops, arrayFilter(n -> n.2 != '', arrayDistinct(arrayFlatten(arrayMap(h -> if(h.2, [('node', h.1.1), ('node', h.1.2), ('pod', h.1.3), ('pod', h.1.4)], []), hops)))) AS suspects
        FROM together
    ),
    blamed AS (
        SELECT every, suspects, arrayMap(n -> arrayFilter(h -> has(if(n.1 = 'node', [h.1.1, h.1.2], [h.1.3, h.1.4]), n.2), hops), suspects) AS their_hops,
            arrayCount(h -> h.2, hops) AS bad_hops, length(hops) AS all_hops
        FROM suspected
    ),
    compared AS (
        SELECT every, bad_hops, all_hops, arrayMap((n, own) -> (n, length(own), arrayCount(h -> h.2, own),
                length(arrayDistinct(arrayFilter(o -> o != n.2, arrayFlatten(arrayMap(h -> if(h.2, if(n.1 = 'node', [h.1.1, h.1.2], [h.1.3, h.1.4]), []), own)))))), suspects, their_hops) AS counts
        FROM blamed
    ),
    culprits AS (
        SELECT arrayJoin(arrayFilter(e -> e.1, every)) AS e,
            arrayMap(x -> x.1, arrayFilter(x -> (x.3 >= 3) * (10 * x.3 >= 7 * x.2) * (all_hops > x.2) * (10 * (bad_hops - x.3) <= 2 * (all_hops - x.2)) * (x.4 >= 2) > 0, counts)) AS guilty
        FROM compared
    ),
    placed AS (
        SELECT e.3 AS v, arrayFirst(n -> arrayAll(p -> has(if(n.1 = 'node', [p.1, p.2], [p.3, p.4]), n.2), e.2) * notEmpty(e.2) > 0, guilty) AS place FROM culprits
    ),
    lines AS (
        SELECT v, place.1 AS scope, if(place.2 != '', (concat(place.1, ' ', place.2), 'all', '', ''), (v.1, v.2, v.3, v.4)) AS ends FROM placed
    ),
    summed AS (
        SELECT ends, count() AS n, argMax((v.5, v.1, v.2), v.8) AS worst, sumForEach([v.6, v.7, v.8, v.11, v.12, v.13, v.14, v.15, v.16, v.19, v.20]) AS sums,
            maxForEach([v.9, v.10, v.17, v.18]) AS most, any(scope) AS scope
        FROM lines
        GROUP BY ends
    )
SELECT ends.1 AS client_service, ends.2 AS server_service, worst.1.1 AS verdict, sums[1] AS requests, sums[2] AS errors, most[1] AS p99_ms, most[2] AS server_p99_ms,
    sums[4] AS connections, sums[5] AS connect_failures, sums[6] AS resets, sums[7] AS timeouts, sums[8] AS retransmits, sums[9] AS segments_sent,
    round(100 * sums[8] / greatest(sums[9], 1), 2) AS retransmit_percent, most[3] AS rtt_us, sums[10] AS receive_window_limited_us, sums[11] AS busy_us,
    ends.3 AS client_address, ends.4 AS server_address, sums[3] AS harmed,
    concat(if(n > 1, concat(toString(n), ' edges, the worst ', worst.2, ' -> ', worst.3, ': '), ''), worst.1.2) AS why,
    worst.1.3 AS worst_minute, most[4] AS rtt_usual_us, scope
FROM summed
ORDER BY harmed DESC, sums[5] + sums[6] + sums[7] DESC, retransmit_percent DESC, client_service, server_service;

CREATE OR REPLACE VIEW metaflow.pods
AS SELECT
    cluster,
    ip,
    pod,
    uid,
    namespace,
    node,
    workload,
    workload_kind,
    host_network,
    valid_from,
    valid_to,
    seen
FROM metaflow.pods_local FINAL;

CREATE OR REPLACE VIEW metaflow.services
AS SELECT
    cluster,
    ip,
    namespace,
    service,
    ports,
    endpoints,
    endpoint_count,
    valid_from,
    if(valid_to > seen, if(seen < now() - toIntervalHour(13), seen, valid_to), valid_to) AS valid_to,
    seen
FROM metaflow.services_local FINAL;

CREATE OR REPLACE VIEW metaflow.agents
AS SELECT
    agent_id,
    name,
    host,
    addresses,
    agent_version AS version,
    cluster,
    group_id,
    revision,
    exceptions,
    started,
    seen,
    connected AND seen > now() - toIntervalMinute(1) AS alive
FROM metaflow.agents_local FINAL
WHERE NOT deleted;
