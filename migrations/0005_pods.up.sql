-- Pods as reported by Kubernetes, one row per address. Every node of a cluster has all
-- rows, so that spans and flows of any shard find them.
CREATE TABLE IF NOT EXISTS {{.Database}}.pods_local{{.OnCluster}}
(
    cluster LowCardinality(String) CODEC(ZSTD(1)),
    ip IPv6 CODEC(ZSTD(1)),
    uid String CODEC(ZSTD(1)),
    pod String CODEC(ZSTD(1)),
    namespace LowCardinality(String) CODEC(ZSTD(1)),
    node LowCardinality(String) CODEC(ZSTD(1)),
    workload LowCardinality(String) CODEC(ZSTD(1)),
    workload_kind LowCardinality(String) CODEC(ZSTD(1)),
    -- The pod shares its node's addresses.
    host_network Bool CODEC(ZSTD(1)),
    valid_from DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    -- While the pod has the address: the last second of a DateTime.
    valid_to DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    -- The last report of the pod. Live pods are reported every few hours.
    seen DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    -- The newest row of a pod's address counts.
    recorded DateTime64(9, 'UTC') CODEC(ZSTD(1))
)
ENGINE = {{engineShared "ReplacingMergeTree" "recorded"}}
ORDER BY (cluster, ip, uid)
{{ttl "seen" .PodsRetention}}
SETTINGS {{deduplication}};

-- The services of Kubernetes, one row per address.
CREATE TABLE IF NOT EXISTS {{.Database}}.services_local{{.OnCluster}}
(
    cluster LowCardinality(String) CODEC(ZSTD(1)),
    ip IPv6 CODEC(ZSTD(1)),
    namespace LowCardinality(String) CODEC(ZSTD(1)),
    service String CODEC(ZSTD(1)),
    ports Array(UInt16) CODEC(ZSTD(1)),
    -- The addresses of its pods, a thousand at most.
    endpoints Array(IPv6) CODEC(ZSTD(1)),
    valid_from DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    valid_to DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    seen DateTime64(9, 'UTC') CODEC(ZSTD(1)),
    recorded DateTime64(9, 'UTC') CODEC(ZSTD(1))
)
ENGINE = {{engineShared "ReplacingMergeTree" "recorded"}}
ORDER BY (cluster, ip, namespace, service, valid_from)
{{ttl "seen" .PodsRetention}}
SETTINGS {{deduplication}};

-- The agents, as in metaflow-ctl agent list.
CREATE TABLE IF NOT EXISTS {{.Database}}.agents_local{{.OnCluster}}
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
ENGINE = {{engineShared "ReplacingMergeTree" "recorded"}}
ORDER BY agent_id
SETTINGS {{deduplication}};
