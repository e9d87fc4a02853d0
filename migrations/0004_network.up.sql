-- Which service speaks from which address, hour by hour, as the spans themselves say.
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

CREATE MATERIALIZED VIEW IF NOT EXISTS {{.Database}}.service_addresses_of_spans{{.OnCluster}} TO {{.Database}}.service_addresses_local
AS SELECT toStartOfHour(start_time) AS hour, ip, service_name, count() AS spans
FROM {{.Database}}.spans_local
WHERE ip != toIPv6('::') AND service_name != ''
GROUP BY hour, ip, service_name;

-- Which addresses the agents tell of, hour by hour, and whose they are: a pod may have more
-- addresses than its spans know.
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

CREATE MATERIALIZED VIEW IF NOT EXISTS {{.Database}}.flow_addresses_of_flows{{.OnCluster}} TO {{.Database}}.flow_addresses_local
AS SELECT toStartOfHour(time) AS hour, ip, pod_uid, count() AS flows
FROM {{.Database}}.flows_local
GROUP BY hour, ip, pod_uid;

-- The spans of one trace, each with the flow data of its own connection. Parameterized views have no
-- defaults, so there are two: one with the thresholds written in, one with all of them to be given.
{{- define "trace_network"}}
WITH
    toIntervalMillisecond({{.SlackMS}}) AS slack,
    -- An interval's row is made at its end: at most this long after a span within it.
    toIntervalMinute(11) AS longest,
    toIPv6('::') AS unknown,
    -- The trace, read once: a scalar is computed before the rest, and what is derived from it finds
    -- the granules of the flow data. Spans are tuples without names, for ClickHouse analyses the
    -- whole question twice before it reads a row, and names, lambdas and columns are what costs then:
    -- 1 span_id, 2 parent_span_id, 3 service_name, 4 name, 5 kind, 6 start_time, 7 duration_ns, 8 status_code,
    -- 9 ip, 10 port, 11 peer_ip, 12 peer_port, 13 pod_uid, 14 cluster.
    (
        SELECT (
            groupArray((toString(span_id), parent_span_id, service_name, name, kind, start_time, duration_ns, status_code, ip, port, peer_ip, peer_port,
                simpleJSONExtractString(origin, 'pod_uid') AS pod_uid, simpleJSONExtractString(origin, 'cluster'))),
            min(start_time) - slack, max(start_time + toIntervalNanosecond(duration_ns)) + slack,
            groupUniqArray(ip), groupUniqArrayIf(pod_uid, pod_uid != ''))
        FROM {{.Spans}}
        WHERE trace_id = {trace_id:String}
    ) AS read,
    read.1 AS trace,
    read.2 AS earliest,
    read.3 AS latest,
    read.4 AS own,
    read.5 AS pods,
    -- What agents told of these addresses and pods.
    (
        SELECT groupUniqArray((ip, pod_uid))
        FROM {{.FlowAddresses}}
        WHERE hour >= toStartOfHour(earliest) AND hour <= toStartOfHour(latest + longest) AND (has(own, ip) OR has(pods, pod_uid))
    ) AS told,
    told.1 AS addresses,
    flows AS (
        SELECT * FROM {{.Flows}}
        WHERE time >= earliest AND time <= latest + longest AND start_time <= latest AND has(addresses, ip)
    )
