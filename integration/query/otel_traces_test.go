package query

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/integration/internal/shop"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
)

// Queries that tools for the exporter's schema send, with their text as the tools write it.
// FROM and TO stand for the hour as the tool writes times, TRACE for the id of a trace in it.
var toolQueries = []struct{ name, from, to, sql string }{
	// Grafana's ClickHouse data source, as the tests of its SQL generator have them. It sends
	// $__fromTime and $__toTime as toDateTime(seconds).
	{
		"Grafana searches traces", "toDateTime(%d)", "toDateTime(%d)",
		`SELECT "TraceId" as traceID, "ServiceName" as serviceName, "SpanName" as operationName, "Timestamp" as startTime, multiply("Duration", 0.000001) as duration FROM "metaflow"."otel_traces" WHERE ( Timestamp >= FROM AND Timestamp <= TO ) AND ( ParentSpanId = '' ) AND ( Duration > 0 ) ORDER BY Timestamp DESC, Duration DESC LIMIT 1000`,
	},
	{
		"Grafana shows a trace", "", "",
		`SELECT "TraceId" as traceID, "SpanId" as spanID, "ParentSpanId" as parentSpanID, "ServiceName" as serviceName, "SpanName" as operationName, multiply(toUnixTimestamp64Nano("Timestamp"), 0.000001) as startTime, multiply("Duration", 0.000001) as duration, arrayMap(key -> map('key', key, 'value',"SpanAttributes"[key]), mapKeys("SpanAttributes")) as tags, arrayMap(key -> map('key', key, 'value',"ResourceAttributes"[key]), mapKeys("ResourceAttributes")) as serviceTags, if("StatusCode" IN ('Error', 'STATUS_CODE_ERROR'), 2, 0) as statusCode FROM "metaflow"."otel_traces" WHERE traceID = 'TRACE' LIMIT 1000`,
	},
	{
		"Grafana shows a trace by the table of times, with events and links", "", "",
		`WITH 'TRACE' as trace_id, (SELECT min(Start) FROM "metaflow"."otel_traces_trace_id_ts" WHERE TraceId = trace_id) as trace_start, (SELECT max(End) + 1 FROM "metaflow"."otel_traces_trace_id_ts" WHERE TraceId = trace_id) as trace_end SELECT "TraceId" as traceID, "SpanId" as spanID, "ParentSpanId" as parentSpanID, "ServiceName" as serviceName, "SpanName" as operationName, multiply(toUnixTimestamp64Nano("Timestamp"), 0.000001) as startTime, multiply("Duration", 0.000001) as duration, arrayMap(key -> map('key', key, 'value',"SpanAttributes"[key]), mapKeys("SpanAttributes")) as tags, arrayMap(key -> map('key', key, 'value',"ResourceAttributes"[key]), mapKeys("ResourceAttributes")) as serviceTags, if("StatusCode" IN ('Error', 'STATUS_CODE_ERROR'), 2, 0) as statusCode, arrayMap((name, timestamp, attributes) -> tuple(name, toString(toUnixTimestamp64Milli(timestamp)), arrayMap( key -> map('key', key, 'value', attributes[key]), mapKeys(attributes)))::Tuple(name String, timestamp String, fields Array(Map(String, String))), "Events".Name, "Events".Timestamp, "Events".Attributes) AS logs, arrayMap((traceID, spanID, attributes) -> tuple(traceID, spanID, arrayMap(key -> map('key', key, 'value', attributes[key]), mapKeys(attributes)))::Tuple(traceID String, spanID String, tags Array(Map(String, String))), "Links".TraceId, "Links".SpanId, "Links".Attributes) AS references, "SpanKind" as kind, "StatusMessage" as statusMessage, "ScopeName" as instrumentationLibraryName, "ScopeVersion" as instrumentationLibraryVersion, "TraceState" as traceState FROM "metaflow"."otel_traces" WHERE traceID = trace_id AND "Timestamp" >= trace_start AND "Timestamp" <= trace_end LIMIT 1000`,
	},
	{
		"Grafana shows a trace, with events and links as tuples", "", "",
		`SELECT "TraceId" as traceID, arrayMap(event -> tuple(multiply(toFloat64(event.Timestamp), 1000), arrayConcat(arrayMap(key -> map('key', key, 'value', event.Attributes[key]), mapKeys(event.Attributes)), [map('key', 'message', 'value', event.Name)]))::Tuple(timestamp Float64, fields Array(Map(String, String))), "Events") as logs, arrayMap(link -> tuple(link.TraceId, link.SpanId, arrayMap(key -> map('key', key, 'value', link.Attributes[key]), mapKeys(link.Attributes)))::Tuple(traceID String, spanID String, tags Array(Map(String, String))), "Links") AS references FROM "metaflow"."otel_traces" WHERE traceID = 'TRACE' LIMIT 1000`,
	},
	// HyperDX, with the expressions that it proposes for a source of the exporter's columns.
	{
		"HyperDX lists spans", "fromUnixTimestamp64Milli(%d)", "fromUnixTimestamp64Milli(%d)",
		`SELECT Timestamp,ServiceName as service,StatusCode as level,round(Duration / 1e6) as duration,SpanName FROM metaflow.otel_traces WHERE (Timestamp >= FROM AND Timestamp <= TO) AND ((hasToken(lower(SpanName), lower('charge')))) ORDER BY Timestamp DESC LIMIT 200 OFFSET 0`,
	},
	{
		"HyperDX filters by an attribute", "fromUnixTimestamp64Milli(%d)", "fromUnixTimestamp64Milli(%d)",
		"SELECT Timestamp,ServiceName as service,SpanName FROM metaflow.otel_traces WHERE (Timestamp >= FROM AND Timestamp <= TO) AND (((`ResourceAttributes`['k8s.pod.name'] ILIKE '%payment%' AND indexHint(mapContains(`ResourceAttributes`, 'k8s.pod.name'))))) ORDER BY Timestamp DESC LIMIT 200 OFFSET 0",
	},
	{
		"HyperDX counts spans", "fromUnixTimestamp64Milli(%d)", "fromUnixTimestamp64Milli(%d)",
		"SELECT count(),StatusCode,toStartOfInterval(toDateTime(Timestamp), INTERVAL 1 minute) AS `__hdx_time_bucket` FROM metaflow.otel_traces WHERE (Timestamp >= FROM AND Timestamp <= TO) GROUP BY StatusCode,toStartOfInterval(toDateTime(Timestamp), INTERVAL 1 minute) AS `__hdx_time_bucket` ORDER BY toStartOfInterval(toDateTime(Timestamp), INTERVAL 1 minute) AS `__hdx_time_bucket`",
	},
	{
		"HyperDX lists keys of span attributes", "", "",
		"WITH sampledKeys as ( SELECT getSubcolumn(`SpanAttributes`, 'keys') AS keysArr FROM `metaflow`.`otel_traces` LIMIT 3000000 ) SELECT DISTINCT lowCardinalityKeys(arrayJoin(keysArr)) as key FROM sampledKeys LIMIT 1000",
	},
	{
		"HyperDX lists keys of resources", "", "",
		"WITH sampledKeys as ( SELECT getSubcolumn(`ResourceAttributes`, 'keys') AS keysArr FROM `metaflow`.`otel_traces` LIMIT 3000000 ) SELECT DISTINCT lowCardinalityKeys(arrayJoin(keysArr)) as key FROM sampledKeys LIMIT 1000",
	},
	{
		"an older HyperDX lists keys of resources", "", "",
		"WITH sampledKeys as ( SELECT `ResourceAttributes`.keys AS keysArr FROM `metaflow`.`otel_traces`  LIMIT 3000000 ) SELECT DISTINCT lowCardinalityKeys(arrayJoin(keysArr)) as key FROM sampledKeys LIMIT 1000",
	},
	{
		"HyperDX lists values", "fromUnixTimestamp64Milli(%d)", "fromUnixTimestamp64Milli(%d)",
		"SELECT groupUniqArray(20)(ServiceName) AS param0,groupUniqArray(20)(SpanAttributes['http.route']) AS param1 FROM metaflow.otel_traces WHERE (Timestamp >= FROM AND Timestamp <= TO)",
	},
	{
		"HyperDX shows a trace", "fromUnixTimestamp64Milli(%d)", "fromUnixTimestamp64Milli(%d)",
		`SELECT SpanName AS "Body",Timestamp AS "Timestamp",SpanId AS "SpanId",ServiceName AS "ServiceName",(Duration)/1e9 AS "Duration",ParentSpanId AS "ParentSpanId",StatusCode AS "StatusCode",SpanAttributes AS "SpanAttributes",Events AS "SpanEvents" FROM metaflow.otel_traces WHERE (Timestamp >= FROM AND Timestamp <= TO) AND (TraceId = 'TRACE') LIMIT 50000`,
	},
	{
		"HyperDX shows a span", "", "",
		`SELECT *,Timestamp AS "__hdx_timestamp",SpanName AS "__hdx_body",TraceId AS "__hdx_trace_id",SpanId AS "__hdx_span_id",StatusCode AS "__hdx_severity_text",ServiceName AS "__hdx_service_name",ResourceAttributes AS "__hdx_resource_attributes",SpanAttributes AS "__hdx_event_attributes",Events.Attributes[indexOf(Events.Name, 'exception')] AS "__hdx_events_exception_attributes",Events AS "__hdx_span_events",Links AS "__hdx_span_links" FROM metaflow.otel_traces WHERE (SpanName='Charge' AND TraceId='TRACE') LIMIT 1`,
	},
	{
		"ClickStack counts sampled spans and sessions", "fromUnixTimestamp64Milli(%d)", "fromUnixTimestamp64Milli(%d)",
		"SELECT sum(SampleRate) AS spans, uniqExact(`__hdx_materialized_rum.sessionId`) FROM metaflow.otel_traces WHERE (Timestamp >= FROM AND Timestamp <= TO)",
	},
}

