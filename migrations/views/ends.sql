-- What trace_network reads: the ends of calls and of connections. A
-- parameterized view is analyzed twice per query, a plain view with a list of columns once:
-- what needs no parameter stands here.
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
{{- /* What trace_network shows of a span. */ -}}
{{- record "span" `
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
    other_span_id = other.span_id
    other_service_name = other.service_name
    other_ip = other.ip
    gap_ns
`}}
CREATE OR REPLACE VIEW {{.Database}}.call_ends{{.OnCluster}}
(
    trace_id String,
    span_id String,
    start_time DateTime64(9, 'UTC'),
    end_time DateTime64(9, 'UTC'),
    ip IPv6,
    peer_ip IPv6,
    pod_uid String,
    cluster String,
    -- That of the span's sockets, '' if it has none.
    role String,
    -- The ports of server and client as the span, or the one at the other end, knows them.
    wanted_port UInt16,
    wanted_client_port UInt16,
    -- The name of the server in the span, and the same with the span's namespace.
    host String,
    full_host String,
    -- The least time in microseconds that trouble must have cost to have harmed the span: none
    -- if it failed without an answer.
    limit_us Float64,
    -- The span at the other end of the call, if the trace has it.
    other_ip IPv6,
    other_pod_uid String,
    -- What is shown of the span, in one column: each column costs the analysis at each level.
    span Tuple(String, LowCardinality(String), LowCardinality(String), Enum8('unspecified' = 0, 'internal' = 1, 'server' = 2, 'client' = 3, 'producer' = 4, 'consumer' = 5),
        DateTime64(9, 'UTC'), Int64, Enum8('unset' = 0, 'ok' = 1, 'error' = 2), IPv6, String, IPv6, UInt16, String, String, String, String, LowCardinality(String), IPv6, Int64)
)
AS SELECT
    trace_id,
    span_id,
    start_time,
    start_time + toIntervalNanosecond(duration_ns) AS end_time,
    ip,
    peer_ip,
    pod_uid,
    cluster,
    role,
    if(kind = 'server', port, peer_port) AS wanted_port,
    if(kind = 'server', peer_port, other.peer_port) AS wanted_client_port,
    host,
    if(position(host, '.') = 0 AND namespace != '', concat(host, '.', namespace), host) AS full_host,
    multiIf(
        -- The callee answered with an error of its own.
        (status_code = 'error') * (other.status_code != 'error') > answered, 0,
        other.span_id = '', if(duration_ns < {{.GapMS}} * 1000000, 9e18, intDiv(duration_ns, 2000)),
        gap_ns < greatest({{.GapMS}} * 1000000, intDiv(greatest(duration_ns, other.duration_ns) * {{.GapPercent}}, 100)), 9e18,
        intDiv(gap_ns, 3000)) AS limit_us,
    other.ip AS other_ip,
    other.pod_uid AS other_pod_uid,
    ({{values "span"}}) AS span
FROM
(
    SELECT *, multiIf(other.span_id = '', 0, kind = 'client', duration_ns - other.duration_ns, other.duration_ns - duration_ns) AS gap_ns
    FROM
    (
        -- A filter on trace_id reaches the table, because the window has it among its keys.
        SELECT *, arrayFirst(x -> x.kind = multiIf(kind = 'server', 'client', kind = 'client', 'server', 'unspecified'), groupArray(({{values "other"}})) OVER (PARTITION BY trace_id, edge)) AS other
        FROM
        (
            SELECT
                trace_id,
                span_id,
                parent_span_id,
                service_name,
                name,
                kind,
                start_time,
                duration_ns,
                status_code,
                ip,
                port,
                peer_ip,
                peer_port,
                namespace,
                simpleJSONExtractString(origin, 'pod_uid') AS pod_uid,
                simpleJSONExtractString(origin, 'cluster') AS cluster,
                -- The sockets of a producer and a consumer are those of a client of the broker.
                multiIf(kind = 'server', 'server', kind IN ('client', 'producer', 'consumer'), 'client', '') AS role,
                -- Both ends of a call have the same.
                if(kind = 'server' AND parent_span_id != '', parent_span_id, span_id) AS edge,
                -- The client may call an answer an error that does not say so itself.
                {{.Answered}} + match(response_code, '^[123]..$') > 0 AS answered,
                -- Without scheme, user, port, path and the suffix of the cluster.
                if(kind = 'server', '', replaceRegexpOne(lower(arrayFirst(x -> x != '', arrayMap(x -> attributes[x],
                    ['server.address', 'net.peer.name', 'network.peer.address', 'net.sock.peer.addr', 'url.full', 'http.url', 'db.connection_string', 'http.host']))),
                    '^(?:[a-z0-9+.-]+://)?(?:[^/@]*@)?(unix:.*|/.*|[^/:]*?)(?:[.]svc(?:[.][^/:]*)?)?(?:[:/].*)?$', '\\1')) AS host
            FROM {{.Spans}}
        )
    )
);


