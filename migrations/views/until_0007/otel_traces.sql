-- The columns and types of the table of the OpenTelemetry Collector's ClickHouse
-- exporter, for tools made for that table.
CREATE OR REPLACE VIEW {{.Database}}.otel_traces{{.OnCluster}}
(
    Timestamp DateTime64(9),
    TraceId String,
    SpanId String,
    ParentSpanId String,
    TraceState String,
    SpanName LowCardinality(String),
    SpanKind LowCardinality(String),
    ServiceName LowCardinality(String),
    ResourceAttributes Map(LowCardinality(String), String),
    ScopeName String,
    ScopeVersion String,
    SpanAttributes Map(LowCardinality(String), String),
    Duration UInt64,
    StatusCode LowCardinality(String),
    StatusMessage String,
    `Events.Timestamp` Array(DateTime64(9)),
    `Events.Name` Array(LowCardinality(String)),
    `Events.Attributes` Array(Map(LowCardinality(String), String)),
    `Links.TraceId` Array(String),
    `Links.SpanId` Array(String),
    `Links.TraceState` Array(String),
    `Links.Attributes` Array(Map(LowCardinality(String), String))
)
AS SELECT
    start_time AS Timestamp,
    trace_id AS TraceId,
    span_id AS SpanId,
    parent_span_id AS ParentSpanId,
    trace_state AS TraceState,
    name AS SpanName,
    transform(toInt8(kind), [1, 2, 3, 4, 5], ['Internal', 'Server', 'Client', 'Producer', 'Consumer'], 'Unspecified') AS SpanKind,
    service_name AS ServiceName,
    JSONExtract(resource, 'Map(LowCardinality(String), String)') AS ResourceAttributes,
    simpleJSONExtractString(scope, 'name') AS ScopeName,
    simpleJSONExtractString(scope, 'version') AS ScopeVersion,
    attributes AS SpanAttributes,
    toUInt64(greatest(duration_ns, 0)) AS Duration,
    transform(toInt8(status_code), [1, 2], ['Ok', 'Error'], 'Unset') AS StatusCode,
    status_message AS StatusMessage,
    events.time AS `Events.Timestamp`,
    events.name AS `Events.Name`,
    events.attributes AS `Events.Attributes`,
    links.trace_id AS `Links.TraceId`,
    links.span_id AS `Links.SpanId`,
    links.trace_state AS `Links.TraceState`,
    links.attributes AS `Links.Attributes`
FROM {{.Spans}};

-- The first and last time of a trace. The exporter fills a table for this; here the view
-- reads the spans, which are sorted so that a trace is found by its id.
CREATE OR REPLACE VIEW {{.Database}}.otel_traces_trace_id_ts{{.OnCluster}}
(
    TraceId String,
    Start DateTime,
    End DateTime
)
AS SELECT
    trace_id AS TraceId,
    min(start_time) AS Start,
    max(start_time) AS End
FROM {{.Spans}}
GROUP BY trace_id;
