package main

import (
	"maps"
	"slices"
	"strings"
)

// variant is one way of storing spans: a table, and the expressions that query
// its columns.
type variant struct {
	name     string
	columns  []col
	indexes  []string // INDEX and PROJECTION clauses
	order    string
	primary  string // if empty, as order
	parts    string // PARTITION BY
	settings []string
	insert   []string // INSERT settings
	asked    asked
}

// col is a column: the source of its values in the staging table, and the group
// of the report that its bytes belong to.
type col struct {
	name, typ, codec string
	from             string // if empty, the column of the same name
	group            string
}

// asked holds the conditions of the queries; ? is replaced by the value.
type asked struct {
	trace, service, attribute, pod, failed, time, duration string
	list                                                   string // columns for a list of spans
}

// Groups of the report.
const (
	ids        = "ids"
	times      = "times"
	attributes = "attributes"
	resource   = "resource"
	rest       = "rest"
)

// lean is the draft's columns: ids as text, resource once, everything ZSTD(1).
var lean = []col{
	{"trace_id", "FixedString(32)", "ZSTD(1)", "", ids},
	{"span_id", "FixedString(16)", "ZSTD(1)", "", ids},
	{"parent_span_id", "String", "ZSTD(1)", "", ids},
	{"trace_state", "String", "ZSTD(1)", "", rest},
	{"flags", "UInt32", "ZSTD(1)", "", rest},
	{"name", "LowCardinality(String)", "ZSTD(1)", "", rest},
	{"kind", "Enum8('unspecified'=0,'internal'=1,'server'=2,'client'=3,'producer'=4,'consumer'=5)", "ZSTD(1)", "", rest},
	{"start_time", "DateTime64(9,'UTC')", "Delta, ZSTD(1)", "", times},
	{"duration_ns", "Int64", "ZSTD(1)", "", times},
	{"status_code", "Enum8('unset'=0,'ok'=1,'error'=2)", "ZSTD(1)", "", rest},
	{"status_message", "String", "ZSTD(1)", "", rest},
	{"service_name", "LowCardinality(String)", "ZSTD(1)", "", resource},
	{"service_namespace", "LowCardinality(String)", "ZSTD(1)", "", resource},
	{"service_instance_id", "LowCardinality(String)", "ZSTD(1)", "", resource},
	{"resource", "LowCardinality(String)", "ZSTD(1)", "", resource},
	{"resource_schema_url", "LowCardinality(String)", "ZSTD(1)", "schema_url", resource},
	{"resource_dropped_attributes_count", "UInt32", "ZSTD(1)", "toUInt32(0)", rest},
	{"scope_name", "LowCardinality(String)", "ZSTD(1)", "", resource},
	{"scope_version", "LowCardinality(String)", "ZSTD(1)", "", resource},
	{"scope_attributes", "LowCardinality(String)", "ZSTD(1)", "toLowCardinality('')", resource},
	{"scope_schema_url", "LowCardinality(String)", "ZSTD(1)", "schema_url", resource},
	{"scope_dropped_attributes_count", "UInt32", "ZSTD(1)", "toUInt32(0)", rest},
	{"attributes", "Map(LowCardinality(String), String)", "ZSTD(1)", "", attributes},
	{"dropped_attributes_count", "UInt32", "ZSTD(1)", "toUInt32(0)", rest},
	{
		"events", "Array(Tuple(time DateTime64(9,'UTC'), name LowCardinality(String), attributes Map(LowCardinality(String), String), dropped_attributes_count UInt32))", "ZSTD(1)",
		"arrayMap((t,n,a) -> (t, n, a, toUInt32(0)), event_times, event_names, event_attributes)", rest,
	},
	{"dropped_events_count", "UInt32", "ZSTD(1)", "toUInt32(0)", rest},
	{
		"links", "Array(Tuple(trace_id String, span_id String, trace_state String, attributes Map(LowCardinality(String), String), dropped_attributes_count UInt32, flags UInt32))", "ZSTD(1)",
		"arrayMap((t,s,a) -> (t, s, '', a, toUInt32(0), toUInt32(0)), link_traces, link_spans, link_attributes)", rest,
	},
	{"dropped_links_count", "UInt32", "ZSTD(1)", "toUInt32(0)", rest},
	{"protocol", "LowCardinality(String)", "ZSTD(1)", "", rest},
	{"method", "LowCardinality(String)", "ZSTD(1)", "", rest},
	{"endpoint", "LowCardinality(String)", "ZSTD(1)", "", rest},
	{"response_code", "LowCardinality(String)", "ZSTD(1)", "", rest},
	{"ip", "IPv6", "ZSTD(1)", "", resource},
	{"port", "UInt16", "ZSTD(1)", "", rest},
	{"peer_ip", "IPv6", "ZSTD(1)", "", rest},
	{"peer_port", "UInt16", "ZSTD(1)", "", rest},
	{"cluster", "LowCardinality(String)", "ZSTD(1)", "", resource},
	{"namespace", "LowCardinality(String)", "ZSTD(1)", "", resource},
	{"pod", "LowCardinality(String)", "ZSTD(1)", "", resource},
	{"pod_uid", "LowCardinality(String)", "ZSTD(1)", "", resource},
	{"node", "LowCardinality(String)", "ZSTD(1)", "", resource},
	{"workload", "LowCardinality(String)", "ZSTD(1)", "", resource},
	{"agent_id", "LowCardinality(String)", "ZSTD(1)", "", resource},
}

