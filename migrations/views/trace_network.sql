-- The spans of a trace, each with the flow data of its own connection. Parameterized views have no
-- defaults, so there are three: of one trace with the thresholds written in, of one with all of them
-- to be given, and of several.
--
-- ClickHouse analyzes the whole query twice before it reads a row, which takes longer than
-- to read and compute. Functions cost most of it; an alias that stands for one costs it
-- again at each use, and a scalar subquery again in each subquery that uses it. So what has
-- several uses is a column of a subquery, what needs no parameter stands in ends.sql, and a
-- lambda over lists of positions takes the place of an expression for each cause. AND and OR
-- are products and sums: the optimizer of logical expressions hashes each of their arguments
-- with all subqueries below it, which took more than all else.
-- Tuples and arrays are unnamed: the records below name their fields, and make generate
-- writes the numbered form into schema/tables.sql.

{{- /* The trace: when and where. */ -}}
{{- record "read" `
    earliest
    latest
    ips
    pods
    peers
`}}

{{- /* The addresses and pods of one owner, which is a pod or a host. */ -}}
{{- record "o, owners" `
    ips
    pods
    id
`}}

{{- /* Where the flows are: at the owners' addresses, and at the other ends, which are the peers
of clients; they see addresses as translated. Each of ips belongs to the owner at the position
in owner_of, and ids are those of the owners. */ -}}
{{- record "places" `
    ips
    owner_of
    ids
    own
    far
    translated
    earliest
    latest
`}}

{{- /* The ends of a connection, as in flow_ends. */ -}}
{{- record "client, caller" `
    wire_ip
    wire_port
    ip
    pod_uid
    label
    called_ip
    called_port
`}}
{{- record "server, callee" `
    wire_ip
    wire_port
    ip
    pod_uid
    label
    pod
`}}

{{- /* A connection from one of its ends. */ -}}
{{- record "side" `
    role
    owner
    far_owner
    far_ips
    pod_uid
    far_label
`}}

{{- /* The sums of one end's flows: the counters of flow_ends. */ -}}
{{- array "own, far, peer" `
    connect_failures
    resets
    timeouts
    flows
    connections
    bytes_sent
    bytes_received
    segments_sent
    retransmits
    retransmitted_bytes
    receive_window_limited_us
    send_buffer_limited_us
    busy_us
`}}

{{- /* When a server's accept queue was full, and at how many looks. */ -}}
{{- record "q" `
    since
    until
    looks
`}}

{{- /* The worst flow: what is wrong with it (a position in words), and the numbers that show it. */ -}}
{{- record "worst, bad, decisive, w" `
    cause
    less
    whole
    start_time
    end_time
`}}

{{- /* A span: ids of spans belong to a trace, and in Zipkin to both ends of a call. */ -}}
{{- record "call" `
    trace_id
    span_id
`}}

