package clickhouse

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// exporterColumns are the columns that version 0.161.0 of the collector's ClickHouse
// exporter creates, as system.columns shows them.
const exporterColumns = `Timestamp	DateTime64(9)
TraceId	String
SpanId	String
ParentSpanId	String
TraceState	String
SpanName	LowCardinality(String)
SpanKind	LowCardinality(String)
ServiceName	LowCardinality(String)
ResourceAttributes	Map(LowCardinality(String), String)
ScopeName	String
ScopeVersion	String
SpanAttributes	Map(LowCardinality(String), String)
Duration	UInt64
StatusCode	LowCardinality(String)
StatusMessage	String
Events.Timestamp	Array(DateTime64(9))
Events.Name	Array(LowCardinality(String))
Events.Attributes	Array(Map(LowCardinality(String), String))
Links.TraceId	Array(String)
Links.SpanId	Array(String)
Links.TraceState	Array(String)
Links.Attributes	Array(Map(LowCardinality(String), String))`

const exporterTraceTimes = `TraceId	String
Start	DateTime
End	DateTime`

func TestViewsHaveTheExportersColumns(t *testing.T) {
	d := migrated(t, testConfig(t))
	for view, want := range map[string]string{
		"otel_traces":             exporterColumns,
		"otel_traces_trace_id_ts": exporterTraceTimes,
	} {
		// The columns of ClickStack's table follow those of the exporter's.
		got := queryText(t, d, "SELECT name, type FROM system.columns WHERE database = '"+d.cfg.Database+
			"' AND table = '"+view+"' AND name NOT IN ('SampleRate', '__hdx_materialized_rum.sessionId') ORDER BY position")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-exporter +ours):\n%s", view, diff)
		}
		// Rows have the declared types.
		types := queryText(t, d, "SELECT toTypeName(tuple(*)) FROM (SELECT * FROM "+d.cfg.Database+"."+view+") LIMIT 1")
		if types != "" {
			t.Errorf("rows in an empty table: %s", types)
		}
	}
}

// One span with every kind of value, through both views.
func TestViewsShowASpanWhole(t *testing.T) {
	d := migrated(t, testConfig(t))
	db := d.cfg.Database
	mustExec(t, d, "INSERT INTO "+db+`.spans_local (trace_id, span_id, parent_span_id, start_time, duration_ns, kind, status_code, name, service_name,
		resource, scope, attributes, events, links, ip, peer_ip, peer_port)
		SELECT '0102030405060708090a0b0c0d0e0f10', 'a1b2c3d4e5f60718', 'ffffffffffffffff', now64(9, 'UTC'), 1, 'consumer', 'error', 'op', 'cart',
		'{"k8s.pod.name":"cart-0","a \\"quoted\\" key":"\\u00e9\\n"}', '{"name":"lib","attributes":"{\\"s\\":\\"1\\"}"}', map('http.route', '/a'),
		[(toDateTime64('2026-01-02 03:04:05.123456789', 9, 'UTC'), 'exception', map('k', 'v'), 2)],
		[('11111111111111111111111111111111', '2222222222222222', 'x=y', map('l', 'w'), 0, 1)],
		'::ffff:10.0.0.1', '::', 443`)
	mustExec(t, d, "INSERT INTO "+db+`.spans_local (trace_id, span_id, start_time, duration_ns, resource, scope)
		VALUES (repeat('0', 31) || '1', repeat('0', 15) || '1', now64(9, 'UTC'), -5, '', '')`)

	spans := `SELECT trace_id, parent_span_id, kind, toUnixTimestamp64Nano(end_time) - toUnixTimestamp64Nano(start_time), status_code,
		resource_attributes['k8s.pod.name'], resource_attributes['a "quoted" key'], scope_attributes['s'], attributes['http.route'],
		toString(events.time), toString(links), IPv6NumToString(ip), IPv6NumToString(peer_ip), peer_port
		FROM ` + db + `.spans ORDER BY trace_id DESC`
	want := "0102030405060708090a0b0c0d0e0f10\tffffffffffffffff\tconsumer\t1\terror\tcart-0\té\n\t1\t/a\t['2026-01-02 03:04:05.123456789']\t" +
		"[('11111111111111111111111111111111','2222222222222222','x=y',{'l':'w'},0,1)]\t::ffff:10.0.0.1\t::\t443\n" +
		"00000000000000000000000000000001\t\tunspecified\t-5\tunset\t\t\t\t\t[]\t[]\t::\t::\t0"
	if diff := cmp.Diff(want, queryText(t, d, spans)); diff != "" {
		t.Errorf("spans (-want +got):\n%s", diff)
	}

	otel := `SELECT TraceId, SpanKind, Duration, StatusCode, ResourceAttributes['k8s.pod.name'], ScopeName, SpanAttributes['http.route'],
		toString(Events.Timestamp), toString(Events.Attributes), toString(Links.TraceId), toTypeName(Timestamp), toTypeName(TraceId)
		FROM ` + db + `.otel_traces ORDER BY TraceId DESC`
	want = "0102030405060708090a0b0c0d0e0f10\tConsumer\t1\tError\tcart-0\tlib\t/a\t['2026-01-02 03:04:05.123456789']\t[{'k':'v'}]\t" +
		"['11111111111111111111111111111111']\tDateTime64(9)\tString\n" +
		"00000000000000000000000000000001\tUnspecified\t0\tUnset\t\t\t\t[]\t[]\t[]\tDateTime64(9)\tString"
	if diff := cmp.Diff(want, queryText(t, d, otel)); diff != "" {
		t.Errorf("otel_traces (-want +got):\n%s", diff)
	}
	times := `SELECT Start <= now(), Start = End FROM ` + db + `.otel_traces_trace_id_ts WHERE TraceId = '0102030405060708090a0b0c0d0e0f10'`
	if got := queryText(t, d, times); got != "1\t1" {
		t.Errorf("trace times: %q", got)
	}
}