var leanAsked = asked{
	trace: "trace_id = '?'", service: "service_name = '?'", attribute: "attributes['app.user.id'] = '?'",
	pod: "pod = '?'", failed: "status_code = 'error'", time: "start_time", duration: "duration_ns",
	list: "trace_id, span_id, service_name, name, start_time, duration_ns, status_code, status_message",
}

// with returns a copy of v with a new name, changed by each of edits.
func (v variant) with(name string, edits ...func(*variant)) variant {
	v.name = name
	v.columns = slices.Clone(v.columns)
	v.indexes = slices.Clone(v.indexes)
	v.settings = slices.Clone(v.settings)
	v.insert = slices.Clone(v.insert)
	for _, edit := range edits {
		edit(&v)
	}
	return v
}

// codec sets the codec of the named columns, or of all if no name is given.
func codec(codec string, names ...string) func(*variant) {
	return func(v *variant) {
		for i := range v.columns {
			if len(names) == 0 || slices.Contains(names, v.columns[i].name) {
				v.columns[i].codec = codec
			}
		}
	}
}

// typed sets a column's type and source.
func typed(name, typ, from string) func(*variant) {
	return func(v *variant) {
		i := slices.IndexFunc(v.columns, func(c col) bool { return c.name == name })
		v.columns[i].typ, v.columns[i].from = typ, from
	}
}

// without drops columns.
func without(names ...string) func(*variant) {
	return func(v *variant) {
		v.columns = slices.DeleteFunc(v.columns, func(c col) bool { return slices.Contains(names, c.name) })
	}
}

// adding appends columns.
func adding(columns ...col) func(*variant) {
	return func(v *variant) { v.columns = append(v.columns, columns...) }
}

func index(clauses ...string) func(*variant) {
	return func(v *variant) { v.indexes = append(v.indexes, clauses...) }
}

func only(clauses ...string) func(*variant) {
	return func(v *variant) { v.indexes = clauses }
}

func order(by string) func(*variant) { return func(v *variant) { v.order = by } }
func setting(s ...string) func(*variant) {
	return func(v *variant) { v.settings = append(v.settings, s...) }
}

func insert(s ...string) func(*variant) {
	return func(v *variant) { v.insert = append(v.insert, s...) }
}

const (
	bloomTrace   = "INDEX trace trace_id TYPE bloom_filter(0.001) GRANULARITY 1"
	bloomKeys    = "INDEX keys mapKeys(attributes) TYPE bloom_filter(0.01) GRANULARITY 1"
	bloomValues  = "INDEX vals mapValues(attributes) TYPE bloom_filter(0.01) GRANULARITY 1"
	bloomPairs   = "INDEX pairs arrayMap((k, v) -> concat(k, '=', v), mapKeys(attributes), mapValues(attributes)) TYPE bloom_filter(0.01) GRANULARITY 1"
	textValues   = "INDEX vals mapValues(attributes) TYPE text(tokenizer = 'array')"
	setService   = "INDEX service service_name TYPE set(100) GRANULARITY 1"
	minmaxTime   = "INDEX time start_time TYPE minmax GRANULARITY 1"
	inlineSizes  = "string_serialization_version='single_stream'"
	compactParts = "min_bytes_for_wide_part=50331648" // inserts make compact parts, merges do not
	noStatistics = "auto_statistics_types=''"
	onlyOnMerge  = "materialize_skip_indexes_on_insert=0"
	bucketedMaps = "map_serialization_version='with_buckets', map_buckets_min_avg_size=1, max_buckets_in_map=64, map_buckets_strategy='linear', map_buckets_coefficient=4"
)