{{- /* What was found for a span, for the one at the other end. */ -}}
{{- record "b, y" `
    span_id
    role
    owner
    far_owner
    far_label
    bad
    word
    why
    own
    rtt_us
    ends_seen
`}}
{{- /* What is shown of a span, as in call_ends. */ -}}
{{- record "span, s" `
    parent_span_id
    service_name
    name
    kind
    start_time
    duration_ns
    status_code
    ip
    pod_uid
    peer_ip
    peer_port
    role
    edge
    host
    other_span_id
    other_service_name
    other_ip
    gap_ns
`}}
{{- /* What was found for a span. */ -}}
{{- record "found, best, m" `
    rank
    worst
    servers
    owner
    reported
    far_owner
    far_label
    own_sums
    far_sums
    rtt_us
    rtt_min_us
    far_rtt_us
`}}
{{- define "trace_network"}}
WITH
    toIntervalMillisecond({{.SlackMS}}) AS slack,
    -- An interval's row is written at its end: at most this long after a span within it.
    toIntervalMinute(11) AS longest,
    toIPv6('::') AS unknown,
    [unknown, toIPv6('0.0.0.0')] AS unspecified,
    -- The causes in the order in which they decide; what shows each, as positions of counters, with
    -- the unit; and in words.
    ['connect refused', 'accept queue full', 'connect failed', 'reset', 'timed out', 'receiver''s window full', 'receiver does not read', 'retransmission', 'slow handshake',
        'slow queue', 'slow network', 'DNS failed', 'slow DNS', 'network clean'] AS words,
    [14, 15, 1, 2, 3, 11, 16, 9, 9, 21, 18, 22, 24, 25] AS amounts,
    [1, 1, 1, 1, 1, 13, 1, 8, 8, 18, 19, 23, 23, 1] AS wholes,
    [1, 1, 1, 1, 1, 1000, 1, 1, 1, 1000, 1000, 1, 1000, 1] AS units,
    ['connects refused, as nothing listens there: {}', 'looks at a full accept queue: {}', 'connects without an answer: {}', 'connections reset: {}', 'connections timed out: {}',
        'waited {} of {} ms for the receiver to read', '{} bytes received and not read', '{} of {} segments sent again', 'segments of the handshake sent again: {}',
        'rtt {} ms longer by a queue of its own bytes, {} in all', 'rtt {} ms, usually {} ms', '{} of {} queries failed', 'a query took {} ms', 'connections that the client gave up: {}'] AS texts,
    -- Scalars are computed before the rest: they find the granules of the flow data.
    (
        SELECT (min(start_time) - slack, max(start_time + toIntervalNanosecond(duration_ns)) + slack, groupUniqArrayIf(ip, ip != unknown),
            groupUniqArrayIf(simpleJSONExtractString(origin, 'pod_uid'), simpleJSONExtractString(origin, 'pod_uid') != ''), groupUniqArray(peer_ip))
        FROM {{.Spans}}
        WHERE trace_id {{.Traces}}
    ) AS read,
    -- The owners of these addresses and pods, each with all of its addresses. An address
    -- that no agent reports is an owner of its own, after the others.
    (
        SELECT arrayConcat(groupArray((ips, pods, id)), arrayMap(x -> ([x], [], 0), arrayFilter(x -> NOT has(groupArrayArray(ips), x), read.ips)))
        FROM
        (
            SELECT
                multiIf(owner != 0, owner, pod_uid != '', cityHash64(pod_uid), cityHash64(ip)) AS id,
                groupUniqArrayIf(ip, NOT has(unspecified, ip)) AS ips,
                groupUniqArrayIf(pod_uid, pod_uid != '') AS pods
            FROM {{.FlowAddresses}}
            WHERE hour >= toStartOfHour(read.earliest) AND hour <= toStartOfHour(read.latest + longest)
            GROUP BY id
            HAVING hasAny(ips, read.ips) + hasAny(pods, read.pods) > 0
        )
    ) AS owners,
    -- Where their flows are, and those of the other ends.
    (
        SELECT (arrayFlatten(owners.ips), arrayFlatten(arrayMap((ips, i) -> arrayMap(x -> i, ips), owners.ips, arrayEnumerate(owners))), owners.id, arrayConcat(arrayFlatten(owners.ips), unspecified), arrayConcat(groupUniqArrayArray([peer_ip, translated_peer_ip]), read.peers), groupUniqArray(translated_ip), read.earliest, read.latest)
        FROM {{.Flows}}
        WHERE time >= read.earliest AND time <= read.latest + longest AND start_time <= read.latest AND role = 'client' AND has(arrayFlatten(owners.ips), ip)
    ) AS places,
    -- What was found, computed first as well: the analysis of a function visits all that is below it.
    (
        SELECT groupArray((call, span, best, dns))
        FROM
        (
            SELECT call, any(span) AS span, argMin(({{values "best"}}), rank) AS best, anyIf(worst, rank = 90) AS dns
            FROM
            (
                SELECT
                    call, role, any(span) AS span, rank,
                    min((multiIf(rank = 99, 99, cause = 0, 99, cause), -toInt64(counters[amounts[cause]]), counters[wholes[cause]], flow_start, flow_end)) AS worst,
                    uniqExact(callee.ip) AS servers,
                    any(owner) AS owner,
                    any(reported) AS reported,
                    any(side.far_owner) AS far_owner,
                    max(side.far_label) AS far_label,
                    sumForEachIf(counters, is_own) AS own_sums,
                    sumForEachIf(counters, NOT is_own) AS far_sums,
                    maxIf(flow_rtt_us, is_own) AS rtt_us,
                    minIf(flow_rtt_min_us, is_own * (flow_rtt_min_us > 0) > 0) AS rtt_min_us,
                    maxIf(flow_rtt_us, NOT is_own) AS far_rtt_us
                FROM
                (
                    SELECT
                        call, span, role, owner, reported, callee, side, counters, flow_start, flow_end, flow_rtt_us, flow_rtt_min_us,
                        served = (role = 'server') AS is_own,
                        -- What is wrong: the first cause that is above its threshold and can
                        -- have cost the span that much time. A handshake sent again costs a second: a
                        -- call that waited less used another connection.
                        arrayFirstIndex((n, d, most, also, cost, scale) -> (counters[n] > most * counters[d]) * (counters[also] > 0) * (counters[cost] * scale >= limit_us) > 0,
                            [14, 15, 1, 2, 3, 11, 16, 9, 9, 21, 20, 22, 24, 25], [1, 1, 1, 1, 1, 13, 1, 8, 8, 1, 1, 23, 1, 1],
                            [0, 0, 0, 0, 0, {{.WindowPercent}} / 100, 0, {{.RetransmitPercent}} / 100, {{.RetransmitPercent}} / 100, 0, 0, 0.99, 0, 0],
                            [14, 15, 1, 2, 3, 27, 16, 10, 9, 20, 20, 22, 24, 25], [14, 15, 1, 2, 3, 11, 16, 17, 9, 21, 26, 22, 24, 25],
                            [1e10, 1e10, 1e10, 1e10, 1e10, 1, 1e10, 1, if(limit_us BETWEEN 1 AND 333332, 0, 1e6), 1, 1, 0, 1, 0]) AS cause,
                        multiIf(
                            fits = 0, 99,
                            dns, if(named, 90, 99),
                            caller.wire_ip = unknown, if(on_port * (role = 'server') > 0, 90, 99),
                            to_peer * on_connection > 0, 1,
                            to_peer * on_port > 0, if(wanted_port * (role = 'client') > 0, 1, 2),
                            to_peer * (role = 'server') > 0, 3,
                            named * on_port > 0, 4,
                            side.far_owner * (side.far_owner = other_owner) > 0, if(on_port, 5, if(owner = other_owner, 99, 6)),
                            (peer_ip = unknown) * wanted_port * on_port > 0, 7,
                            99) AS rank
                    FROM
                    (
                        SELECT
                            call, span, role, peer_ip, wanted_port, limit_us, owner, other_owner, reported, served, dns, caller, callee, side, flow_start, flow_end, flow_rtt_us, flow_rtt_min_us,
                            -- A row ends with its connection: what cut it off after the span did
                            -- the span no harm.
                            arrayMap((x, last, i) -> greatest(x, (i = 15) * swallowed) * (last <= (flow_end <= late)), arrayResize(flow_counters, 27),
                                [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], range(1, 28)) AS counters,
                            arrayMax(q -> q.looks * (q.since <= late) * (q.until >= early), queue_full) AS swallowed,
                            (side.owner > 0) * multiIf(pod_uid = '', 1, side.pod_uid = '', 1, pod_uid = side.pod_uid) * multiIf(cluster = '', 1, flow_cluster = '', 1, cluster = flow_cluster) AS fits,
                            has(side.far_ips, peer_ip) AS to_peer,
                            wanted_client_port * (wanted_client_port = caller.wire_port) > 0 AS on_connection,
                            multiIf(wanted_port = 0, 1, callee.wire_port = 0, 1, has([caller.called_port, callee.wire_port], wanted_port)) AS on_port,
                            multiIf(host = '', 0, arrayExists(x -> (x = host) + startsWith(concat(x, '.'), concat(full_host, '.')) > 0, known_names), 1,
                                callee.pod = '', 0, startsWith(concat(host, '.'), concat(callee.pod, '.'))) AS named
                        FROM
                        (
                            SELECT
                                (trace_id, span_id) AS call, span, pod_uid, cluster, peer_ip, role, host, full_host, wanted_port, wanted_client_port, limit_us,
                                start_time - slack AS early, end_time + slack AS late,
                                arrayFirstIndex(o -> has(o.ips, ip) + has(o.pods, pod_uid) > 0, owners) AS owner,
                                arrayFirstIndex(o -> has(o.ips, other_ip) + has(o.pods, other_pod_uid) > 0, owners) AS other_owner,
                                arrayExists(o -> o.id * (has(o.ips, ip) + has(o.pods, pod_uid)) > 0, owners) AS reported
                            FROM {{.Database}}.call_ends
                            WHERE trace_id {{.Traces}}
                        ) AS c
                        LEFT JOIN
                        (
                            SELECT flow_start, flow_end, served, dns, flow_cluster, flow_rtt_us, flow_rtt_min_us,
                                -- Looks at the server's accept queue that may have swallowed the connects.
                                if((callee.ip != unknown) * (counters[1] + counters[9] * (counters[10] = 0)) > 0,
                                    groupArrayIf((flow_start, flow_end, counters[15]), counters[15] > 0) OVER (PARTITION BY if(server_owner > 0, unknown, callee.ip), server_owner, callee.wire_port), []) AS queue_full,
                                counters AS flow_counters, caller, callee, known_names, side, side.role AS end_role, side.owner AS end_owner
                            FROM
                            (
                                SELECT
                                    time AS flow_end, start_time AS flow_start, served, dns, cluster AS flow_cluster, rtt_us AS flow_rtt_us, rtt_min_us AS flow_rtt_min_us, counters,
                                    -- Each end knows itself best.
                                    argMin(client, served) OVER w AS caller,
                                    argMax(server, served) OVER w AS callee,
                                    argMin(arrayMin(arrayFilter(i -> i > 0, [if(served, 0, transform(owner_id, places.ids, arrayEnumerate(places.ids), 0)), transform(client.ip, places.ips, places.owner_of, 0)])), served) OVER w AS client_owner,
                                    argMax(arrayMin(arrayFilter(i -> i > 0, [if(served, transform(owner_id, places.ids, arrayEnumerate(places.ids), 0), 0), transform(server.ip, places.ips, places.owner_of, 0)])), served) OVER w AS server_owner,
                                    groupUniqArrayArray(names) OVER w AS known_names
                                FROM {{.Database}}.flow_ends
                                WHERE time >= places.earliest AND time <= places.latest + longest AND start_time <= places.latest
                                    AND (has(places.own, ip) OR has(places.far, ip) AND has(arrayConcat(places.own, places.translated), peer_ip))
                                -- Listening sockets of all hosts may have the same address.
                                WINDOW w AS (PARTITION BY client.1, client.2, server.1, server.2, (client.2 = 0) * owner_id, if(dns, names, []))
                            )
                            ARRAY JOIN
                                [('client', client_owner, server_owner, [caller.called_ip, callee.wire_ip, callee.ip], caller.pod_uid, callee.label),
                                 ('server', server_owner, client_owner, [caller.wire_ip, caller.ip, caller.wire_ip], callee.pod_uid, caller.label)] AS side
                        ) AS f ON (end_owner, end_role) = (owner, role) AND flow_start <= late AND flow_end >= early
                    )
                )
                -- Both ends of a call may share an id, as in Zipkin.
                GROUP BY call, role, rank
            )
            GROUP BY call, role
        )
    ) AS spans
