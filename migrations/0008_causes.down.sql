{{if .Cluster -}}
ALTER TABLE {{.Database}}.flow_addresses_distributed{{.OnCluster}} DROP COLUMN IF EXISTS owner;
{{end -}}
ALTER TABLE {{.Database}}.flow_addresses_local{{.OnCluster}} MODIFY ORDER BY (hour, ip, pod_uid);
ALTER TABLE {{.Database}}.flow_addresses_local{{.OnCluster}} DROP COLUMN IF EXISTS owner;
{{dropColumn "flows" "protocol" "peer_name" "translated_ip" "translated_port" "translated_peer_ip" "translated_peer_port" "refused" "gave_up" "rtt_usual_us" "rtt_max_us" "queue_us" "retransmit_timeout_us" "unread_bytes" "unsent_bytes" "accept_queue_full" "queries" "query_failures" "queries_unanswered" "query_time_us" "query_time_max_us" "query_code"}};
