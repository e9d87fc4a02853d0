-- The spans of one trace, each with the flow data of its own connection. Parameterized views have no
-- defaults, so there are two: one with the thresholds written in, one with all of them to be given.
--
-- ClickHouse analyzes the whole query twice before it reads a row, and names, lambdas and
-- columns are what this costs. So spans and results are unnamed tuples, whose fields the
-- records below name; make generate writes the numbered form into schema/tables.sql.

{{- /* A span of the trace. */ -}}
{{- record "s, x, other" `
    span_id = toString(span_id)
    parent_span_id
    service_name
    name
    kind
    start_time
    duration_ns
    status_code
    ip
    port
    peer_ip
    peer_port
    pod_uid = simpleJSONExtractString(origin, 'pod_uid') AS pod_uid
    cluster = simpleJSONExtractString(origin, 'cluster')
`}}

{{- /* The whole trace. Its values stand below, where it is read. */ -}}
{{- record "read" `
    trace
    earliest
    latest
    own_addresses
    pods
`}}

{{- /* An address that an agent reported, and its pod; a list of them. */ -}}
{{- record "told" `
    ip
    pod_uid
`}}

{{- /* What a connection did, summed over the flows that match. A row ends with its connection: what
cut it off after the span did the span no harm. */ -}}
{{- array "counters" `
    flows = 1
    connections = f.connections
    connect_failures = (f.time <= c.until) * f.connect_failures
    resets = (f.time <= c.until) * f.resets
    timeouts = (f.time <= c.until) * f.timeouts
    bytes_sent = f.bytes_sent
    bytes_received = f.bytes_received
    segments_sent = f.segments_sent
    retransmits = f.retransmits
    retransmitted_bytes = f.retransmitted_bytes
    receive_window_limited_us = f.receive_window_limited_us
    send_buffer_limited_us = f.send_buffer_limited_us
    busy_us = f.busy_us
`}}

{{- /* A span with what its connection did, of which nothing counts when nothing matched: then it is of
others. */ -}}
{{- record "a, b, x, y" `
    s
    role
    other_span_id
    wanted_peer
    matched
    counters = if(matched = '', [], sums)
    rtt_us = (matched != '') * rtt_us
    rtt_min_us = (matched != '') * rtt_min_us
`}}
{{- define "trace_network"}}
WITH
    toIntervalMillisecond({{.SlackMS}}) AS slack,
    -- An interval's row is written at its end: at most this long after a span within it.
    toIntervalMinute(11) AS longest,
    toIPv6('::') AS unknown,
    -- The trace, read once: a scalar is computed before the rest, and values derived from
    -- it find the granules of the flow data.
    (
        SELECT (
            groupArray(({{values "s"}})),
            min(start_time) - slack, max(start_time + toIntervalNanosecond(duration_ns)) + slack,
            groupUniqArray(ip), groupUniqArrayIf(pod_uid, pod_uid != ''))
        FROM {{.Spans}}
        WHERE trace_id = {trace_id:String}
    ) AS read,
    read.trace AS trace,
    read.earliest AS earliest,
    read.latest AS latest,
    read.own_addresses AS own,
    read.pods AS pods,
    -- The agents' reports of these addresses and pods.
    (
        SELECT groupUniqArray(({{values "told"}}))
        FROM {{.FlowAddresses}}
        WHERE hour >= toStartOfHour(earliest) AND hour <= toStartOfHour(latest + longest) AND (has(own, ip) OR has(pods, pod_uid))
    ) AS told,
    told.ip AS addresses,
    flows AS (
        SELECT * FROM {{.Flows}}
        WHERE time >= earliest AND time <= latest + longest AND start_time <= latest AND has(addresses, ip)
    )