SELECT
    a.1.1 AS span_id,
    a.1.2 AS parent_span_id,
    a.1.3 AS service_name,
    a.1.4 AS name,
    a.1.5 AS kind,
    a.1.6 AS start_time,
    a.1.7 AS duration_ns,
    a.1.8 AS status_code,
    a.1.9 AS ip,
    a.4 AS peer_ip,
    a.1.12 AS peer_port,
    b.1.1 AS peer_span_id,
    b.1.3 AS peer_service_name,
    multiIf(peer_span_id = '', 0, kind = 'client', duration_ns - b.1.7, b.1.7 - duration_ns) AS gap_ns,
    a.5 AS matched,
    multiIf(
        matched != '', '',
        a.2 = 'unknown', 'the span is no call over a network',
        ip = unknown AND a.1.13 = '', 'no address: the resource says neither pod nor IP',
        peer_ip = unknown, 'no peer address: neither the span nor the trace says it',
        NOT (has(told.1, ip) OR a.1.13 != '' AND has(told.2, a.1.13)), 'no flow data of that address: no agent on that node',
        'no flow in that time') AS unmatched,
    multiIf(
        matched = '' AND b.5 = '', '',
        connect_failures + b.6[3] > 0, 'connect failed',
        resets + peer_resets > 0, 'reset',
        timeouts + b.6[5] > 0, 'timed out',
        100 * receive_window_limited_us > {{.WindowPercent}} * busy_us OR 100 * peer_receive_window_limited_us > {{.WindowPercent}} * peer_busy_us, 'receiver''s window full',
        100 * (retransmits + peer_retransmits) > {{.RetransmitPercent}} * (segments_sent + peer_segments_sent),
            if(retransmitted_bytes + b.6[10] > 0, 'retransmission', 'slow handshake'),
        'network clean') AS verdict,
    a.6[1] AS flows,
    a.6[2] AS connections,
    a.6[3] AS connect_failures,
    a.6[4] AS resets,
    a.6[5] AS timeouts,
    a.6[6] AS bytes_sent,
    a.6[7] AS bytes_received,
    a.6[8] AS segments_sent,
    a.6[9] AS retransmits,
    a.6[10] AS retransmitted_bytes,
    a.7 AS rtt_us,
    a.8 AS rtt_min_us,
    a.6[11] AS receive_window_limited_us,
    a.6[12] AS send_buffer_limited_us,
    a.6[13] AS busy_us,
    b.6[4] AS peer_resets,
    b.6[8] AS peer_segments_sent,
    b.6[9] AS peer_retransmits,
    b.7 AS peer_rtt_us,
    b.6[11] AS peer_receive_window_limited_us,
    b.6[13] AS peer_busy_us
FROM
(
    -- What did not match is of others.
    SELECT groupArray((s, role, other_span_id, wanted_peer, matched, if(matched = '', [], sums), (matched != '') * rtt_us, (matched != '') * rtt_min_us)) AS measured
    FROM
    (
        SELECT
            any(c.s) AS s, any(c.role) AS role, any(c.other_span_id) AS other_span_id, any(c.wanted_peer) AS wanted_peer,
            -- The nearest match counts; farther ones only when there is none.
            multiIf(
                f.peer_ip = unknown, '',
                NOT (f.ip = c.s.9 OR (c.s.13 != '' AND f.pod_uid = c.s.13)), '',
                c.s.14 != '' AND f.cluster != '' AND f.cluster != c.s.14, '',
                -- The port of the server's end, as far as both know it.
                c.role = 'client' AND c.s.12 != 0 AND f.peer_port != c.s.12, '',
                c.role = 'server' AND c.s.10 != 0 AND f.port != c.s.10, '',
                f.start_time > c.until, '',
                f.time < c.s.6 - slack, '',
                c.s.11 = unknown, 'trace edge',
                c.s.12 != 0 AND f.peer_port = c.s.12, 'ip and port',
                f.ip = c.s.9, 'ip',
                'pod') AS matched,
            -- A row ends with its connection: what was cut off after the span did it no harm.
            sumForEach([1, f.connections, (f.time <= c.until) * f.connect_failures, (f.time <= c.until) * f.resets, (f.time <= c.until) * f.timeouts,
                f.bytes_sent, f.bytes_received, f.segments_sent, f.retransmits, f.retransmitted_bytes, f.receive_window_limited_us, f.send_buffer_limited_us, f.busy_us]) AS sums,
            max(f.rtt_us) AS rtt_us,
            minIf(f.rtt_min_us, f.rtt_min_us > 0) AS rtt_min_us
        FROM
        (
            SELECT
                s,
                -- A producer's and a consumer's sockets are those of a client of the broker.
                multiIf(s.5 = 'server', 'server', s.5 IN ('client', 'producer', 'consumer'), 'client', 'unknown') AS role,
                -- The span at the other end of the call.
                arrayFirst(x -> multiIf(s.5 = 'server', x.1 = s.2 AND x.5 = 'client',
                    s.5 = 'client', x.2 = s.1 AND x.5 = 'server', false), trace) AS other,
                other.1 AS other_span_id,
                if(s.11 != unknown, s.11, other.9) AS wanted_peer,
                s.6 + toIntervalNanosecond(s.7) + slack AS until
            FROM (SELECT arrayJoin(trace) AS s)
        ) AS c
        LEFT JOIN flows AS f ON f.peer_ip = c.wanted_peer AND toString(f.role) = c.role
        GROUP BY c.s.1, matched
        ORDER BY indexOf(['ip and port', 'ip', 'pod', 'trace edge', ''], matched)
        LIMIT 1 BY c.s.1
    )
)
ARRAY JOIN measured AS a, arrayMap(x -> arrayFirst(y -> y.1.1 = x.3 AND x.3 != '', measured), measured) AS b
ORDER BY start_time, span_id
{{- end}}
CREATE VIEW IF NOT EXISTS {{.Database}}.trace_network{{.OnCluster}} AS{{template "trace_network" .Thresholds}};

