-- The table of spans. Writers insert here, into the shard of the partition.
CREATE TABLE IF NOT EXISTS {{.Database}}.spans_local{{.OnCluster}}
(
    -- Hex text: 14.3 bytes for all three ids under ZSTD(1), 14.0 as bytes. The type
    -- that the views show, so that a filter reaches the index below without a
    -- conversion; in this order its lengths cost 0.02 bytes, those of span ids 1.5.
    trace_id String CODEC(ZSTD(1)),
    span_id FixedString(16) CODEC(ZSTD(1)),
    parent_span_id String CODEC(ZSTD(1)),
    trace_state String CODEC(ZSTD(1)),
    flags UInt32 CODEC(ZSTD(1)),
    name LowCardinality(String) CODEC(ZSTD(1)),
    kind Enum8('unspecified' = 0, 'internal' = 1, 'server' = 2, 'client' = 3, 'producer' = 4, 'consumer' = 5) CODEC(ZSTD(1)),
    -- Delta saves 1.1 bytes in this order; DoubleDelta 0.2.
    start_time DateTime64(9, 'UTC') CODEC(Delta(8), ZSTD(1)),
    -- T64 saves 0.4 bytes; Gorilla is refused for integers.
    duration_ns Int64 CODEC(T64, ZSTD(1)),
    status_code Enum8('unset' = 0, 'ok' = 1, 'error' = 2) CODEC(ZSTD(1)),
    status_message String CODEC(ZSTD(1)),
    service_name LowCardinality(String) CODEC(ZSTD(1)),
    -- JSON object, one dictionary entry per resource: 0.35 bytes a span; as a Map in each
    -- row it costs 4.6 more and doubles the CPU of an insert.
    resource LowCardinality(String) CODEC(ZSTD(1)),
    -- JSON objects, too, with rarely queried values: the agent, the rest of the resource,
    -- and the scope. Each column costs CPU at every merge, whatever it contains:
    -- combining these thirteen into two saves a third of it.
    origin LowCardinality(String) CODEC(ZSTD(1)),
    scope LowCardinality(String) CODEC(ZSTD(1)),
    attributes Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    dropped_attributes_count UInt32 CODEC(ZSTD(1)),
    events Array(Tuple(
        time DateTime64(9, 'UTC'),
        name LowCardinality(String),
        attributes Map(LowCardinality(String), String),
        dropped_attributes_count UInt32)) CODEC(ZSTD(1)),
    dropped_events_count UInt32 CODEC(ZSTD(1)),
    links Array(Tuple(
        trace_id String,
        span_id String,
        trace_state String,
        attributes Map(LowCardinality(String), String),
        dropped_attributes_count UInt32,
        flags UInt32)) CODEC(ZSTD(1)),
    dropped_links_count UInt32 CODEC(ZSTD(1)),
    protocol LowCardinality(String) CODEC(ZSTD(1)),
    method LowCardinality(String) CODEC(ZSTD(1)),
    endpoint LowCardinality(String) CODEC(ZSTD(1)),
    response_code LowCardinality(String) CODEC(ZSTD(1)),
    ip IPv6 CODEC(ZSTD(1)),
    port UInt16 CODEC(ZSTD(1)),
    peer_ip IPv6 CODEC(ZSTD(1)),
    peer_port UInt16 CODEC(ZSTD(1)),
    namespace LowCardinality(String) CODEC(ZSTD(1)),
    pod LowCardinality(String) CODEC(ZSTD(1)),
    workload LowCardinality(String) CODEC(ZSTD(1)),

    -- In each hour one granule may contain the trace by the primary key; the filter rules
    -- out all but one of them. About 370 traces a granule, so 0.1 bytes a span.
    INDEX trace_id trace_id TYPE bloom_filter(0.001) GRANULARITY 1,
    -- For attributes['key'] = 'value'. Through a view, servers that read map keys as
    -- subcolumns use it only with optimize_functions_to_subcolumns = 0.
    -- A trace's spans share values, so a filter rules out nearly all granules.
    -- 1.3 bytes a span. Keys add nothing to it; concatenated pairs cost more CPU;
    -- a text index takes 17.7 bytes.
    INDEX attribute_values mapValues(attributes) TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = {{engine "MergeTree"}}
PARTITION BY toDate(start_time)
-- Keeps a trace in one piece: ids take 14 bytes instead of 28. The hour comes first, so
-- that a query about hours reads only those; start_time is last: span_id there costs 7
-- bytes a span, because times, pods and attributes no longer follow the order of calls.
ORDER BY (toStartOfHour(start_time), trace_id, start_time)
-- Without start_time: ClickHouse would compare a query's times with that column, which
-- the order of traces scatters, and no longer with the hour.
PRIMARY KEY (toStartOfHour(start_time), trace_id)
{{ttl "start_time" .SpansRetention}}
SETTINGS
{{- if .AutoStatistics}}
    -- Statistics of every column cost a tenth of the CPU of every merge, and no query
    -- here is planned by them.
    auto_statistics_types = '',
{{- end}}
{{- if .StringSerialization}}
    -- Stores the length of a string before it rather than in a separate stream: 11 bytes
    -- a span less and less CPU, because small maps repeat as a whole.
    string_serialization_version = 'single_stream',
{{- end}}
    -- Above the largest insert (writer.max_batch_bytes), below the merge of a few: a
    -- fresh part is one file instead of some two hundred, which halves the CPU of an
    -- insert, and merges write wide parts, column by column.
    min_bytes_for_wide_part = 50331648,
    ttl_only_drop_parts = 1,
    {{deduplication}};

{{- if .Cluster}}

-- The rows of all shards. MetaFlow itself only reads it; the sharding key keeps the
-- traces of other inserters in one piece.
CREATE TABLE IF NOT EXISTS {{.Database}}.spans_distributed{{.OnCluster}} AS {{.Database}}.spans_local
ENGINE = Distributed('{{.Cluster}}', '{{.Database}}', 'spans_local', cityHash64(trace_id));
{{- end}}
