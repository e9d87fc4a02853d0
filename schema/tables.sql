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
FROM metaflow.spans_local
COMMENT 'made by metaflow-server, form fa9b842ee907fcbf';

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
FROM metaflow.spans_local
COMMENT 'made by metaflow-server, form c92983070439e595';

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
FROM metaflow.flows_local
COMMENT 'made by metaflow-server, form 6fce401b422e43f5';

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

CREATE OR REPLACE VIEW metaflow.trace_network AS
WITH
    toIntervalMillisecond(1000) AS slack,
    toIntervalMinute(11) AS longest,
    toIPv6('::') AS unknown,
    (
        SELECT (
            groupArray((toString(span_id), parent_span_id, service_name, name, kind, start_time, duration_ns, status_code, ip, port, peer_ip, peer_port, simpleJSONExtractString(origin, 'pod_uid') AS pod_uid, simpleJSONExtractString(origin, 'cluster'))),
            min(start_time) - slack, max(start_time + toIntervalNanosecond(duration_ns)) + slack,
            groupUniqArray(ip), groupUniqArrayIf(pod_uid, pod_uid != ''))
        FROM metaflow.spans_local
        WHERE trace_id = {trace_id:String}
    ) AS read,
    read.1 AS trace,
    read.2 AS earliest,
    read.3 AS latest,
    read.4 AS own,
    read.5 AS pods,
    (
        SELECT groupUniqArray((ip, pod_uid))
        FROM metaflow.flow_addresses_local
        WHERE hour >= toStartOfHour(earliest) AND hour <= toStartOfHour(latest + longest) AND (has(own, ip) OR has(pods, pod_uid))
    ) AS told,
    told.1 AS addresses,
    flows AS (
        SELECT * FROM metaflow.flows_local
        WHERE time >= earliest AND time <= latest + longest AND start_time <= latest AND has(addresses, ip)
    )
SELECT
    a.1.1 AS span_id,
    a.1.2 AS parent_span_id,
    a.1.3 AS service_name,
    a.1.4 AS name,
    a.1.5 AS kind,
    a.1.6 AS start_time,
    a.1.7 AS duration_ns,
    a.1.8 AS status_code,
    a.1.9 AS ip,
    a.4 AS peer_ip,
    a.1.12 AS peer_port,
    b.1.1 AS peer_span_id,
    b.1.3 AS peer_service_name,
    multiIf(peer_span_id = '', 0, kind = 'client', duration_ns - b.1.7, b.1.7 - duration_ns) AS gap_ns,
    a.5 AS matched,
    multiIf(
        matched != '', '',
        a.2 = 'unknown', 'the span is no call over a network',
        ip = unknown AND a.1.13 = '', 'no address: the resource says neither pod nor IP',
        peer_ip = unknown, 'no peer address: neither the span nor the trace says it',
        NOT (has(told.1, ip) OR a.1.13 != '' AND has(told.2, a.1.13)), 'no flow data of that address: no agent on that node',
        'no flow in that time') AS unmatched,
    multiIf(
        matched = '' AND b.5 = '', '',
        connect_failures + b.6[3] > 0, 'connect failed',
        resets + peer_resets > 0, 'reset',
        timeouts + b.6[5] > 0, 'timed out',
        100 * receive_window_limited_us > 20 * busy_us OR 100 * peer_receive_window_limited_us > 20 * peer_busy_us, 'receiver''s window full',
        100 * (retransmits + peer_retransmits) > 1 * (segments_sent + peer_segments_sent),
            if(retransmitted_bytes + b.6[10] > 0, 'retransmission', 'slow handshake'),
        'network clean') AS verdict,
    a.6[1] AS flows,
    a.6[2] AS connections,
    a.6[3] AS connect_failures,
    a.6[4] AS resets,
    a.6[5] AS timeouts,
    a.6[6] AS bytes_sent,
    a.6[7] AS bytes_received,
    a.6[8] AS segments_sent,
    a.6[9] AS retransmits,
    a.6[10] AS retransmitted_bytes,
    a.7 AS rtt_us,
    a.8 AS rtt_min_us,
    a.6[11] AS receive_window_limited_us,
    a.6[12] AS send_buffer_limited_us,
    a.6[13] AS busy_us,
    b.6[4] AS peer_resets,
    b.6[8] AS peer_segments_sent,
    b.6[9] AS peer_retransmits,
    b.7 AS peer_rtt_us,
    b.6[11] AS peer_receive_window_limited_us,
    b.6[13] AS peer_busy_us
