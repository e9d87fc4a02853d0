-- The service at each address, per hour, as the spans themselves report it.
CREATE TABLE IF NOT EXISTS {{.Database}}.service_addresses_local{{.OnCluster}}
(
    hour DateTime('UTC') CODEC(Delta(4), ZSTD(1)),
    ip IPv6 CODEC(ZSTD(1)),
    service_name LowCardinality(String) CODEC(ZSTD(1)),
    spans SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1))
)
ENGINE = {{engine "AggregatingMergeTree"}}
PARTITION BY toDate(hour)
ORDER BY (hour, ip, service_name)
{{ttl "hour" .SpansRetention}}
SETTINGS ttl_only_drop_parts = 1,
    {{deduplication}};

{{- if .Cluster}}

CREATE TABLE IF NOT EXISTS {{.Database}}.service_addresses_distributed{{.OnCluster}} AS {{.Database}}.service_addresses_local
ENGINE = Distributed('{{.Cluster}}', '{{.Database}}', 'service_addresses_local', cityHash64(ip));
{{- end}}

-- The addresses that agents report, per hour, with their pods: a pod may have more
-- addresses than its spans show.
CREATE TABLE IF NOT EXISTS {{.Database}}.flow_addresses_local{{.OnCluster}}
(
    hour DateTime('UTC') CODEC(Delta(4), ZSTD(1)),
    ip IPv6 CODEC(ZSTD(1)),
    pod_uid LowCardinality(String) CODEC(ZSTD(1)),
    flows SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1))
)
ENGINE = {{engine "AggregatingMergeTree"}}
PARTITION BY toDate(hour)
ORDER BY (hour, ip, pod_uid)
{{ttl "hour" .FlowsRetention}}
SETTINGS ttl_only_drop_parts = 1,
    {{deduplication}};

{{- if .Cluster}}

CREATE TABLE IF NOT EXISTS {{.Database}}.flow_addresses_distributed{{.OnCluster}} AS {{.Database}}.flow_addresses_local
ENGINE = Distributed('{{.Cluster}}', '{{.Database}}', 'flow_addresses_local', cityHash64(ip));
{{- end}}
