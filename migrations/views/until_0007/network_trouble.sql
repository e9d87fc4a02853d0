-- The edges of the last minutes with network problems, worst first.
{{- define "network_trouble"}}
WITH
    -- Some applications close idle connections with resets: if there were requests and
    -- none failed, the resets did no harm.
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
CREATE OR REPLACE VIEW {{.Database}}.network_trouble{{.OnCluster}} AS{{template "network_trouble" .Thresholds}};

CREATE OR REPLACE VIEW {{.Database}}.network_trouble_with{{.OnCluster}} AS{{template "network_trouble" .AsParameters}};
