-- The two slowest statements of each service, by total time.
SELECT service_name AS service,
       attributes['db.query.text'] AS statement,
       count() AS calls,
       round(sum(duration_ns) / 1e6) AS total_ms,
       round(quantile(0.5)(duration_ns) / 1e6, 2) AS p50_ms,
       round(max(duration_ns) / 1e6, 1) AS max_ms
FROM metaflow.spans
WHERE statement != '' AND parent_span_id != ''
GROUP BY service, statement
ORDER BY service, total_ms DESC
LIMIT 2 BY service