FROM
(
    SELECT groupArray((s, role, other_span_id, wanted_peer, matched, if(matched = '', [], sums), (matched != '') * rtt_us, (matched != '') * rtt_min_us)) AS measured
    FROM
    (
        SELECT
            any(c.s) AS s, any(c.role) AS role, any(c.other_span_id) AS other_span_id, any(c.wanted_peer) AS wanted_peer,
            multiIf(
                f.peer_ip = unknown, '',
                NOT (f.ip = c.s.9 OR (c.s.13 != '' AND f.pod_uid = c.s.13)), '',
                c.s.14 != '' AND f.cluster != '' AND f.cluster != c.s.14, '',
                c.role = 'client' AND c.s.12 != 0 AND f.peer_port != c.s.12, '',
                c.role = 'server' AND c.s.10 != 0 AND f.port != c.s.10, '',
                f.start_time > c.until, '',
                f.time < c.s.6 - slack, '',
                c.s.11 = unknown, 'trace edge',
                c.s.12 != 0 AND f.peer_port = c.s.12, 'ip and port',
                f.ip = c.s.9, 'ip',
                'pod') AS matched,
            sumForEach([1, f.connections, (f.time <= c.until) * f.connect_failures, (f.time <= c.until) * f.resets, (f.time <= c.until) * f.timeouts, f.bytes_sent, f.bytes_received, f.segments_sent, f.retransmits, f.retransmitted_bytes, f.receive_window_limited_us, f.send_buffer_limited_us, f.busy_us]) AS sums,
            max(f.rtt_us) AS rtt_us,
            minIf(f.rtt_min_us, f.rtt_min_us > 0) AS rtt_min_us
        FROM
        (
            SELECT
                s,
                multiIf(s.5 = 'server', 'server', s.5 IN ('client', 'producer', 'consumer'), 'client', 'unknown') AS role,
                arrayFirst(x -> multiIf(s.5 = 'server', x.1 = s.2 AND x.5 = 'client',
                    s.5 = 'client', x.2 = s.1 AND x.5 = 'server', false), trace) AS other,
                other.1 AS other_span_id,
                if(s.11 != unknown, s.11, other.9) AS wanted_peer,
                s.6 + toIntervalNanosecond(s.7) + slack AS until
            FROM (SELECT arrayJoin(trace) AS s)
        ) AS c
        LEFT JOIN flows AS f ON f.peer_ip = c.wanted_peer AND toString(f.role) = c.role
        GROUP BY c.s.1, matched
        ORDER BY indexOf(['ip and port', 'ip', 'pod', 'trace edge', ''], matched)
        LIMIT 1 BY c.s.1
    )
)
ARRAY JOIN measured AS a, arrayMap(x -> arrayFirst(y -> y.1.1 = x.3 AND x.3 != '', measured), measured) AS b
ORDER BY start_time, span_id
COMMENT 'made by metaflow-server, form 19d57b7f705a7844';

