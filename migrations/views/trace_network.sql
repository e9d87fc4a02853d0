-- The spans of one trace, each with the flow data of its own connection. Parameterized views have no
-- defaults, so there are two: one with the thresholds written in, one with all of them to be given.
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

{{- /* What a span needs to know of the one at the other end of its call. */ -}}
{{- record "other, x" `
    span_id
    kind
    service_name
    ip
    pod_uid
    peer_port
    duration_ns
    status_code
`}}

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
of clients; they see addresses as translated. */ -}}
{{- record "places" `
    owners
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

{{- /* The worst flow: what is wrong with it (a position in words), and the numbers that show it. */ -}}
{{- record "worst, bad, decisive, w" `
    cause
    less
    whole
    start_time
    end_time
`}}

{{- /* What was found for a span, for the one at the other end. */ -}}
{{- record "b, y" `
    span_id
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
{{- /* A span of the trace. */ -}}
{{- record "s" `
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
    other
    gap_ns
    owner
    reported
`}}
{{- /* A span with what was found for it. */ -}}
{{- record "m" `
    span_id
    s
    rank
    worst
    dns
    servers
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
    ['connect refused', 'connect failed', 'accept queue full', 'reset', 'timed out', 'receiver''s window full', 'receiver does not read', 'retransmission', 'slow handshake',
        'slow queue', 'slow network', 'DNS failed', 'slow DNS', 'network clean'] AS words,
    [14, 1, 15, 2, 3, 11, 16, 9, 9, 21, 18, 22, 24, 25] AS amounts,
    [1, 1, 1, 1, 1, 13, 1, 8, 8, 18, 19, 23, 23, 1] AS wholes,
    [1, 1, 1, 1, 1, 1000, 1, 1, 1, 1000, 1000, 1, 1000, 1] AS units,
    ['{} connects refused: nothing listens there', '{} connects without an answer', 'the accept queue was full at {} looks', '{} connections reset', '{} connections timed out',
        'waited {} of {} ms for the receiver to read', '{} bytes received and not read', '{} of {} segments sent again', '{} segments of the handshake sent again',
        'rtt {} ms longer by a queue of its own bytes, {} in all', 'rtt {} ms, usually {} ms', '{} of {} queries failed', 'a query took {} ms', 'the client gave up {} connections'] AS texts,
    -- Scalars are computed before the rest: they find the granules of the flow data.
    (
        SELECT (min(start_time) - slack, max(end_time) + slack, groupUniqArrayIf(ip, ip != unknown), groupUniqArrayIf(pod_uid, pod_uid != ''), groupUniqArray(peer_ip))
        FROM {{.Database}}.call_ends
        WHERE trace_id = {trace_id:String}
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
        SELECT (owners, arrayConcat(arrayFlatten(owners.ips), unspecified), arrayConcat(groupUniqArrayArray([peer_ip, translated_peer_ip]), read.peers), groupUniqArray(translated_ip), read.earliest, read.latest)
        FROM {{.Flows}}
        WHERE time >= read.earliest AND time <= read.latest + longest AND start_time <= read.latest AND role = 'client' AND has(arrayFlatten(owners.ips), ip)
    ) AS places,
    -- What was found, computed first as well: the analysis of a function visits all that is below it.
    (
        SELECT groupArray(({{values "m"}}))
        FROM
        (
            SELECT *, anyIf(worst, rank = 90) OVER (PARTITION BY span_id) AS dns
            FROM
            (
                SELECT
                    span_id, any(({{values "s"}})) AS s, rank,
                    min((multiIf(rank = 99, 99, cause = 0, 99, cause), -toInt64(counters[amounts[cause]]), counters[wholes[cause]], flow_start, flow_end)) AS worst,
                    uniqExact(callee.ip) AS servers,
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
                        *,
                        served = (role = 'server') AS is_own,
                        -- What is wrong: the first cause that is above its threshold and can
                        -- have cost the span that much time.
                        arrayFirstIndex((n, d, most, also, cost, scale) -> (counters[n] > most * counters[d]) * (counters[also] > 0) * (counters[cost] * scale >= limit_us) > 0,
                            [14, 1, 15, 2, 3, 11, 16, 9, 9, 21, 20, 22, 24, 25], [1, 1, 1, 1, 1, 13, 1, 8, 8, 1, 1, 23, 1, 1],
                            [0, 0, 0, 0, 0, {{.WindowPercent}} / 100, 0, {{.RetransmitPercent}} / 100, {{.RetransmitPercent}} / 100, 0, 0, 0.99, 0, 0],
                            [14, 1, 15, 2, 3, 11, 16, 10, 9, 20, 20, 22, 24, 25], [14, 1, 15, 2, 3, 11, 16, 17, 9, 21, 20, 22, 24, 25],
                            [1e10, 1e10, 1e10, 1e10, 1e10, 1, 1e10, 1, 1e6, 1, 1, 0, 1, 0]) AS cause,
                        multiIf(
                            fits = 0, 99,
                            dns, if(named, 90, 99),
                            caller.wire_ip = unknown, if(on_port * (role = 'server') > 0, 90, 99),
                            to_peer * on_connection > 0, 1,
                            to_peer * on_port > 0, if(peer_port * (role = 'client') > 0, 1, 2),
                            to_peer * (role = 'server') > 0, 3,
                            named * on_port > 0, 4,
                            side.far_owner * (side.far_owner = other_owner) > 0, if(on_port, 5, 6),
                            (peer_ip = unknown) * wanted_port * on_port > 0, 7,
                            99) AS rank
                    FROM
                    (
                        SELECT
                            *,
                            -- A row ends with its connection: what cut it off after the span did
                            -- the span no harm.
                            arrayMap((x, last) -> x * (last <= (flow_end <= end_time + slack)), arrayResize(flow_counters, 25),
                                [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]) AS counters,
                            (side.owner > 0) * (flow_start <= end_time + slack) * (flow_end >= start_time - slack)
                                * multiIf(pod_uid = '', 1, side.pod_uid = '', 1, pod_uid = side.pod_uid) * multiIf(cluster = '', 1, flow_cluster = '', 1, cluster = flow_cluster) AS fits,
                            has(side.far_ips, peer_ip) AS to_peer,
                            wanted_client_port * (wanted_client_port = caller.wire_port) > 0 AS on_connection,
                            multiIf(wanted_port = 0, 1, callee.wire_port = 0, 1, has([caller.called_port, callee.wire_port], wanted_port)) AS on_port,
                            multiIf(host = '', 0, arrayExists(x -> (x = host) + startsWith(concat(x, '.'), concat(full_host, '.')) > 0, known_names), 1,
                                callee.pod = '', 0, startsWith(concat(host, '.'), concat(callee.pod, '.'))) AS named
                        FROM
                        (
                            SELECT
                                *,
                                -- The least time in microseconds that trouble must have cost to have
                                -- harmed the span: none if it failed without an answer.
                                multiIf(
                                    (status_code = 'error') * (other.status_code != 'error') > answered, 0,
                                    other.span_id = '', if(duration_ns < {{.GapMS}} * 1000000, 9e18, intDiv(duration_ns, 2000)),
                                    gap_ns < greatest({{.GapMS}} * 1000000, intDiv(greatest(duration_ns, other.duration_ns) * {{.GapPercent}}, 100)), 9e18,
                                    intDiv(gap_ns, 3000)) AS limit_us,
                                arrayFirstIndex(o -> has(o.ips, ip) + has(o.pods, pod_uid) > 0, owners) AS owner,
                                arrayFirstIndex(o -> has(o.ips, other.ip) + has(o.pods, other.pod_uid) > 0, owners) AS other_owner,
                                arrayExists(o -> o.id * (has(o.ips, ip) + has(o.pods, pod_uid)) > 0, owners) AS reported
                            FROM
                            (
                                SELECT
                                    *,
                                    if(role = 'server', peer_port, other.peer_port) AS wanted_client_port,
                                    multiIf(other.span_id = '', 0, kind = 'client', duration_ns - other.duration_ns, other.duration_ns - duration_ns) AS gap_ns
                                FROM
                                (
                                    SELECT
                                        *,
                                        arrayFirst(x -> x.kind = multiIf(kind = 'server', 'client', kind = 'client', 'server', 'unspecified'),
                                            groupArray(({{values "other"}})) OVER (PARTITION BY edge)) AS other
                                    FROM {{.Database}}.call_ends
                                    WHERE trace_id = {trace_id:String}
                                )
                            )
                        ) AS c
                        LEFT JOIN
                        (
                            SELECT *, side, side.role AS end_role, side.owner AS end_owner
                            FROM
                            (
                                SELECT
                                    time AS flow_end, start_time AS flow_start, served, dns, cluster AS flow_cluster, rtt_us AS flow_rtt_us, rtt_min_us AS flow_rtt_min_us, counters AS flow_counters,
                                    -- Each end knows itself best.
                                    argMin(client, served) OVER w AS caller,
                                    argMax(server, served) OVER w AS callee,
                                    argMin(arrayFirstIndex(o -> (o.id = owner_id) * (1 - served) + has(o.ips, client.ip) > 0, places.owners), served) OVER w AS client_owner,
                                    argMax(arrayFirstIndex(o -> (o.id = owner_id) * served + has(o.ips, server.ip) > 0, places.owners), served) OVER w AS server_owner,
                                    groupUniqArrayArray(names) OVER w AS known_names
                                FROM {{.Database}}.flow_ends
                                WHERE time >= places.earliest AND time <= places.latest + longest AND start_time <= places.latest
                                    AND (has(places.own, ip) OR has(places.far, ip) AND has(arrayConcat(places.own, places.translated), peer_ip))
                                WINDOW w AS (PARTITION BY client.1, client.2, server.1, server.2, if(dns, names, []))
                            )
                            ARRAY JOIN
                                [('client', client_owner, server_owner, [caller.called_ip, callee.wire_ip, callee.ip], caller.pod_uid, callee.label),
                                 ('server', server_owner, client_owner, [caller.wire_ip, caller.ip, caller.wire_ip], callee.pod_uid, caller.label)] AS side
                        ) AS f ON (end_owner, end_role) = (owner, role)
                    )
                )
                GROUP BY span_id, rank
            )
            ORDER BY rank
            LIMIT 1 BY span_id
        )
    ) AS found
SELECT
    span_id,
    parent_span_id,
    service_name,
    name,
    kind,
    start_time,
    duration_ns,
    status_code,
    ip,
    if(named_ip = unknown, other.ip, named_ip) AS peer_ip,
    peer_port,
    other.span_id AS peer_span_id,
    other.service_name AS peer_service_name,
    gap_ns,
    matched,
    multiIf(
        matched != '', '',
        role = '', 'the span is no call over a network',
        bad.cause = 12, 'the name was not resolved',
        match(host, '^(unix:|/)'), 'a UNIX socket: it is no network',
        match(concat(host, ' ', IPv6NumToString(named_ip)), '^localhost |^127[.]| ::ffff:127[.]| ::1$'), 'loopback: the connection does not leave the host or pod',
        (ip = unknown) * (pod_uid = '') > 0, 'no address: the resource says neither pod nor IP',
        rank = 7, 'several peers are possible: the span names none of them',
        (named_ip = unknown) * (host = '') * (other.ip = unknown) > 0, 'no peer address: neither the span nor the trace says it',
        NOT reported, 'no flow data of that address: no agent on that node',
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
    notEmpty(own) * own_rtt_us AS rtt_us,
    notEmpty(own) * own_rtt_min_us AS rtt_min_us,
    own.receive_window_limited_us AS receive_window_limited_us,
    own.send_buffer_limited_us AS send_buffer_limited_us,
    own.busy_us AS busy_us,
    peer.resets AS peer_resets,
    peer.segments_sent AS peer_segments_sent,
    peer.retransmits AS peer_retransmits,
    notEmpty(peer) * if(notEmpty(far), far_rtt_us, b.rtt_us) AS peer_rtt_us,
    peer.receive_window_limited_us AS peer_receive_window_limited_us,
    peer.busy_us AS peer_busy_us,
    if(there, b.why, hop_why) AS why,
    multiIf(verdict = '', '', decisive.end_time <= decisive.start_time + toIntervalSecond(20), 'sample', 'interval') AS evidence,
    ['client end', 'server end', 'both ends'][bitOr(ends_seen, same * b.ends_seen)] AS seen,
    multiIf(matched = '', [], b.word = '', [], same, [], role = 'client',
        [(service_name, far_label, word, hop_why), (b.far_label, other.service_name, b.word, b.why)],
        [(other.service_name, b.far_label, b.word, b.why), (far_label, service_name, word, hop_why)]) AS hops
FROM
(
    SELECT *, if(there, b.word, word) AS verdict, if(there, b.bad, bad) AS decisive
    FROM
    (
        SELECT *, worse_there + (word = '') * same > 0 AS there
        FROM
        (
            SELECT
                *,
                if(empty(far), b.own, far) AS peer,
                multiIf(b.bad.cause % 99 = 0, 0, bad.cause = 0, 1, b.bad.cause < bad.cause) AS worse_there,
                -- Both spans saw the same hop: no proxy stands between them.
                multiIf(b.word = '', 0, matched = '', b.far_owner = owner, far_owner = b.owner) AS same
            FROM
            (
                SELECT *, arrayFirst(y -> y.span_id = other.span_id,
                    groupArray((span_id, owner, far_owner, far_label, bad, word, hop_why, own, own_rtt_us, ends_seen)) OVER (PARTITION BY edge)) AS b
                FROM
                (
                    SELECT
                        *,
                        multiIf(bad.cause % 99 > 0, words[bad.cause], matched != '', 'network clean', '') AS word,
                        if(bad.cause % 99 = 0, '', concat(
                            replaceOne(replaceOne(texts[bad.cause], '{}', toString(round(-bad.less / units[bad.cause], 2))), '{}', toString(round(bad.whole / units[bad.cause], 2))),
                            ' between ', formatDateTime(bad.start_time, '%H:%i:%S'), ' and ', formatDateTime(bad.end_time, '%H:%i:%S'))) AS hop_why,
                        if(role = 'client', notEmpty(own) + 2 * notEmpty(far), 2 * notEmpty(own) + notEmpty(far)) AS ends_seen
                    FROM
                    (
                        SELECT
                            *,
                            if(matched = '', [], own_sums) AS own,
                            if(matched = '', [], far_sums) AS far,
                            arraySort(arrayFilter(w -> w.cause > 0, [if(matched = '', dns, worst), dns]))[1] AS bad
                        FROM
                        (
                            SELECT
                                m.span_id AS span_id, m.s.parent_span_id AS parent_span_id, m.s.service_name AS service_name, m.s.name AS name, m.s.kind AS kind, m.s.start_time AS
                                start_time, m.s.duration_ns AS duration_ns, m.s.status_code AS status_code, m.s.ip AS ip, m.s.pod_uid AS pod_uid, m.s.peer_ip AS named_ip,
                                m.s.peer_port AS peer_port, m.s.role AS role, m.s.edge AS edge, m.s.host AS host, m.s.other AS other, m.s.gap_ns AS gap_ns, m.s.owner AS owner,
                                m.s.reported AS reported, m.rank AS rank, m.worst AS worst, m.dns AS dns, m.far_owner AS far_owner, m.far_label AS far_label, m.own_sums AS own_sums,
                                m.far_sums AS far_sums, m.rtt_us AS own_rtt_us, m.rtt_min_us AS own_rtt_min_us, m.far_rtt_us AS far_rtt_us,
                                if((m.rank = 7) * m.servers > 1, '', ['ip and port', 'ip', 'ip', 'name', 'trace edge', 'trace edge', 'port'][m.rank]) AS matched
                            FROM (SELECT arrayJoin(found) AS m)
                        )
                    )
                )
            )
        )
    )
)
ORDER BY start_time, span_id
{{- end}}
CREATE OR REPLACE VIEW {{.Database}}.trace_network{{.OnCluster}} AS{{template "trace_network" .Thresholds}};

CREATE OR REPLACE VIEW {{.Database}}.trace_network_with{{.OnCluster}} AS{{template "trace_network" .AsParameters}};
