-- The slowest request as a waterfall: one row per span, below its parent. It
-- skips the warm-up, because a JVM's first requests are always its slowest.
WITH RECURSIVE
    (SELECT trace_id FROM metaflow.spans
     WHERE kind = 'server' AND parent_span_id = '' AND attributes['user_agent.original'] != 'warm-up'
     ORDER BY duration_ns DESC LIMIT 1) AS slowest,
    trace AS (SELECT * FROM metaflow.spans WHERE trace_id = slowest),
    tree AS (
        SELECT span_id, service_name, name, endpoint, status_code, start_time, duration_ns, 0 AS depth,
               start_time AS begin, greatest(1, duration_ns) AS total, [(start_time, span_id)] AS path
        FROM trace WHERE parent_span_id = ''
        UNION ALL
        SELECT s.span_id, s.service_name, s.name, s.endpoint, s.status_code, s.start_time, s.duration_ns, depth + 1,
               begin, total, arrayPushBack(path, (s.start_time, s.span_id))
        FROM trace AS s INNER JOIN tree ON s.parent_span_id = tree.span_id)
SELECT service_name AS service,
       repeat('  ', depth) || name || if(position(name, ' ') = 0, ' ' || endpoint, '') || if(status_code = 'error', ' ✗', '') AS span,
       round(duration_ns / 1e6, 1) AS ms,
       repeat(' ', toUInt8(least(35, greatest(0, 36 * (toUnixTimestamp64Nano(start_time) - toUnixTimestamp64Nano(begin)) / total))) AS before)
           || repeat('█', toUInt8(least(36 - before, greatest(1, 36 * duration_ns / total)))) AS time
FROM tree
ORDER BY path
