-- The edges of the last minutes with network problems, worst first. Each is judged by its worst
-- minute: harm first, then the cause.
{{- /* The arrays of edges.sql. */ -}}
{{- array "cl, sv" `
    rows
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
    weight
    rtt
    usual_weight
    rtt_usual
    slow_rows
    lossy_retransmits
    lossy_segments
`}}
{{- array "calls" `
    requests
    errors
    paired
    harmed
    broken
    unanswered
`}}
{{- array "most" `
    unread_bytes
    rtt_max_us
    queue_us
`}}
{{- define "network_trouble"}}
WITH
    -- An edge in one minute. Spans and flows of one event may differ by a minute or two: a flow is
    -- known at its end, a span by its start.
    minutes AS (
        SELECT * EXCEPT (ms, server_ms), ms[1] AS p50_ms, ms[3] AS p99_ms, server_ms[3] AS server_p99_ms,
            greatest(cl.connections, sv.connections) AS connections, greatest(cl.connect_failures, sv.connect_failures) AS connect_failures,
            greatest(cl.resets, sv.resets) AS resets, greatest(cl.timeouts, sv.timeouts) AS timeouts,
            cl.segments_sent + sv.segments_sent AS segments_sent, cl.retransmits + sv.retransmits AS retransmits, cl.retransmitted_bytes + sv.retransmitted_bytes AS retransmitted_bytes,
            cl.lossy_retransmits + sv.lossy_retransmits AS lossy_retransmits, cl.lossy_segments + sv.lossy_segments AS lossy_segments,
            cl.receive_window_limited_us + sv.receive_window_limited_us AS receive_window_limited_us, cl.busy_us + sv.busy_us AS busy_us,
            (cl.rtt + sv.rtt) / greatest(cl.weight + sv.weight, 1) AS rtt_us, (cl.rtt_usual + sv.rtt_usual) / greatest(cl.usual_weight + sv.usual_weight, 1) AS rtt_usual_us,
            cl.rows + sv.rows AS rows, cl.slow_rows + sv.slow_rows AS slow_rows
        FROM {{.Database}}.edges
        WHERE minute >= now() - toIntervalMinute({minutes:UInt32})
    ),
    around AS (
        SELECT *,
            sum(calls.requests) OVER edge > 0 AS traced, quantileExactIf(0.5)(p50_ms, p50_ms > 0) OVER edge AS usual_ms,
            sum(calls.requests) OVER near AS requests_near, sum(calls.unanswered) OVER near AS unanswered_near, sum(calls.broken) OVER near AS broken_near, sum(calls.harmed) OVER near AS harmed_near,
            max((calls.requests > calls.paired) * p99_ms) OVER near AS alone_ms, max((calls.requests > 2 * calls.paired) * p50_ms) OVER near AS alone_p50_ms, toUInt64(sum(calls.requests - calls.paired) OVER near) AS alone_near, max(accept_queue_full) OVER near AS queue_full_near,
            groupArrayArray(64)(dns) OVER (PARTITION BY client_service, client_address ORDER BY minute RANGE BETWEEN 60 PRECEDING AND 60 FOLLOWING) AS dns_near
        FROM minutes
        WINDOW edge AS (PARTITION BY client_service, server_service, client_address, server_address),
            near AS (PARTITION BY client_service, server_service, client_address, server_address ORDER BY minute RANGE BETWEEN 120 PRECEDING AND 60 FOLLOWING)
    ),
    harmed AS (
        SELECT *, harmed_near + (alone_ms > greatest({{.SlowTimes}} * usual_ms, usual_ms + {{.GapMS}})) AS harm, connect_failures - cl.refused AS swallowed,
            -- Names are compared label by label: a search list may have added some.
            arrayFilter(d -> arrayExists(n -> startsWith(concat(d.1, '.'), concat(n, '.')), names), dns_near) AS asked,
            arraySum(d -> d.3, asked) AS failed_queries, arrayMax(d -> d.4, arrayPushBack(asked, ('', 0, 0, 0))) AS query_us,
            arraySum(d -> (d.4 >= 100000) * d.2, asked) AS slow_queries,
            -- The round trips of many flows are longer, by a queue of their own bytes or otherwise. Beside
            -- a sidecar, two of three connections of a request stay in their pod. Where most requests have
            -- no span of the server, that is harm if it is half of what they took: all may be slow.
            (alone_p50_ms > 0) * (2 * (rtt_us - rtt_usual_us) >= 1000 * alone_p50_ms) AS far_alone,
            (slow_rows > 0) * (slow_rows * if(traced, 3, 2) >= rows) * (rtt_us > {{.RTTTimes}} * rtt_usual_us) * (rtt_us > rtt_usual_us + 2 * {{.GapMS}} * 1000)
                * if(traced, (harm > 0) + far_alone > 0, 1) * if(2 * most.queue_us > rtt_us - rtt_usual_us, 2, 1) AS slower,
            (slower > 0) * (harm = 0) * alone_near AS far_near
        FROM around
        WHERE server_service != ''
    ),
    judged AS (
        SELECT *,
            multiIf(
                (cl.refused > 0) * if(traced, broken_near > 0, (cl.refused >= {{.FewFailures}}) * (10 * cl.refused >= connections)) > 0, 'connect refused',
                (queue_full_near > 0) * ((swallowed > 0) + (accept_queue_full > 0)) * if(traced, harm > 0, 1) > 0, 'accept queue full',
                (swallowed > 0) * if(traced, harm > 0, (swallowed >= {{.FewFailures}}) * (10 * swallowed >= connections)) > 0, 'connect failed',
                -- Clients that give up on a slow network reset connections, too.
                (resets > 0) * if(traced, (unanswered_near > 0) * (4 * if(slower > 0, resets, greatest(resets, unanswered_near)) >= harmed_near), (resets >= {{.FewFailures}}) * (20 * resets >= connections) * (cl.bytes_sent + sv.bytes_received > 0)) > 0, 'reset',
                -- A connection may end with one request or many: those that the server did not fail count too.
                (timeouts > 0) * if(traced, (harm > 0) * (4 * greatest(timeouts, broken_near) >= harmed_near), 1) > 0, 'timed out',
                (100 * receive_window_limited_us > {{.WindowPercent}} * busy_us) * (20 * lossy_retransmits <= lossy_segments) * traced * (harm > 0) > 0, 'receiver''s window full',
                slower = 2, 'slow queue',
                (most.unread_bytes > 0) * traced * (harm > 0) > 0, 'receiver does not read',
                -- Few retransmissions do not explain what longer round trips do to many.
                if(traced, (harm > 0) * ((100 * retransmits > {{.RetransmitPercent}} * segments_sent) + (slower = 0) * (lossy_retransmits >= {{.FewFailures}})),
                    (100 * retransmits > {{.RetransmitPercent}} * segments_sent) * (retransmits >= {{.FewFailures}})) > 0,
                    if(retransmitted_bytes > 0, 'retransmission', 'slow handshake'),
                slower = 1, 'slow network',
                (failed_queries > 0) * traced * (broken_near > 0) > 0, 'DNS failed',
                -- One query that took little is not what harmed many requests.
                (query_us >= 100000) * traced * (harm > 0) * ((10 * slow_queries >= requests_near) + (query_us >= 1000000)) > 0, 'slow DNS',
                -- Few of the harmed requests failed so, and nothing else harmed the others.
                (resets > 0) * traced * (unanswered_near > 0) > 0, 'reset',
                (timeouts > 0) * (harm > 0) > 0, 'timed out',
                '') AS verdict
        FROM harmed
    ),
    explained AS (
        SELECT *, (verdict != '', harmed_near + far_near, connect_failures + resets + timeouts, retransmits) AS weight,
            -- A flow at fault names the time; otherwise it is the minute.
            formatDateTime(if(since > toDateTime64(0, 9, 'UTC'), toDateTime(since, 'UTC'), minute), '%H:%i:%S') AS from_time,
            formatDateTime(if(since > toDateTime64(0, 9, 'UTC'), toDateTime(until, 'UTC'), minute + 60), '%H:%i:%S') AS to_time,
            concat(
                multiIf(
                    verdict = 'connect refused', concat(toString(cl.refused), ' of ', toString(connections + connect_failures), ' connection attempts refused'),
                    verdict = 'accept queue full', concat('looks at a full accept queue: ', toString(queue_full_near)),
                    verdict = 'connect failed', concat(toString(swallowed), ' of ', toString(connections + connect_failures), ' connection attempts unanswered'),
                    verdict = 'reset', concat('connections reset: ', toString(resets)),
                    verdict = 'timed out', concat('connections timed out: ', toString(timeouts)),
                    verdict = 'receiver''s window full', concat('waited ', toString(intDiv(receive_window_limited_us, 1000)), ' of ', toString(intDiv(busy_us, 1000)), ' ms for the receiver to read'),
                    verdict = 'receiver does not read', concat(toString(most.unread_bytes), ' bytes received and not read'),
                    verdict IN ('slow network', 'slow queue'), concat('rtt ', toString(round(rtt_us / 1000, 2)), ' ms, usually ', toString(round(rtt_usual_us / 1000, 2)), ' ms'),
                    verdict = 'DNS failed', concat('failed queries of ', asked[1].1, ': ', toString(failed_queries)),
                    verdict = 'slow DNS', concat('a query of ', asked[1].1, ' took ', toString(round(query_us / 1000, 2)), ' ms'),
                    lossy_segments > 0, concat(toString(lossy_retransmits), ' of ', toString(lossy_segments), ' segments sent again'),
                    concat(toString(retransmits), ' of ', toString(segments_sent), ' segments sent again')),
                ' between ', from_time, ' and ', to_time,
                multiIf(traced = 0, '', harmed_near > 0, concat(', requests slow or failed: ', toString(harmed_near)),
                    verdict = 'reset', concat(', requests failed without an answer: ', toString(unanswered_near)),
                    harm = 0, concat(', half of the requests took ', toString(round(alone_p50_ms, 1)), ' ms or more'),
                    concat(', the slowest requests took ', toString(round(alone_ms, 1)), ' ms, usually ', toString(round(usual_ms, 1)), ' ms'))) AS why
        FROM judged
    ),
    edges AS (
        SELECT client_service, server_service, client_address, server_address, max(verdict != '') AS bad, min(telemetry) AS telemetry,
            argMax((verdict, why, minute), weight) AS worst,
            sum(calls.requests) AS requests, sum(calls.errors) AS errors, greatest(sum(calls.harmed), max(far_near)) AS harmed, max(p99_ms) AS p99_ms, max(server_p99_ms) AS server_p99_ms,
            sum(connections) AS connections, sum(connect_failures) AS connect_failures, sum(resets) AS resets, sum(timeouts) AS timeouts,
            sum(retransmits) AS retransmits, sum(segments_sent) AS segments_sent, max(rtt_us) AS rtt_us, max(rtt_usual_us) AS rtt_usual_us,
            sum(receive_window_limited_us) AS receive_window_limited_us, sum(busy_us) AS busy_us,
            groupUniqArrayArrayIf(arrayMap(p -> (p.1, p.2, p.3, p.4), arrayFilter(p -> p.5, places)), verdict != '') AS bad_places,
            groupUniqArrayArray(arrayMap(p -> (p.1, p.2, p.3, p.4), places)) AS all_places
        FROM explained
        GROUP BY client_service, server_service, client_address, server_address
        HAVING (telemetry = 0) + (requests > 0) > 0
    ),
    -- All edges in one row, so that each can be compared with the others.
    together AS (
        SELECT groupArray((bad, bad_places, (client_service, server_service, client_address, server_address, worst, requests, errors, harmed, p99_ms, server_p99_ms,
                connections, connect_failures, resets, timeouts, retransmits, segments_sent, rtt_us, rtt_usual_us, receive_window_limited_us, busy_us))) AS every,
            arrayFlatten(groupArray(arrayMap(p -> (p, has(bad_places, p)), all_places))) AS hops
        FROM edges
    ),
    -- A node or a pod is at fault if it has at least three bad connections between ends, most of
    -- its own are bad, they lead to at least two others, and most of the rest is well.
    suspected AS (
        SELECT every, hops, arrayFilter(n -> n.2 != '', arrayDistinct(arrayFlatten(arrayMap(h -> if(h.2, [('node', h.1.1), ('node', h.1.2), ('pod', h.1.3), ('pod', h.1.4)], []), hops)))) AS suspects
        FROM together
    ),
    blamed AS (
        SELECT every, suspects, arrayMap(n -> arrayFilter(h -> has(if(n.1 = 'node', [h.1.1, h.1.2], [h.1.3, h.1.4]), n.2), hops), suspects) AS their_hops,
            arrayCount(h -> h.2, hops) AS bad_hops, length(hops) AS all_hops
        FROM suspected
    ),
    compared AS (
        SELECT every, bad_hops, all_hops, arrayMap((n, own) -> (n, length(own), arrayCount(h -> h.2, own),
                length(arrayDistinct(arrayFilter(o -> o != n.2, arrayFlatten(arrayMap(h -> if(h.2, if(n.1 = 'node', [h.1.1, h.1.2], [h.1.3, h.1.4]), []), own)))))), suspects, their_hops) AS counts
        FROM blamed
    ),
    culprits AS (
        SELECT arrayJoin(arrayFilter(e -> e.1, every)) AS e,
            arrayMap(x -> x.1, arrayFilter(x -> (x.3 >= 3) * (10 * x.3 >= 7 * x.2) * (all_hops > x.2) * (10 * (bad_hops - x.3) <= 2 * (all_hops - x.2)) * (x.4 >= 2) > 0, counts)) AS guilty
        FROM compared
    ),
    placed AS (
        SELECT e.3 AS v, arrayFirst(n -> arrayAll(p -> has(if(n.1 = 'node', [p.1, p.2], [p.3, p.4]), n.2), e.2) * notEmpty(e.2) > 0, guilty) AS place FROM culprits
    ),
    lines AS (
        SELECT v, place.1 AS scope, if(place.2 != '', (concat(place.1, ' ', place.2), 'all', '', ''), (v.1, v.2, v.3, v.4)) AS ends FROM placed
    ),
    -- The counters of a line, in the order of the edges' own.
    summed AS (
        SELECT ends, count() AS n, argMax((v.5, v.1, v.2), v.8) AS worst, sumForEach([v.6, v.7, v.8, v.11, v.12, v.13, v.14, v.15, v.16, v.19, v.20]) AS sums,
            maxForEach([v.9, v.10, v.17, v.18]) AS most, any(scope) AS scope
        FROM lines
        GROUP BY ends
    )