var byService = variant{
	name:     "service order",
	columns:  lean,
	order:    "(service_name, name, start_time)",
	parts:    "toDate(start_time)",
	indexes:  []string{bloomTrace},
	settings: []string{inlineSizes},
	asked:    leanAsked,
}

var byTrace = variant{
	name:     "trace order",
	columns:  lean,
	order:    "(toStartOfHour(start_time), trace_id, start_time)",
	parts:    "toDate(start_time)",
	indexes:  []string{bloomTrace},
	settings: []string{inlineSizes},
	asked:    leanAsked,
}

// packed stores what a resource, a scope and a place in the cluster determine
// as one JSON text each, instead of in seventeen columns.
var packed = byTrace.with("all derived columns packed",
	without("service_namespace", "service_instance_id", "cluster", "namespace", "pod", "pod_uid", "node", "workload", "agent_id", "ip",
		"resource_schema_url", "resource_dropped_attributes_count",
		"scope_name", "scope_version", "scope_attributes", "scope_schema_url", "scope_dropped_attributes_count"),
	adding(
		col{
			"origin", "LowCardinality(String)", "ZSTD(1)",
			`toJSONString(map('cluster', cluster, 'namespace', namespace, 'pod', pod, 'pod_uid', pod_uid, 'node', node, 'workload', workload, 'agent_id', agent_id, 'ip', toString(ip)))`, resource,
		},
		col{"scope", "LowCardinality(String)", "ZSTD(1)", "toJSONString(map('name', scope_name, 'version', scope_version, 'schema_url', schema_url))", resource},
	),
	asks(func(a *asked) { a.pod = "JSONExtractString(origin, 'pod') = '?'" }),
)

// each is chosen without the packed columns.
var each = byTrace.with("derived columns each for itself", codec("T64, ZSTD(1)", "duration_ns"), typed("trace_id", "String", ""),
	setting(compactParts), index(bloomValues), insert(onlyOnMerge))

// chosen is the table that migrations/ create and the writer's way to insert.
var chosen = each.with("chosen", setting(noStatistics),
	without("agent_id", "service_namespace", "service_instance_id", "cluster", "node", "pod_uid",
		"resource_schema_url", "resource_dropped_attributes_count",
		"scope_name", "scope_version", "scope_attributes", "scope_schema_url", "scope_dropped_attributes_count"),
	adding(
		col{
			"origin", "LowCardinality(String)", "ZSTD(1)",
			"toJSONString(map('agent_id', agent_id, 'service_namespace', service_namespace, 'service_instance_id', service_instance_id, 'cluster', cluster, 'node', node, 'pod_uid', pod_uid, 'schema_url', schema_url))", resource,
		},
		col{"scope", "LowCardinality(String)", "ZSTD(1)", "toJSONString(map('name', scope_name, 'version', scope_version, 'schema_url', schema_url))", resource},
	))

// binary stores ids as bytes.
func binary(v *variant) {
	for _, edit := range []func(*variant){
		typed("trace_id", "FixedString(16)", "unhex(trace_id)"), typed("span_id", "FixedString(8)", "unhex(span_id)"),
		typed("parent_span_id", "FixedString(8)", "unhex(parent_span_id)"), asks(func(a *asked) { a.trace = "trace_id = unhex('?')" }),
	} {
		edit(v)
	}
}