CREATE OR REPLACE VIEW metaflow.trace_network_with AS
WITH
    toIntervalMillisecond({slack_ms:UInt32}) AS slack,
    toIntervalMinute(11) AS longest,
    toIPv6('::') AS unknown,
    (
        SELECT (
            groupArray((toString(span_id), parent_span_id, service_name, name, kind, start_time, duration_ns, status_code, ip, port, peer_ip, peer_port, simpleJSONExtractString(origin, 'pod_uid') AS pod_uid, simpleJSONExtractString(origin, 'cluster'))),
            min(start_time) - slack, max(start_time + toIntervalNanosecond(duration_ns)) + slack,
            groupUniqArray(ip), groupUniqArrayIf(pod_uid, pod_uid != ''))
        FROM metaflow.spans_local
        WHERE trace_id = {trace_id:String}
    ) AS read,
    read.1 AS trace,
    read.2 AS earliest,
    read.3 AS latest,
    read.4 AS own,
    read.5 AS pods,
    (
        SELECT groupUniqArray((ip, pod_uid))
        FROM metaflow.flow_addresses_local
        WHERE hour >= toStartOfHour(earliest) AND hour <= toStartOfHour(latest + longest) AND (has(own, ip) OR has(pods, pod_uid))
    ) AS told,
    told.1 AS addresses,
    flows AS (
        SELECT * FROM metaflow.flows_local
        WHERE time >= earliest AND time <= latest + longest AND start_time <= latest AND has(addresses, ip)
    )
SELECT
    a.1.1 AS span_id,
    a.1.2 AS parent_span_id,
    a.1.3 AS service_name,
    a.1.4 AS name,
    a.1.5 AS kind,
    a.1.6 AS start_time,
    a.1.7 AS duration_ns,
    a.1.8 AS status_code,
    a.1.9 AS ip,
    a.4 AS peer_ip,
    a.1.12 AS peer_port,
    b.1.1 AS peer_span_id,
    b.1.3 AS peer_service_name,
    multiIf(peer_span_id = '', 0, kind = 'client', duration_ns - b.1.7, b.1.7 - duration_ns) AS gap_ns,
    a.5 AS matched,
    multiIf(
        matched != '', '',
        a.2 = 'unknown', 'the span is no call over a network',
        ip = unknown AND a.1.13 = '', 'no address: the resource says neither pod nor IP',
        peer_ip = unknown, 'no peer address: neither the span nor the trace says it',
        NOT (has(told.1, ip) OR a.1.13 != '' AND has(told.2, a.1.13)), 'no flow data of that address: no agent on that node',
        'no flow in that time') AS unmatched,
    multiIf(
        matched = '' AND b.5 = '', '',
        connect_failures + b.6[3] > 0, 'connect failed',
        resets + peer_resets > 0, 'reset',
        timeouts + b.6[5] > 0, 'timed out',
        100 * receive_window_limited_us > {window_percent:Float64} * busy_us OR 100 * peer_receive_window_limited_us > {window_percent:Float64} * peer_busy_us, 'receiver''s window full',
        100 * (retransmits + peer_retransmits) > {retransmit_percent:Float64} * (segments_sent + peer_segments_sent),
            if(retransmitted_bytes + b.6[10] > 0, 'retransmission', 'slow handshake'),
        'network clean') AS verdict,
    a.6[1] AS flows,
    a.6[2] AS connections,
    a.6[3] AS connect_failures,
    a.6[4] AS resets,
    a.6[5] AS timeouts,
    a.6[6] AS bytes_sent,
    a.6[7] AS bytes_received,
    a.6[8] AS segments_sent,
    a.6[9] AS retransmits,
    a.6[10] AS retransmitted_bytes,
    a.7 AS rtt_us,
    a.8 AS rtt_min_us,
    a.6[11] AS receive_window_limited_us,
    a.6[12] AS send_buffer_limited_us,
    a.6[13] AS busy_us,
    b.6[4] AS peer_resets,
    b.6[8] AS peer_segments_sent,
    b.6[9] AS peer_retransmits,
    b.7 AS peer_rtt_us,
    b.6[11] AS peer_receive_window_limited_us,
    b.6[13] AS peer_busy_us
