-- Calls between services, their number and duration, as measured by the caller.
SELECT client.service_name AS caller,
       if(server.service_name = '', client.protocol, server.service_name) AS callee,
       count() AS calls,
       countIf(client.status_code = 'error') AS errors,
       round(quantile(0.5)(client.duration_ns) / 1e6, 1) AS p50_ms,
       round(quantile(0.95)(client.duration_ns) / 1e6, 1) AS p95_ms
FROM metaflow.spans AS client
LEFT JOIN (SELECT trace_id, parent_span_id, service_name FROM metaflow.spans WHERE kind = 'server') AS server
       ON server.trace_id = client.trace_id AND server.parent_span_id = client.span_id
WHERE client.kind = 'client' AND client.parent_span_id != ''
GROUP BY caller, callee
ORDER BY caller, callee