-- The rows of flows, with both ends of the connection in the same words whoever reports it.
-- Ends have the address between the nodes, which is the same for both, their own address, pod
-- and name; the client's also has the address that it called.
CREATE OR REPLACE VIEW {{.Database}}.flow_ends{{.OnCluster}}
(
    time DateTime64(9, 'UTC'),
    start_time DateTime64(9, 'UTC'),
    ip IPv6,
    peer_ip IPv6,
    owner_id UInt64,
    served Bool,
    dns Bool,
    cluster String,
    client Tuple(IPv6, UInt16, IPv6, String, String, IPv6, UInt16),
    server Tuple(IPv6, UInt16, IPv6, String, String, String),
    -- Names of the server, without the suffix of the cluster; the name asked for, if it is DNS.
    names Array(String),
    rtt_us UInt32,
    rtt_min_us UInt32,
    counters Array(UInt64)
)
AS SELECT
    time,
    start_time,
    ip,
    peer_ip,
    cityHash64(agent_id, network_namespace) AS owner_id,
    served,
    protocol = 'dns' AS dns,
    cluster,
    if(served, (wire_peer.1, wire_peer.2, wire_peer.1, peer_pod_uid, peer_label, wire.1, wire.2), (wire.1, wire.2, ip, pod_uid, label, peer_ip, peer_port)) AS client,
    if(served, (wire.1, wire.2, ip, pod_uid, label, pod), (wire_peer.1, wire_peer.2, wire_peer.1, peer_pod_uid, peer_label, peer_pod)) AS server,
    [peer_name, replaceRegexpOne(peer_name, '[.]svc([.].*)?$', ''), concat(if(served, workload, peer_service), '.', if(served, namespace, peer_namespace))] AS names,
    rtt_us,
    rtt_min_us,
    [connect_failures, resets, timeouts, 1, connections, bytes_sent, bytes_received, segments_sent, retransmits, retransmitted_bytes,
        receive_window_limited_us, send_buffer_limited_us, busy_us, refused, accept_queue_full, unread_bytes, greatest(retransmit_timeout_us, 200000 * retransmits),
        rtt_max_us, rtt_usual_us, rtt_longer_us, queue_us,
        query_failures + queries_unanswered, queries, if(query_time_max_us < 100000, 0, query_time_max_us), gave_up,
        -- What longer round trips cost: a window of ten segments takes one, and windows grow.
        rtt_longer_us * (1 + least(intDiv(segments_sent, 10), 3)),
        -- Behind a lost segment the receiver keeps what it cannot hand over yet: a window full of that is the network's.
        -- Waiting for less than what counts as harm is how a large answer arrives.
        receive_window_limited_us * (20 * retransmits <= segments_sent) * (receive_window_limited_us >= {{.GapMS}} * 1000)] AS counters
FROM
(
    SELECT
        *,
        role = 'server' AS served,
        if(translated_port = 0, (ip, port), (translated_ip, translated_port)) AS wire,
        if(translated_peer_port = 0, (peer_ip, peer_port), (translated_peer_ip, translated_peer_port)) AS wire_peer,
        multiIf(rtt_usual_us = 0, 0, rtt_max_us > greatest(3 * rtt_usual_us, rtt_usual_us + 20000), rtt_max_us - rtt_usual_us, 0) AS rtt_longer_us,
        if(pod = '', process, pod) AS label,
        arrayFirst(x -> x != '', [peer_pod, peer_service, peer_name]) AS peer_label
    FROM {{.Flows}}
    WHERE role != 'unknown'
);
