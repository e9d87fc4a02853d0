-- The edges between the ends of requests and connections, one row per edge and minute, as
-- service_network and network_trouble read them.
--
-- An end has the name of a service. If it has no spans, agents know it as a workload, a process or
-- an address. Names are learned from all rows of a minute.
--
-- A filter on minute reaches the tables, because every window and every join has minute among its
-- keys. Above the tables there is arithmetic in place of AND and OR: ClickHouse hashes the arguments
-- of those with everything that they are made of, at every level.
{{- /* What one end counts of its connections. */ -}}
{{- array "cl, sv, c, s" `
    rows = 1
    connections
    connect_failures
    refused
    resets
    timeouts
    gave_up
    bytes_sent
    bytes_received
    segments_sent
    retransmits
    retransmitted_bytes
    receive_window_limited_us
    send_buffer_limited_us
    busy_us
    accept_queue_full
    weight = segments_sent + 1
    rtt = if(rtt_max_us = 0, rtt_us, certain_rtt_us) * (segments_sent + 1)
    usual_weight = (rtt_usual_us > 0) * (segments_sent + 1)
    rtt_usual = rtt_usual_us * (segments_sent + 1)
    slow_rows = slow
    lossy_retransmits = lossy * retransmits
    lossy_segments = lossy * segments_sent
`}}
{{- /* What spans say of requests. */ -}}
{{- array "calls, req" `
    requests = count()
    errors = countIf(failed)
    paired = countIf(callee != '')
    harmed = countIf(harmed)
    broken = countIf(broken)
    unanswered = countIf(unanswered)
`}}
{{- /* The largest values of a flow's own. */ -}}
{{- array "most, mx" `
    unread_bytes = max(unread_bytes)
    rtt_max_us = max(greatest(rtt_max_us, rtt_us))
    queue_us = max(queue_us)
`}}
CREATE OR REPLACE VIEW {{.Database}}.edges{{.OnCluster}}
(
    minute DateTime('UTC'),
    client_service String,
    server_service String,
    -- The addresses of ends that are known by process, name or address only.
    client_address String,
    server_address String,
    calls Array(UInt64),
    served Array(UInt64),
    cl Array(UInt64),
    sv Array(UInt64),
    most Array(UInt64),
    ms Array(Float64),
    server_ms Array(Float64),
    rtt_min_us UInt32,
    accept_queue_full UInt64,
    -- The time of the flows at fault.
    since DateTime64(9, 'UTC'),
    until DateTime64(9, 'UTC'),
    -- The nodes and pods of the connections: client's node, server's node, client's pod, server's
    -- pod, and whether a flow is at fault.
    places Array(Tuple(String, String, String, String, UInt8)),
    -- Nothing but exports of telemetry and probes.
    telemetry UInt8,
    -- The names by which the client knows the server.
    names Array(String),
    -- Names that the client asked for, with queries, failures and the longest time in
    -- microseconds, if that was slow or failed. They have rows without a server.
    dns Array(Tuple(String, UInt64, UInt64, UInt64))
)
AS
WITH
    toIPv6('::') AS unknown,
    -- Addresses by hour: their owner, which is a network namespace that an agent sees, the services
    -- that report spans from any address of that owner, and the service of a pod with one service.
    addresses AS (
        SELECT hour, ip, owner, seen, min(ip) OVER of_owner AS main, groupUniqArrayArray(names) OVER of_owner AS services,
            if(max(pod) OVER of_owner * length(services) = 1, services[1], '') AS only
        FROM
        (
            SELECT hour, ip, groupUniqArrayIf(service, service != '') AS names, max(told) > 0 AS seen, max(told) = 2 AS pod,
                -- 0 and the hash of nothing are no owner; one address may be that of several hosts.
                if(uniqExactIf(owner, owner NOT IN (0, cityHash64('', toUInt64(0)))) = 1, max(owner), cityHash64(ip)) AS owner
            FROM
            (
                SELECT hour, ip, toString(service_name) AS service, toUInt64(0) AS owner, 0 AS told FROM {{.ServiceAddresses}}
                UNION ALL
                SELECT hour, ip, '', owner, if(pod_uid = '', 1, 2) FROM {{.FlowAddresses}}
            )
            GROUP BY hour, ip
        )
        WINDOW of_owner AS (PARTITION BY hour, owner)
    ),
    callers AS (
        SELECT toStartOfMinute(start_time) AS minute, reinterpretAsUInt64(unhex(toString(span_id))) AS call, service_name, ip, peer_ip, peer_port, {{.Word}} AS name,
            duration_ns, status_code = 'error' AS failed, failed AND NOT {{.Answered}} AS unanswered
        FROM {{.Spans}}
        WHERE kind IN ('client', 'producer', 'consumer') AND peer_ip != toIPv6('::')
        UNION ALL
        -- Attributes are large, so they are read only where a name is needed.
        SELECT toStartOfMinute(start_time), reinterpretAsUInt64(unhex(toString(span_id))), service_name, ip, peer_ip, peer_port,
            trimRight(lower(arrayFirst(x -> x != '', [attributes['server.address'], attributes['net.peer.name'], domain(attributes['url.full']), domain(attributes['http.url']), attributes['peer.service']])), '.')::LowCardinality(String),
            duration_ns, status_code = 'error' AS failed, failed AND NOT {{.Answered}} AS unanswered
        FROM {{.Spans}}
        WHERE kind IN ('client', 'producer', 'consumer') AND peer_ip = toIPv6('::')
    ),
    callees AS (
        SELECT toStartOfMinute(start_time) AS minute, reinterpretAsUInt64(unhex(if(parent_span_id = '', toString(span_id), parent_span_id))) AS call, service_name, ip, port, peer_ip,
            duration_ns, status_code = 'error' AS failed
        FROM {{.Spans}}
        WHERE kind = 'server'
    ),
    sources AS (
        -- Requests as their clients see them. Where the trace has the server, at the address that
        -- the client called, names need no address.
        SELECT minute, 'client' AS source, client_ip, server_ip, server_port, caller, callee, name,
            [{{values "calls"}}] AS calls, quantilesTDigestState(0.5, 0.9, 0.99)(toFloat32(duration_ns)) AS durations,
            emptyArrayUInt64() AS cl, emptyArrayUInt64() AS sv, emptyArrayUInt64() AS most, toUInt32(0) AS rtt_min_us,
            {{.Word}} AS client_workload, {{.Word}} AS client_process, {{.Word}} AS server_workload, {{.Word}} AS server_process, toDateTime64(0, 9, 'UTC') AS since, toDateTime64(0, 9, 'UTC') AS until, ('', '', '', '', 0) AS places
        FROM
        (
            SELECT minute, caller, callee, name, duration_ns, failed, unanswered, if(met, toIPv6('::'), ip) AS client_ip, if(met, toIPv6('::'), peer_ip) AS server_ip, if(met, 0, peer_port) AS server_port,
                -- A failure that the server's own span tells is the server's.
                failed AND NOT callee_failed AS broken,
                broken OR callee != '' AND gap_ns > {{.GapMS}} * 1000000 AND 100 * gap_ns > {{.GapPercent}} * duration_ns AS harmed
            FROM
            (
                SELECT ca.minute AS minute, ca.service_name AS caller, ce.service_name AS callee, ca.name AS name, ca.duration_ns AS duration_ns, ca.failed AS failed, ca.unanswered AS unanswered,
                    ca.ip AS ip, ca.peer_ip AS peer_ip, ca.peer_port AS peer_port, ca.duration_ns - ce.duration_ns AS gap_ns, ce.failed AS callee_failed,
                    ce.service_name != '' AND (ca.peer_ip = ce.ip OR ca.peer_ip = toIPv6('::')) AS met
                FROM callers AS ca LEFT ANY JOIN callees AS ce ON ca.minute = ce.minute AND ca.call = ce.call
            )
        )
        GROUP BY minute, client_ip, server_ip, server_port, caller, callee, name
        UNION ALL
        -- Requests as their servers see them.
        SELECT minute, 'server', client_ip, unknown, 0, caller, callee, {{.Word}},
            [count(), countIf(failed)], quantilesTDigestState(0.5, 0.9, 0.99)(toFloat32(duration_ns)),
            emptyArrayUInt64(), emptyArrayUInt64(), emptyArrayUInt64(), 0, {{.Word}}, {{.Word}}, {{.Word}}, {{.Word}}, toDateTime64(0, 9, 'UTC'), toDateTime64(0, 9, 'UTC'), ('', '', '', '', 0)
        FROM
        (
            SELECT ce.minute AS minute, ca.service_name AS caller, ce.service_name AS callee, if(ca.service_name != '', toIPv6('::'), ce.peer_ip) AS client_ip,
                ce.duration_ns AS duration_ns, ce.failed AS failed
            FROM callees AS ce LEFT ANY JOIN callers AS ca ON ca.minute = ce.minute AND ca.call = ce.call
        )
        GROUP BY minute, client_ip, caller, callee
        UNION ALL
        -- Who is called where, and who calls from where.
        SELECT minute, 'callee', unknown, ip, port, {{.Word}}, service_name, {{.Word}},
            emptyArrayUInt64(), arrayReduce('quantilesTDigestState(0.5, 0.9, 0.99)', emptyArrayFloat32()),
            emptyArrayUInt64(), emptyArrayUInt64(), emptyArrayUInt64(), 0, {{.Word}}, {{.Word}}, {{.Word}}, {{.Word}}, toDateTime64(0, 9, 'UTC'), toDateTime64(0, 9, 'UTC'), ('', '', '', '', 0)
        FROM callees
        GROUP BY minute, ip, port, service_name
        UNION ALL
        SELECT minute, 'caller', ip, peer_ip, peer_port, service_name, {{.Word}}, {{.Word}},
            emptyArrayUInt64(), arrayReduce('quantilesTDigestState(0.5, 0.9, 0.99)', emptyArrayFloat32()),
            emptyArrayUInt64(), emptyArrayUInt64(), emptyArrayUInt64(), 0, {{.Word}}, {{.Word}}, {{.Word}}, {{.Word}}, toDateTime64(0, 9, 'UTC'), toDateTime64(0, 9, 'UTC'), ('', '', '', '', 0)
        FROM (SELECT toStartOfMinute(start_time) AS minute, ip, peer_ip, peer_port, service_name FROM {{.Spans}}
            WHERE kind IN ('client', 'producer', 'consumer') AND peer_ip != toIPv6('::'))
        GROUP BY minute, ip, peer_ip, peer_port, service_name
        UNION ALL
        -- Connections, both ends in one row.
        SELECT minute, 'flows', client_ip, server_ip, server_port, {{.Word}}, {{.Word}}, anyIf(peer_name, NOT served AND peer_name != ''),
            emptyArrayUInt64(), arrayReduce('quantilesTDigestState(0.5, 0.9, 0.99)', emptyArrayFloat32()),
            sumForEachIf(counters, NOT served), sumForEachIf(counters, served), [{{values "most"}}], minIf(rtt_min_us, rtt_min_us > 0),
            if(anyIf(own_workload, NOT served AND own_workload != '') != '', anyIf(own_workload, NOT served AND own_workload != ''), anyIf(peer, served AND peer != '')), anyIf(process, NOT served AND process != ''), if(anyIf(own_workload, served AND own_workload != '') != '', anyIf(own_workload, served AND own_workload != ''), anyIf(peer, NOT served AND peer != '')), anyIf(process, served AND process != ''), minIf(start_time, bad), maxIf(time, bad),
            (toString(anyIf(node, NOT served AND node != '')), toString(anyIf(node, served AND node != '')), toString(anyIf(pod, NOT served AND pod != '')), toString(anyIf(pod, served AND pod != '')), max(bad))
        FROM
        (
            SELECT minute, served, process, peer_name, rtt_us, rtt_min_us, rtt_max_us, queue_us, unread_bytes,
                if(workload != '', workload, pod) AS own_workload, multiIf(peer_workload != '', peer_workload, peer_pod != '', peer_pod, peer_service) AS peer,
                -- A translated address stands for what is behind it.
                multiIf(served, if(translated_peer_ip != toIPv6('::'), translated_peer_ip, peer_ip), ip) AS client_ip,
                multiIf(served, ip, translated_peer_ip != toIPv6('::'), translated_peer_ip, peer_ip) AS server_ip,
                multiIf(served, port, translated_peer_port != 0, translated_peer_port, peer_port) AS server_port,
                [{{values "cl"}}]::Array(UInt64) AS counters, start_time, time, node, pod, lossy OR slow OR connect_failures + resets + timeouts > 0 OR unread_bytes > 0 OR 100 * receive_window_limited_us > {{.Thresholds.WindowPercent}} * busy_us AS bad
            FROM
            (
                SELECT toStartOfMinute(time) AS minute, role = 'server' AS served, ip, port, peer_ip, peer_port, peer_name, translated_peer_ip, translated_peer_port,
                    workload, pod, process, peer_workload, peer_pod, peer_service, connections, connect_failures, refused, resets, timeouts, gave_up, bytes_sent, bytes_received,
                    segments_sent, retransmits, retransmitted_bytes, rtt_us, rtt_min_us, rtt_usual_us, rtt_max_us, queue_us, receive_window_limited_us, send_buffer_limited_us, busy_us,
                    unread_bytes, accept_queue_full, start_time, time, node,
                    retransmits > 0 AND 100 * retransmits > {{.Thresholds.RetransmitPercent}} * segments_sent AS lossy,
                    -- What the network surely needed: a process without CPU acknowledges late.
                    least(rtt_us, rtt_max_us) AS certain_rtt_us,
                    rtt_usual_us > 0 AND certain_rtt_us > {{.RTTTimes}} * rtt_usual_us AND certain_rtt_us > rtt_usual_us + {{.GapMS}} * 1000 AS slow
                FROM {{.Flows}}
                WHERE role IN ('client', 'server') AND protocol = 'tcp'
            )
        )
        GROUP BY minute, client_ip, server_ip, server_port
        UNION ALL
        -- Full accept queues of sockets that listen at any address: that of their network
        -- namespace tells whose they are. The count is the sixteenth of an end's.
        SELECT minute, 'flows', unknown, any(its.ip), port, {{.Word}}, {{.Word}}, {{.Word}},
            emptyArrayUInt64(), arrayReduce('quantilesTDigestState(0.5, 0.9, 0.99)', emptyArrayFloat32()),
            emptyArrayUInt64(), arrayPushBack(arrayWithConstant(15, toUInt64(0)), sum(accept_queue_full)), emptyArrayUInt64(), 0, {{.Word}}, {{.Word}}, {{.Word}}, any(process), min(start_time), max(time), ('', '', '', '', 0)
        FROM
        (
            SELECT toStartOfMinute(time) AS minute, toStartOfHour(time) AS hour, cityHash64(agent_id, network_namespace) AS owner, port, process, accept_queue_full, start_time, time
            FROM {{.Flows}}
            WHERE accept_queue_full > 0 AND ip IN (toIPv6('::'), toIPv6('0.0.0.0'))
        ) AS q
        INNER ANY JOIN (SELECT hour, owner, ip FROM {{.FlowAddresses}} WHERE ip NOT IN (toIPv6('::'), toIPv6('0.0.0.0'))) AS its USING (hour, owner)
        GROUP BY minute, owner, port
        UNION ALL
        -- Resolutions of names that were slow or failed.
        SELECT toStartOfMinute(time) AS minute, 'dns', ip, unknown, 53, {{.Word}}, {{.Word}}, trimRight(lower(toString(peer_name)), '.')::LowCardinality(String) AS asked,
            [sum(queries), sum(query_failures + queries_unanswered)], arrayReduce('quantilesTDigestState(0.5, 0.9, 0.99)', emptyArrayFloat32()),
            emptyArrayUInt64(), emptyArrayUInt64(), [0, 0, 0, toUInt64(max(query_time_max_us))], 0, {{.Word}}, {{.Word}}, {{.Word}}, {{.Word}}, min(start_time), max(time), ('', '', '', '', 0)
        FROM {{.Flows}}
        WHERE protocol = 'dns' AND peer_name != '' AND (query_failures + queries_unanswered > 0 OR query_time_max_us >= 100000)
        GROUP BY minute, ip, asked
    ),
    -- Rows of ends whose names need no more than their addresses become one. An end's key is its
    -- service's or its owner's.
    owned AS (
        SELECT minute, source, name, server_port,
            multiIf(caller != '', caller, source IN ('server', 'flows', 'dns'), a.only, '') AS calling, multiIf(callee != '', callee, source IN ('client', 'flows'), b.only, '') AS target_name,
            multiIf(client_ip = unknown, 0, a.only != '', cityHash64(a.only), a.owner != 0, a.owner, cityHash64(client_ip)) AS client_key,
            multiIf(server_ip = unknown, 0, b.only != '', cityHash64(b.only), b.owner != 0, b.owner, cityHash64(server_ip)) AS target_key,
            if(b.only != '', 0, server_port) AS port,
            any(if(a.owner != 0, a.main, client_ip)) AS client_main, any(if(b.owner != 0, b.main, server_ip)) AS target_main,
            any(a.services) AS client_services, any(b.services) AS target_services, max(b.seen) AS server_seen,
            sumForEach(x.calls) AS calls, quantilesTDigestMergeState(0.5, 0.9, 0.99)(x.durations) AS durations, sumForEach(x.cl) AS cl, sumForEach(x.sv) AS sv,
            maxForEach(x.most) AS most, minIf(x.rtt_min_us, x.rtt_min_us > 0) AS rtt_min_us,
            max(x.client_workload) AS client_workload, max(x.client_process) AS client_process, max(x.server_workload) AS server_workload, max(x.server_process) AS server_process, minIf(x.since, x.since > toDateTime64(0, 9, 'UTC')) AS since, max(x.until) AS until,
            min({{.Telemetry}}) AS telemetry,
            groupUniqArrayIf(100)(x.places, x.places.1 || x.places.2 || x.places.3 || x.places.4 != '') AS places
        FROM sources AS x
        LEFT JOIN addresses AS a ON a.hour = toStartOfHour(x.minute) AND a.ip = x.client_ip
        LEFT JOIN addresses AS b ON b.hour = toStartOfHour(x.minute) AND b.ip = x.server_ip
        GROUP BY minute, source, name, server_port, calling, target_name, client_key, target_key, port
    ),
    -- A request that names its server, but no address, went to the end of that name, or to the
    -- only one at that port, among those that its own end has connections to.
    located AS (
        SELECT * EXCEPT (peers, of_name, of_port, at), at.1 AS server_key, at.2 AS called, at.3 AS server_main, at.4 AS server_services
        FROM
        (
            SELECT *, multiIf(length(of_name) = 1, of_name[1], length(of_port) = 1, of_port[1], (target_key, target_name, target_main, target_services)) AS at
            FROM
            (
                SELECT *, arrayDistinct(arrayMap(x -> x.2, arrayFilter(x -> x.1 = name, peers))) AS of_name,
                    -- Nobody reached a server of another name, if all such requests failed.
                    arrayDistinct(arrayMap(x -> x.2, arrayFilter(x -> (calls.requests > calls.errors) + (x.1 = '') + startsWith(concat(x.1, '.'), concat(name, '.')) + startsWith(concat(name, '.'), concat(x.1, '.')) > 0, peers))) AS of_port
                FROM
                (
                    SELECT * EXCEPT (all_peers), if(blind, all_peers, []) AS peers
                    FROM
                    (
                        SELECT *, (source = 'client') * (target_key = 0) * (target_name = '') * (name != '') > 0 AS blind,
                            groupUniqArrayIf(16)((name, (target_key, target_name, target_main, target_services)), (source = 'flows') * (client_key != 0) > 0) OVER (PARTITION BY minute, client_key, server_port) AS all_peers
                        FROM owned
                    )
                )
            )
        )
    ),
    -- What requests say of an end: the services that were called at an address and port, and
    -- those that called it from an address. Behind an address that no agent knows is a
    -- translation; a known one of another service is a proxy, and itself.
    told AS (
        SELECT *,
            groupUniqArrayIf(2)(called, (called != '') * (server_key != 0) * ((source = 'callee') + (source = 'client') * ((server_seen = 0) + has(server_services, called))) > 0) OVER of_server AS callees,
            max(server_workload) OVER of_server AS server_workloads, max(server_process) OVER of_server AS server_processes, max(name) OVER of_server AS server_names,
            sumIf(sv.accept_queue_full, client_key = 0) OVER (PARTITION BY minute, server_key, port) AS accept_queue_full,
            groupUniqArrayIf(2)(calling, source = 'caller') OVER (PARTITION BY minute, client_key, server_key, port) AS callers_here,
            groupUniqArrayIf(2)(called, called != '') OVER (PARTITION BY minute, calling, name, server_port) AS namesakes
        FROM located
        WINDOW of_server AS (PARTITION BY minute, server_key, port)
    ),
    -- An end with several programs: where requests tell the service of one port or process, the
    -- others belong to another program.
    judged AS (
        SELECT *,
            max((source = 'flows') * notEmpty(callees)) OVER (PARTITION BY minute, server_key) AS server_told,
            max((source = 'flows') * notEmpty(callers_here)) OVER of_client AS client_told,
            groupUniqArrayIf(client_process, (source = 'flows') * notEmpty(callers_here) * (client_process != '') > 0) OVER of_client AS told_processes,
            max(client_workload) OVER of_client AS client_workloads
        FROM told
        WINDOW of_client AS (PARTITION BY minute, client_key)
    ),
    named AS (
        SELECT *,
            multiIf(
                calling != '', calling,
                length(callers_here) = 1, callers_here[1],
                length(callers_here) > 1, 'several services',
                (client_workloads != '') * (length(client_services) = 1) > 0, client_services[1],
                client_workloads != '', client_workloads,
                (length(client_services) = 1) * ((client_told = 0) + (client_process = '') + has(told_processes, client_process)) > 0, client_services[1],
                (length(client_services) > 1) * ((client_told = 0) + (client_process = '')) > 0, 'several services',
                '') AS client_name,
            multiIf(
                called != '', called,
                length(callees) = 1, callees[1],
                length(callees) > 1, 'several services',
                blind * length(namesakes) = 1, namesakes[1],
                blind * length(namesakes) > 1, 'several services',
                (server_workloads != '') * length(server_services) = 1, server_services[1],
                server_workloads != '', server_workloads,
                (length(server_services) = 1) * ((server_told = 0) + (server_port = 0) + (server_processes = '')) > 0, server_services[1],
                (length(server_services) > 1) * (server_told = 0) > 0, 'several services',
                '') AS server_name
        FROM judged
        WHERE multiIf(source IN ('flows', 'dns'), client_key != 0, source IN ('client', 'server'))
    ),
    ended AS (
        SELECT *, (client_key != 0) * (client_name = '') * ((client_process != '') + {{.Private "client_main"}}) > 0 AS client_alone, (server_key != 0) * (server_name = '') > 0 AS server_alone,
            replaceOne(toString(client_main), '::ffff:', '') AS client_text, replaceOne(toString(server_main), '::ffff:', '') AS server_text
        FROM named
    )