FROM
(
    SELECT groupArray((s, role, other_span_id, wanted_peer, matched, if(matched = '', [], sums), (matched != '') * rtt_us, (matched != '') * rtt_min_us)) AS measured
    FROM
    (
        SELECT
            any(c.s) AS s, any(c.role) AS role, any(c.other_span_id) AS other_span_id, any(c.wanted_peer) AS wanted_peer,
            multiIf(
                f.peer_ip = unknown, '',
                NOT (f.ip = c.s.9 OR (c.s.13 != '' AND f.pod_uid = c.s.13)), '',
                c.s.14 != '' AND f.cluster != '' AND f.cluster != c.s.14, '',
                c.role = 'client' AND c.s.12 != 0 AND f.peer_port != c.s.12, '',
                c.role = 'server' AND c.s.10 != 0 AND f.port != c.s.10, '',
                f.start_time > c.until, '',
                f.time < c.s.6 - slack, '',
                c.s.11 = unknown, 'trace edge',
                c.s.12 != 0 AND f.peer_port = c.s.12, 'ip and port',
                f.ip = c.s.9, 'ip',
                'pod') AS matched,
            sumForEach([1, f.connections, (f.time <= c.until) * f.connect_failures, (f.time <= c.until) * f.resets, (f.time <= c.until) * f.timeouts, f.bytes_sent, f.bytes_received, f.segments_sent, f.retransmits, f.retransmitted_bytes, f.receive_window_limited_us, f.send_buffer_limited_us, f.busy_us]) AS sums,
            max(f.rtt_us) AS rtt_us,
            minIf(f.rtt_min_us, f.rtt_min_us > 0) AS rtt_min_us
        FROM
        (
            SELECT
                s,
                multiIf(s.5 = 'server', 'server', s.5 IN ('client', 'producer', 'consumer'), 'client', 'unknown') AS role,
                arrayFirst(x -> multiIf(s.5 = 'server', x.1 = s.2 AND x.5 = 'client',
                    s.5 = 'client', x.2 = s.1 AND x.5 = 'server', false), trace) AS other,
                other.1 AS other_span_id,
                if(s.11 != unknown, s.11, other.9) AS wanted_peer,
                s.6 + toIntervalNanosecond(s.7) + slack AS until
            FROM (SELECT arrayJoin(trace) AS s)
        ) AS c
        LEFT JOIN flows AS f ON f.peer_ip = c.wanted_peer AND toString(f.role) = c.role
        GROUP BY c.s.1, matched
        ORDER BY indexOf(['ip and port', 'ip', 'pod', 'trace edge', ''], matched)
        LIMIT 1 BY c.s.1
    )
)
ARRAY JOIN measured AS a, arrayMap(x -> arrayFirst(y -> y.1.1 = x.3 AND x.3 != '', measured), measured) AS b
ORDER BY start_time, span_id
COMMENT 'made by metaflow-server, form 97b30add9fcea730';

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
    busy_us UInt64
)
AS
WITH
    toIPv6('::') AS unknown,
    names AS (
        SELECT hour, ip, argMax(service_name, n) AS name
        FROM (SELECT hour, ip, service_name, sum(spans) AS n FROM metaflow.service_addresses_local GROUP BY hour, ip, service_name)
        GROUP BY hour, ip
    ),
    calls AS (
        SELECT
            toStartOfMinute(start_time) AS minute, kind = 'server' AS served, service_name, peer_ip,
            count() AS n, countIf(status_code = 'error') AS bad, quantilesTDigestState(0.5, 0.9, 0.99)(toFloat32(duration_ns)) AS durations
        FROM metaflow.spans_local
        WHERE kind IN ('client', 'server', 'producer', 'consumer') AND peer_ip != unknown
        GROUP BY minute, served, service_name, peer_ip
    ),
    sockets AS (
        SELECT
            toStartOfMinute(time) AS minute, role = 'server' AS served, ip, peer_ip,
            sumForEach([connections, connect_failures, resets, timeouts, bytes_sent, bytes_received, segments_sent, retransmits,
                receive_window_limited_us, send_buffer_limited_us, busy_us]) AS sums,
            avgWeighted(rtt_us, segments_sent + 1) AS rtt, minIf(rtt_min_us, rtt_min_us > 0) AS rtt_min
        FROM metaflow.flows_local
        WHERE role IN ('client', 'server')
        GROUP BY minute, served, ip, peer_ip
    )
