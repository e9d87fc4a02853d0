-- The table of flow data: one row per connection and interval, from the viewpoint of one
-- end. Counters are the increments of the interval.
CREATE TABLE IF NOT EXISTS {{.Database}}.flows_local{{.OnCluster}}
(
    -- The end of the interval: the time for retention and lookups.
    time DateTime64(9, 'UTC') CODEC(Delta(8), ZSTD(1)),
    start_time DateTime64(9, 'UTC') CODEC(Delta(8), ZSTD(1)),
    role Enum8('unknown' = 0, 'client' = 1, 'server' = 2) CODEC(ZSTD(1)),
    ip IPv6 CODEC(ZSTD(1)),
    port UInt16 CODEC(ZSTD(1)),
    peer_ip IPv6 CODEC(ZSTD(1)),
    peer_port UInt16 CODEC(ZSTD(1)),
    -- On their node these two identify one end of one connection.
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
    -- The holder of peer_ip at that time, as far as pod metadata was known when the row
    -- was written; a service if the address is a service's.
    peer_node LowCardinality(String) CODEC(ZSTD(1)),
    peer_namespace LowCardinality(String) CODEC(ZSTD(1)),
    peer_pod LowCardinality(String) CODEC(ZSTD(1)),
    peer_pod_uid LowCardinality(String) CODEC(ZSTD(1)),
    peer_workload LowCardinality(String) CODEC(ZSTD(1)),
    peer_service LowCardinality(String) CODEC(ZSTD(1)),

    INDEX pod_uid pod_uid TYPE bloom_filter(0.01) GRANULARITY 1,
    -- For filters on functions of the time, which the hour of the key does not cover.
    INDEX time time TYPE minmax GRANULARITY 1
)
ENGINE = {{engine "MergeTree"}}
PARTITION BY toDate(time)
-- A span is joined by its time and its own address, then by its peer's address.
ORDER BY (toStartOfHour(time), ip, peer_ip, time)
PRIMARY KEY (toStartOfHour(time), ip, peer_ip)
{{ttl "time" .FlowsRetention}}
SETTINGS
{{- if .AutoStatistics}}
    auto_statistics_types = '',
{{- end}}
    min_bytes_for_wide_part = 50331648,
    ttl_only_drop_parts = 1,
    {{deduplication}};

{{- if .Cluster}}

CREATE TABLE IF NOT EXISTS {{.Database}}.flows_distributed{{.OnCluster}} AS {{.Database}}.flows_local
ENGINE = Distributed('{{.Cluster}}', '{{.Database}}', 'flows_local', cityHash64(least(ip, peer_ip), greatest(ip, peer_ip)));
{{- end}}