SELECT
    a.s.span_id AS span_id,
    a.s.parent_span_id AS parent_span_id,
    a.s.service_name AS service_name,
    a.s.name AS name,
    a.s.kind AS kind,
    a.s.start_time AS start_time,
    a.s.duration_ns AS duration_ns,
    a.s.status_code AS status_code,
    a.s.ip AS ip,
    a.wanted_peer AS peer_ip,
    a.s.peer_port AS peer_port,
    b.s.span_id AS peer_span_id,
    b.s.service_name AS peer_service_name,
    multiIf(peer_span_id = '', 0, kind = 'client', duration_ns - b.s.duration_ns, b.s.duration_ns - duration_ns) AS gap_ns,
    a.matched AS matched,
    multiIf(
        matched != '', '',
        a.role = 'unknown', 'the span is no call over a network',
        ip = unknown AND a.s.pod_uid = '', 'no address: the resource says neither pod nor IP',
        peer_ip = unknown, 'no peer address: neither the span nor the trace says it',
        NOT (has(told.ip, ip) OR a.s.pod_uid != '' AND has(told.pod_uid, a.s.pod_uid)), 'no flow data of that address: no agent on that node',
        'no flow in that time') AS unmatched,
    multiIf(
        matched = '' AND b.matched = '', '',
        connect_failures + b.counters.connect_failures > 0, 'connect failed',
        resets + peer_resets > 0, 'reset',
        timeouts + b.counters.timeouts > 0, 'timed out',
        100 * receive_window_limited_us > {{.WindowPercent}} * busy_us OR 100 * peer_receive_window_limited_us > {{.WindowPercent}} * peer_busy_us, 'receiver''s window full',
        100 * (retransmits + peer_retransmits) > {{.RetransmitPercent}} * (segments_sent + peer_segments_sent),
            if(retransmitted_bytes + b.counters.retransmitted_bytes > 0, 'retransmission', 'slow handshake'),
        'network clean') AS verdict,
    a.counters.flows AS flows,
    a.counters.connections AS connections,
    a.counters.connect_failures AS connect_failures,
    a.counters.resets AS resets,
    a.counters.timeouts AS timeouts,
    a.counters.bytes_sent AS bytes_sent,
    a.counters.bytes_received AS bytes_received,
    a.counters.segments_sent AS segments_sent,
    a.counters.retransmits AS retransmits,
    a.counters.retransmitted_bytes AS retransmitted_bytes,
    a.rtt_us AS rtt_us,
    a.rtt_min_us AS rtt_min_us,
    a.counters.receive_window_limited_us AS receive_window_limited_us,
    a.counters.send_buffer_limited_us AS send_buffer_limited_us,
    a.counters.busy_us AS busy_us,
    b.counters.resets AS peer_resets,
    b.counters.segments_sent AS peer_segments_sent,
    b.counters.retransmits AS peer_retransmits,
    b.rtt_us AS peer_rtt_us,
    b.counters.receive_window_limited_us AS peer_receive_window_limited_us,
    b.counters.busy_us AS peer_busy_us
FROM
(
    SELECT groupArray(({{values "a"}})) AS measured
    FROM
    (
        SELECT
            any(c.s) AS s, any(c.role) AS role, any(c.other_span_id) AS other_span_id, any(c.wanted_peer) AS wanted_peer,
            -- The nearest match counts; farther ones count only if there is none.
            multiIf(
                f.peer_ip = unknown, '',
                NOT (f.ip = c.s.ip OR (c.s.pod_uid != '' AND f.pod_uid = c.s.pod_uid)), '',
                c.s.cluster != '' AND f.cluster != '' AND f.cluster != c.s.cluster, '',
                -- The port of the server's end, as far as both sides know it.
                c.role = 'client' AND c.s.peer_port != 0 AND f.peer_port != c.s.peer_port, '',
                c.role = 'server' AND c.s.port != 0 AND f.port != c.s.port, '',
                f.start_time > c.until, '',
                f.time < c.s.start_time - slack, '',
                c.s.peer_ip = unknown, 'trace edge',
                c.s.peer_port != 0 AND f.peer_port = c.s.peer_port, 'ip and port',
                f.ip = c.s.ip, 'ip',
                'pod') AS matched,
            sumForEach([{{values "counters"}}]) AS sums,
            max(f.rtt_us) AS rtt_us,
            minIf(f.rtt_min_us, f.rtt_min_us > 0) AS rtt_min_us
        FROM
        (
            SELECT
                s,
                -- The sockets of a producer and a consumer are those of a client of the
                -- broker.
                multiIf(s.kind = 'server', 'server', s.kind IN ('client', 'producer', 'consumer'), 'client', 'unknown') AS role,
                -- The span at the other end of the call.
                arrayFirst(x -> multiIf(s.kind = 'server', x.span_id = s.parent_span_id AND x.kind = 'client',
                    s.kind = 'client', x.parent_span_id = s.span_id AND x.kind = 'server', false), trace) AS other,
                other.span_id AS other_span_id,
                if(s.peer_ip != unknown, s.peer_ip, other.ip) AS wanted_peer,
                s.start_time + toIntervalNanosecond(s.duration_ns) + slack AS until
            FROM (SELECT arrayJoin(trace) AS s)
        ) AS c
        LEFT JOIN flows AS f ON f.peer_ip = c.wanted_peer AND toString(f.role) = c.role
        GROUP BY c.s.span_id, matched
        ORDER BY indexOf(['ip and port', 'ip', 'pod', 'trace edge', ''], matched)
        LIMIT 1 BY c.s.span_id
    )
)
ARRAY JOIN measured AS a, arrayMap(x -> arrayFirst(y -> y.s.span_id = x.other_span_id AND x.other_span_id != '', measured), measured) AS b
ORDER BY start_time, span_id
{{- end}}
CREATE OR REPLACE VIEW {{.Database}}.trace_network{{.OnCluster}} AS{{template "trace_network" .Thresholds}};

CREATE OR REPLACE VIEW {{.Database}}.trace_network_with{{.OnCluster}} AS{{template "trace_network" .AsParameters}};
