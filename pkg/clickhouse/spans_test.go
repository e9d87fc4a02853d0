package clickhouse

import (
	"bytes"
	"math"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// The decoder's columns match the table's in name and type.
func TestDecodedSpansFitTheTable(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	ins := newInserter(t, cfg)
	g := otlptest.New(1, otlptest.Options{Start: day(1)})
	block := columns.NewSpans()
	const rows = 5000
	if _, err := block.Append(g.RequestBytes(rows), columns.Source{Agent: "agent-1", Window: signal.WindowAt(time.Now(), 168*time.Hour, time.Hour)}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := ins.Insert(t.Context(), 0, columns.TableSpans, "token", block.Input(), block.Rows()); err != nil {
			t.Fatal(err)
		}
	}
	got := queryText(t, d, `SELECT count(), uniqExact(span_id), countIf(agent_id = 'agent-1'), countIf(resource_attributes['service.name'] = service_name),
		countIf(end_time >= start_time), countIf(match(trace_id, '^[0-9a-f]{32}$')) FROM `+cfg.Database+".spans")
	if want := "5000\t5000\t5000\t5000\t5000\t5000"; got != want {
		t.Errorf("stored %q, want %q", got, want)
	}
	sent := map[string]bool{}
	for _, c := range block.Input() {
		sent[c.Name] = true
	}
	for _, name := range columnsOf(t, d, columns.TableSpans) {
		if !sent[name] {
			t.Errorf("column %s of the table is never filled", name)
		}
	}
}

// Values that cannot be stored as received keep a consistent form: queries and derived
// columns see the same value of a repeated key, no event happened in 1969, and invalid
// UTF-8 is marked.
func TestOddValuesInTheTable(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	ins := newInserter(t, cfg)
	text := func(key, value string) *commonpb.KeyValue {
		return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
	}
	at := uint64(day(1).UnixNano())
	body, err := proto.Marshal(&coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource: &resourcepb.Resource{Attributes: []*commonpb.KeyValue{text("service.name", "first"), text("service.name", "last")}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{{
			TraceId: []byte("0123456789abcdef"), SpanId: []byte("01234567"), Name: "caf~", StartTimeUnixNano: at, EndTimeUnixNano: at,
			Attributes: []*commonpb.KeyValue{text("http.request.method", "GET"), text("http.request.method", "POST")},
			Events:     []*tracepb.Span_Event{{Name: "e", TimeUnixNano: math.MaxUint64}},
		}}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	block := columns.NewSpans()
	if _, err := block.Append(bytes.Replace(body, []byte("caf~"), []byte("caf\xc3"), 1), columns.Source{Window: signal.Anytime}); err != nil {
		t.Fatal(err)
	}
	if err := ins.Insert(t.Context(), 0, columns.TableSpans, "token", block.Input(), block.Rows()); err != nil {
		t.Fatal(err)
	}
	got := queryText(t, d, `SELECT name, attributes['http.request.method'], method, length(attributes), resource_attributes['service.name'], service_name,
		toString(events[1].time) FROM `+cfg.Database+".spans")
	if want := "caf\uFFFD\tPOST\tPOST\t1\tlast\tlast\t2262-04-11 23:47:16.854775807"; got != want {
		t.Errorf("stored %q, want %q", got, want)
	}
}

func columnsOf(t *testing.T, d *DB, table string) []string {
	t.Helper()
	var names []string
	err := d.conn.QueryRow(t.Context(), "SELECT groupArray(name) FROM system.columns WHERE database = $1 AND table = $2",
		d.cfg.Database, table).Scan(&names)
	if err != nil {
		t.Fatal(err)
	}
	return names
}