CREATE VIEW IF NOT EXISTS {{.Database}}.trace_network_with{{.OnCluster}} AS{{template "trace_network" .AsParameters}};

-- Requests between services beside what the network did, per minute. A filter on
-- minute reaches the tables.
CREATE VIEW IF NOT EXISTS {{.Database}}.service_network{{.OnCluster}}
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
    -- Who speaks from an address, hour by hour: the service with the most spans.
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
    -- Each connection is seen from both of its ends: what both count is taken from the client's, and
    -- what only the sender knows (segments, retransmits, waiting) from both.
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
-- A client that no span names is outside of what is traced, or a probe. A server without spans (a
-- database) goes by its address.
WHERE client != '' AND server != ''
GROUP BY minute, client, server;

-- The edges of the last minutes whose network is bad, the worst first.
{{- define "network_trouble"}}
WITH
    -- Resets are how some applications close idle connections: where there were requests and none of them failed,
    -- they did no harm.
    if(sum(e.errors + e.server_errors) > 0 OR sum(e.requests + e.server_requests) = 0, sum(e.resets), 0) AS harmful_resets
SELECT
    client_service,
    server_service,
    multiIf(
        connect_failures > 0, 'connect failed',
        harmful_resets > 0, 'reset',
        timeouts > 0, 'timed out',
        100 * receive_window_limited_us > {{.WindowPercent}} * busy_us, 'receiver''s window full',
        'retransmission') AS verdict,
    sum(e.requests) AS requests,
    sum(e.errors) AS errors,
    max(e.p99_ms) AS p99_ms,
    max(e.server_p99_ms) AS server_p99_ms,
    sum(e.connections) AS connections,
    sum(e.connect_failures) AS connect_failures,
    sum(e.resets) AS resets,
    sum(e.timeouts) AS timeouts,
    sum(e.retransmits) AS retransmits,
    sum(e.segments_sent) AS segments_sent,
    round(100 * retransmits / greatest(segments_sent, 1), 2) AS retransmit_percent,
    max(e.rtt_us) AS rtt_us,
    sum(e.receive_window_limited_us) AS receive_window_limited_us,
    sum(e.busy_us) AS busy_us
FROM {{.Database}}.service_network AS e
WHERE e.minute >= now() - toIntervalMinute({minutes:UInt32})
GROUP BY client_service, server_service
HAVING connect_failures + harmful_resets + timeouts > 0
    OR 100 * receive_window_limited_us > {{.WindowPercent}} * busy_us
    OR 100 * retransmits > {{.RetransmitPercent}} * segments_sent
ORDER BY connect_failures + harmful_resets + timeouts DESC, retransmit_percent DESC
{{- end}}
CREATE VIEW IF NOT EXISTS {{.Database}}.network_trouble{{.OnCluster}} AS{{template "network_trouble" .Thresholds}};

CREATE VIEW IF NOT EXISTS {{.Database}}.network_trouble_with{{.OnCluster}} AS{{template "network_trouble" .AsParameters}};