// The view otel_traces answers the queries of tools that read the exporter's tables.
func TestOtelTracesAnswersTools(t *testing.T) {
	conn := chtest.Open(t, engine)
	var trace string
	if err := conn.QueryRow(t.Context(), "SELECT TraceId FROM metaflow.otel_traces WHERE SpanName = 'Charge' AND notEmpty(Events.Name) LIMIT 1").Scan(&trace); err != nil {
		t.Fatal(err)
	}
	at := func(format string, of time.Time) string {
		if strings.Contains(format, "Milli") {
			return fmt.Sprintf(format, of.UnixMilli())
		}
		return fmt.Sprintf(format, of.Unix())
	}
	for _, q := range toolQueries {
		sql := strings.ReplaceAll(q.sql, "TRACE'", trace+"'")
		if q.from != "" {
			sql = strings.NewReplacer(">= FROM ", ">= "+at(q.from, shop.Start)+" ", "<= TO)", "<= "+at(q.to, shop.End)+")", "<= TO )", "<= "+at(q.to, shop.End)+" )").Replace(sql)
		}
		found, err := conn.Query(t.Context(), sql)
		if err != nil {
			t.Errorf("%s: %v", q.name, err)
			continue
		}
		rows := 0
		for found.Next() {
			rows++
		}
		if err := found.Err(); err != nil || rows == 0 {
			t.Errorf("%s: %d rows, %v", q.name, rows, err)
		}
	}
}