SELECT ends.1 AS client_service, ends.2 AS server_service, worst.1.1 AS verdict, sums[1] AS requests, sums[2] AS errors, most[1] AS p99_ms, most[2] AS server_p99_ms,
    sums[4] AS connections, sums[5] AS connect_failures, sums[6] AS resets, sums[7] AS timeouts, sums[8] AS retransmits, sums[9] AS segments_sent,
    round(100 * sums[8] / greatest(sums[9], 1), 2) AS retransmit_percent, most[3] AS rtt_us, sums[10] AS receive_window_limited_us, sums[11] AS busy_us,
    ends.3 AS client_address, ends.4 AS server_address, sums[3] AS harmed,
    concat(if(n > 1, concat(toString(n), ' edges, the worst ', worst.2, ' -> ', worst.3, ': '), ''), worst.1.2) AS why,
    worst.1.3 AS worst_minute, most[4] AS rtt_usual_us, scope
FROM summed
ORDER BY harmed DESC, sums[5] + sums[6] + sums[7] DESC, retransmit_percent DESC, client_service, server_service
{{- end}}
CREATE OR REPLACE VIEW {{.Database}}.network_trouble{{.OnCluster}} AS{{template "network_trouble" .Thresholds}};

CREATE OR REPLACE VIEW {{.Database}}.network_trouble_with{{.OnCluster}} AS{{template "network_trouble" .AsParameters}};