SELECT minute, ends.1 AS client_service, ends.2 AS server_service, ends.3 AS client_address, ends.4 AS server_address,
    sumForEachIf(x.calls, source = 'client') AS calls, sumForEachIf(x.calls, source = 'server') AS served, sumForEach(x.cl) AS cl, sumForEach(x.sv) AS sv, maxForEach(x.most) AS most,
    -- Quantiles of nothing are 0.
    arrayMap(q -> ifNotFinite(q, 0) / 1e6, quantilesTDigestMergeIf(0.5, 0.9, 0.99)(durations, source = 'client')) AS ms,
    arrayMap(q -> ifNotFinite(q, 0) / 1e6, quantilesTDigestMergeIf(0.5, 0.9, 0.99)(durations, source = 'server')) AS server_ms,
    minIf(x.rtt_min_us, x.rtt_min_us > 0) AS rtt_min_us, max(x.accept_queue_full) AS accept_queue_full, minIf(x.since, x.since > toDateTime64(0, 9, 'UTC')) AS since, max(x.until) AS until, groupUniqArrayArray(100)(x.places) AS places,
    minIf(x.telemetry, source = 'flows') AS telemetry, groupUniqArrayIf(16)(toString(x.name), x.name != '') AS names,
    groupArrayIf(16)((toString(x.name), x.calls[1], x.calls[2], x.most[4]), source = 'dns') AS dns
FROM
(
    -- One key of four names: every expression is compared with every key.
    SELECT minute, source, name, calls, durations, cl, sv, most, rtt_min_us, accept_queue_full,
        (multiIf(client_name != '', client_name, client_process != '', client_process, client_alone, client_text, client_key != 0, 'internet', ''),
        multiIf(source = 'dns', '', server_name != '', server_name, server_processes != '', server_processes, name != '', name, server_names != '', server_names, server_alone, server_text, ''),
        if(client_alone, client_text, ''), if(server_alone, server_text, '')) AS ends, since, until, places, telemetry
    FROM ended
) AS x
WHERE (ends.1 != '') * ((ends.2 != '') + (source = 'dns')) > 0
GROUP BY minute, ends;