SELECT
    call.span_id AS span_id,
    s.parent_span_id AS parent_span_id,
    s.service_name AS service_name,
    s.name AS name,
    s.kind AS kind,
    s.start_time AS start_time,
    s.duration_ns AS duration_ns,
    s.status_code AS status_code,
    s.ip AS ip,
    if(s.peer_ip = unknown, s.other_ip, s.peer_ip) AS peer_ip,
    s.peer_port AS peer_port,
    s.other_span_id AS peer_span_id,
    s.other_service_name AS peer_service_name,
    s.gap_ns AS gap_ns,
    matched,
    multiIf(
        matched != '', '',
        s.role = '', 'the span is no call over a network',
        bad.cause = 12, 'the name was not resolved',
        match(s.host, '^(unix:|/)'), 'a UNIX socket: it is no network',
        match(concat(s.host, ' ', IPv6NumToString(s.peer_ip)), '^localhost |^127[.]| ::ffff:127[.]| ::1$'), 'loopback: the connection does not leave the host or pod',
        (s.ip = unknown) * (s.pod_uid = '') > 0, 'no address: the resource says neither pod nor IP',
        m.rank = 7, 'several peers are possible: the span names none of them',
        (s.peer_ip = unknown) * (s.host = '') * (s.other_ip = unknown) > 0, 'no peer address: neither the span nor the trace says it',
        NOT m.reported, 'no flow data of that address: no agent on that node',
        'no flow in that time') AS unmatched,
    verdict,
    own.flows AS flows,
    own.connections AS connections,
    own.connect_failures AS connect_failures,
    own.resets AS resets,
    own.timeouts AS timeouts,
    own.bytes_sent AS bytes_sent,
    own.bytes_received AS bytes_received,
    own.segments_sent AS segments_sent,
    own.retransmits AS retransmits,
    own.retransmitted_bytes AS retransmitted_bytes,
    notEmpty(own) * m.rtt_us AS rtt_us,
    notEmpty(own) * m.rtt_min_us AS rtt_min_us,
    own.receive_window_limited_us AS receive_window_limited_us,
    own.send_buffer_limited_us AS send_buffer_limited_us,
    own.busy_us AS busy_us,
    peer.resets AS peer_resets,
    peer.segments_sent AS peer_segments_sent,
    peer.retransmits AS peer_retransmits,
    notEmpty(peer) * if(notEmpty(far), m.far_rtt_us, b.rtt_us) AS peer_rtt_us,
    peer.receive_window_limited_us AS peer_receive_window_limited_us,
    peer.busy_us AS peer_busy_us,
    if(there, b.why, hop_why) AS why,
    multiIf(verdict = '', '', if(there, b.bad.end_time <= b.bad.start_time + toIntervalSecond(20), bad.end_time <= bad.start_time + toIntervalSecond(20)), 'sample', 'interval') AS evidence,
    ['client end', 'server end', 'both ends'][bitOr(ends_seen, same * b.ends_seen)] AS seen,
    multiIf(matched = '', [], b.word = '', [], same, [], s.role = 'client',
        [(s.service_name, m.far_label, word, hop_why), (b.far_label, s.other_service_name, b.word, b.why)],
        [(s.other_service_name, b.far_label, b.word, b.why), (m.far_label, s.service_name, word, hop_why)]) AS hops,
    call.trace_id AS trace_id
