-- What a row is about besides connections, names and translated addresses of its ends, and
-- what tells causes apart. Zero means unknown or none.
--   peer_name: DNS name of the peer; the name asked for, if the protocol is dns.
--   translated_*: the own end as the peer sees it, and the peer behind a translated destination.
{{addColumn "flows"
    "protocol Enum8('tcp' = 0, 'dns' = 1) CODEC(ZSTD(1)) AFTER role"
    "peer_name LowCardinality(String) CODEC(ZSTD(1)) AFTER peer_port"
    "translated_ip IPv6 CODEC(ZSTD(1)) AFTER peer_name"
    "translated_port UInt16 CODEC(ZSTD(1)) AFTER translated_ip"
    "translated_peer_ip IPv6 CODEC(ZSTD(1)) AFTER translated_port"
    "translated_peer_port UInt16 CODEC(ZSTD(1)) AFTER translated_peer_ip"
    "refused UInt32 CODEC(T64, ZSTD(1)) AFTER connect_failures"
    "gave_up UInt32 CODEC(T64, ZSTD(1)) AFTER timeouts"
    "rtt_usual_us UInt32 CODEC(T64, ZSTD(1)) AFTER rtt_min_us"
    "rtt_max_us UInt32 CODEC(T64, ZSTD(1)) AFTER rtt_usual_us"
    "queue_us UInt32 CODEC(T64, ZSTD(1)) AFTER rtt_max_us"
    "retransmit_timeout_us UInt64 CODEC(T64, ZSTD(1)) AFTER busy_us"
    "unread_bytes UInt64 CODEC(T64, ZSTD(1)) AFTER retransmit_timeout_us"
    "unsent_bytes UInt64 CODEC(T64, ZSTD(1)) AFTER unread_bytes"
    "accept_queue_full UInt32 CODEC(T64, ZSTD(1)) AFTER unsent_bytes"
    "queries UInt32 CODEC(T64, ZSTD(1)) AFTER accept_queue_full"
    "query_failures UInt32 CODEC(T64, ZSTD(1)) AFTER queries"
    "queries_unanswered UInt32 CODEC(T64, ZSTD(1)) AFTER query_failures"
    "query_time_us UInt64 CODEC(T64, ZSTD(1)) AFTER queries_unanswered"
    "query_time_max_us UInt32 CODEC(T64, ZSTD(1)) AFTER query_time_us"
    "query_code LowCardinality(String) CODEC(ZSTD(1)) AFTER query_time_max_us"}};
-- Addresses of one owner, which is a network namespace of one agent's node, belong to one
-- pod or host. A column joins the sorting key only in the ALTER that adds it.
ALTER TABLE {{.Database}}.flow_addresses_local{{.OnCluster}} ADD COLUMN IF NOT EXISTS owner UInt64 CODEC(ZSTD(1)) AFTER pod_uid, MODIFY ORDER BY (hour, ip, pod_uid, owner);
{{if .Cluster -}}
ALTER TABLE {{.Database}}.flow_addresses_distributed{{.OnCluster}} ADD COLUMN IF NOT EXISTS owner UInt64 CODEC(ZSTD(1)) AFTER pod_uid;
{{- end}}
