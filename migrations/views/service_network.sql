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
`}}
{{- array "most" `
    unread_bytes
    rtt_max_us
    queue_us
`}}
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
    busy_us UInt64,
    client_address String,
    server_address String,
    harmed UInt64,
    connects_refused UInt64,
    gave_up UInt64,
    accept_queue_full UInt64,
    unread_bytes UInt64,
    rtt_usual_us Float64,
    rtt_max_us UInt64,
    queue_us UInt64
)
AS
SELECT
    minute, client_service, server_service, calls.requests AS requests, calls.errors AS errors, ms[1] AS p50_ms, ms[2] AS p90_ms, ms[3] AS p99_ms,
    served[1] AS server_requests, served[2] AS server_errors, server_ms[1] AS server_p50_ms, server_ms[2] AS server_p90_ms, server_ms[3] AS server_p99_ms,
    -- Both ends report each connection: what both count is taken from the end that counts more,
    -- since the other may have no agent; what only the sender knows is taken from both.
    greatest(cl.connections, sv.connections) AS connections,
    greatest(cl.connect_failures, sv.connect_failures) AS connect_failures,
    greatest(cl.resets, sv.resets) AS resets,
    greatest(cl.timeouts, sv.timeouts) AS timeouts,
    greatest(cl.bytes_sent, sv.bytes_received) AS bytes_sent,
    greatest(cl.bytes_received, sv.bytes_sent) AS bytes_received,
    cl.segments_sent + sv.segments_sent AS segments_sent,
    cl.retransmits + sv.retransmits AS retransmits,
    round(100 * (cl.retransmits + sv.retransmits) / greatest(cl.segments_sent + sv.segments_sent, 1), 2) AS retransmit_percent,
    (cl.rtt + sv.rtt) / greatest(cl.weight + sv.weight, 1) AS rtt_us,
    rtt_min_us,
    cl.receive_window_limited_us + sv.receive_window_limited_us AS receive_window_limited_us,
    cl.send_buffer_limited_us + sv.send_buffer_limited_us AS send_buffer_limited_us,
    cl.busy_us + sv.busy_us AS busy_us,
    client_address, server_address, calls.harmed AS harmed, cl.refused AS connects_refused, cl.gave_up AS gave_up, accept_queue_full, most.unread_bytes AS unread_bytes,
    (cl.rtt_usual + sv.rtt_usual) / greatest(cl.usual_weight + sv.usual_weight, 1) AS rtt_usual_us, most.rtt_max_us AS rtt_max_us, most.queue_us AS queue_us
FROM {{.Database}}.edges
WHERE server_service != '';