FROM
(
    SELECT call, s, m, matched, own, far, bad, word, hop_why, ends_seen, b, same, there, if(there, b.word, word) AS verdict, if(empty(far), b.own, far) AS peer
    FROM
    (
        SELECT call, s, m, matched, own, far, bad, word, hop_why, ends_seen, b, same,
            multiIf(b.bad.cause % 99 = 0, 0, bad.cause = 0, 1, b.bad.cause < bad.cause) + (word = '') * same > 0 AS there
        FROM
        (
            SELECT call, s, m, matched, own, far, bad, word, hop_why, ends_seen, b,
                -- Both spans saw the same hop: no proxy stands between them, as far as a span
                -- without an address can tell.
                multiIf(b.word = '', 0, matched = '', has([0, b.far_owner], m.owner), b.owner = m.far_owner) AS same
            FROM
            (
                SELECT call, s, m, matched, own, far, bad, word, hop_why, ends_seen,
                    arrayFirst(y -> (y.span_id = s.other_span_id) > (y.role = s.role), groupArray((call.span_id, s.role, m.owner, m.far_owner, m.far_label, bad, word, hop_why, own, m.rtt_us, ends_seen)) OVER (PARTITION BY call.trace_id, s.edge)) AS b
                FROM
                (
                    SELECT
                        call, s, m, matched, own, far, bad,
                        multiIf(bad.cause % 99 > 0, words[bad.cause], matched != '', 'network clean', '') AS word,
                        if(bad.cause % 99 = 0, '', concat(
                            replaceOne(replaceOne(texts[bad.cause], '{}', toString(round(-bad.less / units[bad.cause], 2))), '{}', toString(round(bad.whole / units[bad.cause], 2))),
                            ' between ', formatDateTime(bad.start_time, '%H:%i:%S'), ' and ', formatDateTime(bad.end_time, '%H:%i:%S'))) AS hop_why,
                        if(s.role = 'client', notEmpty(own) + 2 * notEmpty(far), 2 * notEmpty(own) + notEmpty(far)) AS ends_seen
                    FROM
                    (
                        SELECT
                            call, s, m, matched,
                            if(matched = '', [], m.own_sums) AS own,
                            if(matched = '', [], m.far_sums) AS far,
                            arraySort(arrayFilter(w -> w.cause > 0, [if(matched = '', dns, m.worst), dns]))[1] AS bad
                        FROM
                        (
                            SELECT x.1 AS call, x.2 AS s, x.3 AS m, x.4 AS dns,
                                if((m.rank = 7) * m.servers > 1, '', ['ip and port', 'ip', 'ip', 'name', 'trace edge', 'trace edge', 'port'][m.rank]) AS matched
                            FROM (SELECT arrayJoin(spans) AS x)
                        )
                    )
                )
            )
        )
    )
)
ORDER BY start_time, span_id
{{- end}}
CREATE OR REPLACE VIEW {{.Database}}.trace_network{{.OnCluster}} AS{{template "trace_network" .Thresholds.OneTrace}};

CREATE OR REPLACE VIEW {{.Database}}.trace_network_with{{.OnCluster}} AS{{template "trace_network" .AsParameters.OneTrace}};

CREATE OR REPLACE VIEW {{.Database}}.traces_network{{.OnCluster}} AS{{template "trace_network" .Thresholds.SeveralTraces}};
