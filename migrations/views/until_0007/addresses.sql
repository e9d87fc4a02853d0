-- The service at each address, and the addresses that agents report. Each view fills its
-- table when rows are inserted into its source.
CREATE MATERIALIZED VIEW IF NOT EXISTS {{.Database}}.service_addresses_of_spans{{.OnCluster}} TO {{.Database}}.service_addresses_local
AS SELECT toStartOfHour(start_time) AS hour, ip, service_name, count() AS spans
FROM {{.Database}}.spans_local
WHERE ip != toIPv6('::') AND service_name != ''
GROUP BY hour, ip, service_name;

CREATE MATERIALIZED VIEW IF NOT EXISTS {{.Database}}.flow_addresses_of_flows{{.OnCluster}} TO {{.Database}}.flow_addresses_local
AS SELECT toStartOfHour(time) AS hour, ip, pod_uid, count() AS flows
FROM {{.Database}}.flows_local
GROUP BY hour, ip, pod_uid;