// The view has the columns that ClickStack's own table adds to the exporter's, but for
// ResourceAttributeItems and SpanAttributeItems: HyperDX does without them, and a view
// would return both with SELECT *.
func TestOtelTracesHasClickStacksColumns(t *testing.T) {
	conn := chtest.Open(t, engine)
	var found []string
	const added = `SELECT groupArray(concat(name, ' ', type)) FROM (SELECT name, type FROM system.columns
		WHERE database = 'metaflow' AND table = 'otel_traces' AND name IN ('__hdx_materialized_rum.sessionId', 'SampleRate') ORDER BY position)`
	if err := conn.QueryRow(t.Context(), added).Scan(&found); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"__hdx_materialized_rum.sessionId String", "SampleRate UInt64"}, found); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	var rates []uint64
	const rate = `SELECT groupUniqArray(SampleRate) FROM metaflow.otel_traces`
	if err := conn.QueryRow(t.Context(), rate).Scan(&rates); err != nil || len(rates) != 1 || rates[0] != 1 {
		t.Errorf("sample rates of spans that have none: %v, %v", rates, err)
	}
}

// The views otel_traces and otel_traces_trace_id_ts have the columns and types of the tables
// that the collector's exporter creates. The DDL is that of v0.161.0; up to v0.165.1 only
// its codecs have changed.
func TestOtelTracesHasTheExportersColumns(t *testing.T) {
	ddl, err := os.ReadFile("../bench/queries/otel_traces.sql")
	if err != nil {
		t.Fatal(err)
	}
	conn := chtest.Open(t, engine)
	for statement := range strings.SplitSeq(string(ddl), ";\n") {
		if err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	var missing []string
	var compared uint64
	const compare = `SELECT groupArrayIf(concat(table, '.', name, ' ', type), (table, name, type) NOT IN (SELECT table, name, type FROM system.columns WHERE database = 'metaflow')), count()
		FROM system.columns WHERE database = 'otel' AND table NOT LIKE '%mv'`
	if err := conn.QueryRow(t.Context(), compare).Scan(&missing, &compared); err != nil {
		t.Fatal(err)
	}
	if len(missing) > 0 || compared != 25 {
		t.Errorf("of %d columns of the exporter the views lack, or have by another type: %q", compared, missing)
	}
}