SELECT
    minute,
    client AS client_service,
    server AS server_service,
    sumIf(n, NOT served) AS requests,
    sumIf(bad, NOT served) AS errors,
    ifNotFinite(quantilesTDigestMergeIf(0.5, 0.9, 0.99)(durations, NOT served)[1], 0) / 1e6 AS p50_ms,
    ifNotFinite(quantilesTDigestMergeIf(0.5, 0.9, 0.99)(durations, NOT served)[2], 0) / 1e6 AS p90_ms,
    ifNotFinite(quantilesTDigestMergeIf(0.5, 0.9, 0.99)(durations, NOT served)[3], 0) / 1e6 AS p99_ms,
    sumIf(n, served) AS server_requests,
    sumIf(bad, served) AS server_errors,
    ifNotFinite(quantilesTDigestMergeIf(0.5, 0.9, 0.99)(durations, served)[1], 0) / 1e6 AS server_p50_ms,
    ifNotFinite(quantilesTDigestMergeIf(0.5, 0.9, 0.99)(durations, served)[2], 0) / 1e6 AS server_p90_ms,
    ifNotFinite(quantilesTDigestMergeIf(0.5, 0.9, 0.99)(durations, served)[3], 0) / 1e6 AS server_p99_ms,
    sumForEachIf(sums, NOT served)[1] AS connections,
    sumForEachIf(sums, NOT served)[2] AS connect_failures,
    greatest(sumForEachIf(sums, NOT served)[3], sumForEachIf(sums, served)[3]) AS resets,
    greatest(sumForEachIf(sums, NOT served)[4], sumForEachIf(sums, served)[4]) AS timeouts,
    greatest(sumForEachIf(sums, NOT served)[5], sumForEachIf(sums, served)[6]) AS bytes_sent,
    greatest(sumForEachIf(sums, NOT served)[6], sumForEachIf(sums, served)[5]) AS bytes_received,
    sumForEach(sums)[7] AS segments_sent,
    sumForEach(sums)[8] AS retransmits,
    round(100 * retransmits / greatest(segments_sent, 1), 2) AS retransmit_percent,
    ifNotFinite(avgWeightedIf(rtt, weight, weight > 0), 0) AS rtt_us,
    minIf(rtt_min, rtt_min > 0) AS rtt_min_us,
    sumForEach(sums)[9] AS receive_window_limited_us,
    sumForEach(sums)[10] AS send_buffer_limited_us,
    sumForEach(sums)[11] AS busy_us
FROM
(
    SELECT minute, served, if(served, other.name, service_name) AS client,
        if(served, service_name, if(other.name != '', other.name, replaceOne(toString(calls.peer_ip), '::ffff:', ''))) AS server,
        n, bad, durations, arrayWithConstant(11, toUInt64(0)) AS sums, 0. AS rtt, 0 AS weight, toUInt32(0) AS rtt_min
    FROM calls LEFT JOIN names AS other ON other.hour = toStartOfHour(minute) AND other.ip = calls.peer_ip
    UNION ALL
    SELECT minute, served, if(served, other.name, own.name) AS client,
        if(served, own.name, if(other.name != '', other.name, replaceOne(toString(sockets.peer_ip), '::ffff:', ''))) AS server,
        0 AS n, 0 AS bad, arrayReduce('quantilesTDigestState(0.5, 0.9, 0.99)', emptyArrayFloat32()) AS durations, sums, rtt, sums[7] + 1 AS weight, rtt_min
    FROM sockets
    LEFT JOIN names AS own ON own.hour = toStartOfHour(minute) AND own.ip = sockets.ip
    LEFT JOIN names AS other ON other.hour = toStartOfHour(minute) AND other.ip = sockets.peer_ip
)
WHERE client != '' AND server != ''
GROUP BY minute, client, server
COMMENT 'made by metaflow-server, form f41138f6c8b86152';

