-- Requests between services together with network metrics, per minute. A filter on minute
-- reaches the tables.
CREATE OR REPLACE VIEW {{.Database}}.service_network{{.OnCluster}}
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
    -- The service of an address per hour: the one with the most spans.
    names AS (
        SELECT hour, ip, argMax(service_name, n) AS name
        FROM (SELECT hour, ip, service_name, sum(spans) AS n FROM {{.ServiceAddresses}} GROUP BY hour, ip, service_name)
        GROUP BY hour, ip
    ),
    calls AS (
        SELECT
            toStartOfMinute(start_time) AS minute, kind = 'server' AS served, service_name, peer_ip,
            count() AS n, countIf(status_code = 'error') AS bad, quantilesTDigestState(0.5, 0.9, 0.99)(toFloat32(duration_ns)) AS durations
        FROM {{.Spans}}
        WHERE kind IN ('client', 'server', 'producer', 'consumer') AND peer_ip != unknown
        GROUP BY minute, served, service_name, peer_ip
    ),
    sockets AS (
        SELECT
            toStartOfMinute(time) AS minute, role = 'server' AS served, ip, peer_ip,
            sumForEach([connections, connect_failures, resets, timeouts, bytes_sent, bytes_received, segments_sent, retransmits,
                receive_window_limited_us, send_buffer_limited_us, busy_us]) AS sums,
            avgWeighted(rtt_us, segments_sent + 1) AS rtt, minIf(rtt_min_us, rtt_min_us > 0) AS rtt_min
        FROM {{.Flows}}
        WHERE role IN ('client', 'server')
        GROUP BY minute, served, ip, peer_ip
    )
SELECT
    minute,
    client AS client_service,
    server AS server_service,
    sumIf(n, NOT served) AS requests,
    sumIf(bad, NOT served) AS errors,
    -- Quantiles of nothing are 0.
    ifNotFinite(quantilesTDigestMergeIf(0.5, 0.9, 0.99)(durations, NOT served)[1], 0) / 1e6 AS p50_ms,
    ifNotFinite(quantilesTDigestMergeIf(0.5, 0.9, 0.99)(durations, NOT served)[2], 0) / 1e6 AS p90_ms,
    ifNotFinite(quantilesTDigestMergeIf(0.5, 0.9, 0.99)(durations, NOT served)[3], 0) / 1e6 AS p99_ms,
    sumIf(n, served) AS server_requests,
    sumIf(bad, served) AS server_errors,
    ifNotFinite(quantilesTDigestMergeIf(0.5, 0.9, 0.99)(durations, served)[1], 0) / 1e6 AS server_p50_ms,
    ifNotFinite(quantilesTDigestMergeIf(0.5, 0.9, 0.99)(durations, served)[2], 0) / 1e6 AS server_p90_ms,
    ifNotFinite(quantilesTDigestMergeIf(0.5, 0.9, 0.99)(durations, served)[3], 0) / 1e6 AS server_p99_ms,
    -- Both ends report each connection: values that both ends count are taken from the
    -- client, and values that only the sender knows (segments, retransmits, waiting) from
    -- both.
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
-- A client without spans is outside the traced services, or a probe. A server without
-- spans (a database) is identified by its address.
WHERE client != '' AND server != ''
GROUP BY minute, client, server;