// A view is useless if a query through it reads the whole table.
func TestFiltersReachThePrimaryKey(t *testing.T) {
	d := migrated(t, testConfig(t))
	db := d.cfg.Database
	// 400,000 spans over nine hours, eight per trace.
	mustExec(t, d, `INSERT INTO `+db+`.spans_local (trace_id, span_id, start_time, service_name, attributes)
		SELECT lower(hex(sipHash128(intDiv(number, 8)))), lower(hex(sipHash64(number))),
			toStartOfDay(now64(9, 'UTC')) - toIntervalMillisecond(80 * number), 'service-' || toString(number % 5),
			map('k', toString(number), 'of the trace', toString(intDiv(number, 8))) FROM numbers(400000)`)
	mustExec(t, d, "OPTIMIZE TABLE "+db+".spans_local FINAL")
	trace := queryText(t, d, "SELECT trace_id FROM "+db+".spans_local LIMIT 1 OFFSET 100000")
	at, err := time.Parse(time.DateTime, queryText(t, d, "SELECT toString(toDateTime(min(start_time))) FROM "+db+".spans WHERE trace_id = '"+trace+"'"))
	if err != nil {
		t.Fatal(err)
	}
	from, to := at.Add(-time.Minute).Format(time.DateTime), at.Add(time.Minute).Format(time.DateTime)
	total := granules(t, d, "SELECT * FROM "+db+".spans_local")

	tests := map[string]struct {
		from, where string
		atMost      int // granules
	}{
		"spans of a trace":                 {"spans", "trace_id = '" + trace + "'", 4},
		"spans of a trace in its minutes":  {"spans", "trace_id = '" + trace + "' AND start_time BETWEEN '" + from + "' AND '" + to + "'", 6},
		"a service in some minutes":        {"spans", "service_name = 'service-1' AND start_time BETWEEN '" + from + "' AND '" + to + "'", 8},
		"spans by an attribute's value":    {"spans", "attributes['k'] = '123456' SETTINGS optimize_functions_to_subcolumns = 0", 4},
		"otel_traces by an attribute":      {"otel_traces", "SpanAttributes['k'] = '123456' SETTINGS optimize_functions_to_subcolumns = 0", 4},
		"otel_traces of a trace":           {"otel_traces", "TraceId = '" + trace + "'", 4},
		"otel_traces of a trace and time":  {"otel_traces", "TraceId = '" + trace + "' AND Timestamp BETWEEN '" + from + "' AND '" + to + "'", 6},
		"otel_traces in some minutes":      {"otel_traces", "Timestamp >= fromUnixTimestamp64Milli(" + millis(at, -1) + ") AND Timestamp <= fromUnixTimestamp64Milli(" + millis(at, 1) + ")", 8},
		"the times of a trace":             {"otel_traces_trace_id_ts", "TraceId = '" + trace + "'", 4},
		"a trace as Grafana's plugin asks": {"otel_traces", "TraceId = '" + trace + "' AND Timestamp >= (SELECT min(Start) FROM " + db + ".otel_traces_trace_id_ts WHERE TraceId = '" + trace + "') AND Timestamp <= (SELECT max(End) + 1 FROM " + db + ".otel_traces_trace_id_ts WHERE TraceId = '" + trace + "')", 6},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := granules(t, d, "SELECT * FROM "+db+"."+tc.from+" WHERE "+tc.where)
			if got == 0 || got > tc.atMost {
				t.Errorf("reads %d of %d granules, want 1 to %d", got, total, tc.atMost)
			}
		})
	}
}

func millis(at time.Time, minutes int) string {
	return strconv.FormatInt(at.Add(time.Duration(minutes)*time.Minute).UnixMilli(), 10)
}

var granulesLeft = regexp.MustCompile(`Granules: (\d+)`)

// granules returns how many granules of spans_local the indexes leave to read.
func granules(t *testing.T, d *DB, sql string) int {
	t.Helper()
	plan := queryText(t, d, "EXPLAIN indexes = 1 "+sql)
	at := strings.LastIndex(plan, "PrimaryKey")
	if at < 0 {
		t.Fatalf("no primary key in the plan:\n%s", plan)
	}
	found := granulesLeft.FindAllStringSubmatch(plan, -1)
	if len(found) == 0 {
		t.Fatalf("no granules in the plan:\n%s", plan)
	}
	n, err := strconv.Atoi(found[len(found)-1][1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