// variants are measured in this order.
var variants = []variant{
	exporter,

	byService,
	byService.with("service order, blooms on keys and values", index(bloomKeys, bloomValues)),

	byTrace,
	byTrace.with("trace by day", order("(trace_id, start_time)")),
	byTrace.with("trace by ten minutes", order("(toStartOfTenMinutes(start_time), trace_id, start_time)")),
	byTrace.with("service inside the trace", order("(toStartOfHour(start_time), trace_id, service_name, start_time)")),
	byTrace.with("span id inside the trace", order("(toStartOfHour(start_time), trace_id, span_id)")),
	byTrace.with("no bloom on trace ids", only()),

	byTrace.with("string sizes apart, the default", func(v *variant) { v.settings = nil }),
	byTrace.with("maps in buckets", setting(bucketedMaps)),
	byTrace.with("attribute keys as String", typed("attributes", "Map(String, String)", "")),
	byTrace.with("resource as a map in each row", typed("resource", "Map(LowCardinality(String), String)", "JSONExtract(resource, 'Map(String, String)')")),
	packed,
	byTrace.with("addresses as LowCardinality", typed("ip", "LowCardinality(IPv6)", ""), typed("peer_ip", "LowCardinality(IPv6)", "")),
	byTrace.with("binary ids", binary),
	byTrace.with("binary ids as integers", typed("trace_id", "UUID", "reinterpretAsUUID(unhex(trace_id))"), typed("span_id", "UInt64", "reinterpretAsUInt64(unhex(span_id))"),
		typed("parent_span_id", "UInt64", "reinterpretAsUInt64(unhex(parent_span_id))"), asks(func(a *asked) { a.trace = "trace_id = reinterpretAsUUID(unhex('?'))" })),

	byTrace.with("bloom on values", index(bloomValues)),
	byTrace.with("bloom on values, at merges only", index(bloomValues), insert(onlyOnMerge)),
	byTrace.with("bloom on keys and values", index(bloomKeys, bloomValues)),
	byTrace.with("bloom on pairs", index(bloomPairs), asks(func(a *asked) {
		a.attribute = "has(arrayMap((k, v) -> concat(k, '=', v), mapKeys(attributes), mapValues(attributes)), 'app.user.id=?')"
	})),
	byTrace.with("text index on values", index(textValues)),
	byTrace.with("set index on service", index(setService)),
	byTrace.with("minmax index on time", index(minmaxTime)),
	byTrace.with("projection by service", index("PROJECTION service (SELECT _part_offset ORDER BY service_name, start_time)")),

	byTrace.with("all LZ4", codec("LZ4")),
	byTrace.with("all ZSTD(3)", codec("ZSTD(3)"), codec("Delta, ZSTD(3)", "start_time")),
	byTrace.with("attributes ZSTD(3)", codec("ZSTD(3)", "attributes")),
	byTrace.with("start_time DoubleDelta", codec("DoubleDelta, ZSTD(1)", "start_time")),
	byTrace.with("start_time without Delta", codec("ZSTD(1)", "start_time")),
	byTrace.with("duration T64", codec("T64, ZSTD(1)", "duration_ns")),
	byTrace.with("duration Gorilla", codec("Gorilla, ZSTD(1)", "duration_ns")),
	byTrace.with("span ids binary and uncompressed", binary, codec("NONE", "span_id")),

	byTrace.with("granules of 4096", setting("index_granularity=4096")),
	byTrace.with("granules of 16384", setting("index_granularity=16384")),
	byTrace.with("compact parts to 48 MiB", setting(compactParts)),
	byTrace.with("compact parts to 128 MiB", setting("min_bytes_for_wide_part=134217728")),
	byTrace.with("horizontal merges", setting("enable_vertical_merge_algorithm=0")),

	each,
	each.with("each for itself, no statistics", setting(noStatistics)),
	chosen,
	chosen.with("chosen, merges of migration 7", setting("merge_selector_base=12")),
	chosen.with("chosen, blooms at inserts too", func(v *variant) { v.insert = nil }),
}

func asks(change func(*asked)) func(*variant) { return func(v *variant) { change(&v.asked) } }

// ddl returns the variant's CREATE TABLE.
func (v variant) ddl() string {
	var lines []string
	for _, c := range v.columns {
		lines = append(lines, "  `"+c.name+"` "+c.typ+" CODEC("+c.codec+")")
	}
	for _, x := range v.indexes {
		lines = append(lines, "  "+x)
	}
	sql := "CREATE TABLE spans (\n" + strings.Join(lines, ",\n") + "\n) ENGINE = MergeTree PARTITION BY " + v.parts + " ORDER BY " + v.order
	if v.primary != "" {
		sql += " PRIMARY KEY " + v.primary
	}
	if len(v.settings) > 0 {
		sql += " SETTINGS " + strings.Join(v.settings, ", ")
	}
	return sql
}

// sources returns the expressions that read the variant's columns from the
// staging table.
func (v variant) sources() string {
	var out []string
	for _, c := range v.columns {
		from := c.from
		if from == "" {
			from = c.name
		}
		out = append(out, "CAST("+from+" AS "+c.typ+") AS `"+c.name+"`")
	}
	return strings.Join(out, ", ")
}

// groups maps each column to its group.
func (v variant) groups() map[string]string {
	return maps.Collect(func(yield func(string, string) bool) {
		for _, c := range v.columns {
			if !yield(c.name, c.group) {
				return
			}
		}
	})
}
