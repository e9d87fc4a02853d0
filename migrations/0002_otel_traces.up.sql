-- The columns of the table that the OpenTelemetry Collector's ClickHouse
-- exporter writes, for tools made for that one.
CREATE VIEW IF NOT EXISTS {{.Database}}.otel_traces{{.OnCluster}} AS
SELECT
    CAST(start_time, 'DateTime64(9)') AS Timestamp,
    CAST(trace_id, 'String') AS TraceId,
    CAST(span_id, 'String') AS SpanId,
    parent_span_id AS ParentSpanId,
    trace_state AS TraceState,
    name AS SpanName,
    CAST(transform(toInt8(kind), [1, 2, 3, 4, 5], ['Internal', 'Server', 'Client', 'Producer', 'Consumer'], 'Unspecified'), 'LowCardinality(String)') AS SpanKind,
    service_name AS ServiceName,
    JSONExtract(resource, 'Map(LowCardinality(String), String)') AS ResourceAttributes,
    CAST(scope_name, 'String') AS ScopeName,
    CAST(scope_version, 'String') AS ScopeVersion,
    attributes AS SpanAttributes,
    toUInt64(greatest(duration_ns, 0)) AS Duration,
    CAST(transform(toInt8(status_code), [1, 2], ['Ok', 'Error'], 'Unset'), 'LowCardinality(String)') AS StatusCode,
    status_message AS StatusMessage,
    CAST(events.time, 'Array(DateTime64(9))') AS `Events.Timestamp`,
    events.name AS `Events.Name`,
    events.attributes AS `Events.Attributes`,
    links.trace_id AS `Links.TraceId`,
    links.span_id AS `Links.SpanId`,
    links.trace_state AS `Links.TraceState`,
    links.attributes AS `Links.Attributes`
FROM {{.Spans}};

-- From when to when a trace went on. The exporter fills a table for this; here
-- it is read from the spans, which are sorted so that one trace is near.
CREATE VIEW IF NOT EXISTS {{.Database}}.otel_traces_trace_id_ts{{.OnCluster}} AS
SELECT
    CAST(trace_id, 'String') AS TraceId,
    CAST(min(start_time), 'DateTime') AS Start,
    CAST(max(start_time), 'DateTime') AS End
FROM {{.Spans}}
GROUP BY trace_id;