CREATE OR REPLACE VIEW metaflow.network_trouble AS
WITH
    if(sum(e.errors + e.server_errors) > 0 OR sum(e.requests + e.server_requests) = 0, sum(e.resets), 0) AS harmful_resets
SELECT
    client_service,
    server_service,
    multiIf(
        connect_failures > 0, 'connect failed',
        harmful_resets > 0, 'reset',
        timeouts > 0, 'timed out',
        100 * receive_window_limited_us > 20 * busy_us, 'receiver''s window full',
        'retransmission') AS verdict,
    sum(e.requests) AS requests,
    sum(e.errors) AS errors,
    max(e.p99_ms) AS p99_ms,
    max(e.server_p99_ms) AS server_p99_ms,
    sum(e.connections) AS connections,
    sum(e.connect_failures) AS connect_failures,
    sum(e.resets) AS resets,
    sum(e.timeouts) AS timeouts,
    sum(e.retransmits) AS retransmits,
    sum(e.segments_sent) AS segments_sent,
    round(100 * retransmits / greatest(segments_sent, 1), 2) AS retransmit_percent,
    max(e.rtt_us) AS rtt_us,
    sum(e.receive_window_limited_us) AS receive_window_limited_us,
    sum(e.busy_us) AS busy_us
FROM metaflow.service_network AS e
WHERE e.minute >= now() - toIntervalMinute({minutes:UInt32})
GROUP BY client_service, server_service
HAVING connect_failures + harmful_resets + timeouts > 0
    OR 100 * receive_window_limited_us > 20 * busy_us
    OR 100 * retransmits > 1 * segments_sent
ORDER BY connect_failures + harmful_resets + timeouts DESC, retransmit_percent DESC
COMMENT 'made by metaflow-server, form 89e9a39f71a83413';

CREATE OR REPLACE VIEW metaflow.network_trouble_with AS
WITH
    if(sum(e.errors + e.server_errors) > 0 OR sum(e.requests + e.server_requests) = 0, sum(e.resets), 0) AS harmful_resets
SELECT
    client_service,
    server_service,
    multiIf(
        connect_failures > 0, 'connect failed',
        harmful_resets > 0, 'reset',
        timeouts > 0, 'timed out',
        100 * receive_window_limited_us > {window_percent:Float64} * busy_us, 'receiver''s window full',
        'retransmission') AS verdict,
    sum(e.requests) AS requests,
    sum(e.errors) AS errors,
    max(e.p99_ms) AS p99_ms,
    max(e.server_p99_ms) AS server_p99_ms,
    sum(e.connections) AS connections,
    sum(e.connect_failures) AS connect_failures,
    sum(e.resets) AS resets,
    sum(e.timeouts) AS timeouts,
    sum(e.retransmits) AS retransmits,
    sum(e.segments_sent) AS segments_sent,
    round(100 * retransmits / greatest(segments_sent, 1), 2) AS retransmit_percent,
    max(e.rtt_us) AS rtt_us,
    sum(e.receive_window_limited_us) AS receive_window_limited_us,
    sum(e.busy_us) AS busy_us
FROM metaflow.service_network AS e
WHERE e.minute >= now() - toIntervalMinute({minutes:UInt32})
GROUP BY client_service, server_service
HAVING connect_failures + harmful_resets + timeouts > 0
    OR 100 * receive_window_limited_us > {window_percent:Float64} * busy_us
    OR 100 * retransmits > {retransmit_percent:Float64} * segments_sent
ORDER BY connect_failures + harmful_resets + timeouts DESC, retransmit_percent DESC
COMMENT 'made by metaflow-server, form 890f53fba8b78366';

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
FROM metaflow.pods_local FINAL
COMMENT 'made by metaflow-server, form ee4892d41d54af67';

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
FROM metaflow.services_local FINAL
COMMENT 'made by metaflow-server, form 0b4ca7b885764f91';

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
WHERE NOT deleted
COMMENT 'made by metaflow-server, form 2e6027c5ef1d25d7';
