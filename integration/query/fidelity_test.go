package query

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/collector/pdata/ptrace"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/metaflowys/metaflow-server/integration/internal/shop"
	"github.com/metaflowys/metaflow-server/migrations"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/query"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// store inserts a request as a writer does.
func store(t *testing.T, request *coltracepb.ExportTraceServiceRequest) {
	t.Helper()
	cfg := clickhouse.DefaultConfig()
	cfg.Addresses = []string{engine.NativeAddr()}
	ins, err := clickhouse.NewInserter(cfg, clickhouse.InserterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer ins.Close()
	value, err := proto.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	block := columns.NewSpans()
	if refused, err := block.Append(value, columns.Source{Window: signal.WindowAt(time.Now(), 24*time.Hour, time.Hour)}); err != nil || len(refused) > 0 {
		t.Fatalf("%d refused, %v", len(refused), err)
	}
	if err := ins.Insert(t.Context(), 0, columns.TableSpans, t.Name(), block.Input(), block.Rows()); err != nil {
		t.Fatal(err)
	}
}

func whole(key string, value int64) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: value}}}
}

// What an SDK sends comes back as it was: ids, states, flags, counts, events, links, scopes,
// schema URLs, and the types of the attributes of the semantic conventions.
func TestTraceComesBackAsItWas(t *testing.T) {
	at := uint64(shop.Start.Add(-2 * time.Hour).UnixNano())
	id, parent, span := []byte("0123456789abcdef"), []byte("parent__"), []byte("the_span")
	sent := &tracepb.ResourceSpans{
		Resource: &resourcepb.Resource{
			Attributes: []*commonpb.KeyValue{
				{Key: "process.command_args", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: &commonpb.ArrayValue{
					Values: []*commonpb.AnyValue{otlptest.Text("", "shop").Value, otlptest.Text("", `--name="x"`).Value},
				}}}},
				whole("process.pid", 42), otlptest.Text("service.name", "fidelity"), otlptest.Text("service.version", "1.10"),
			},
			DroppedAttributesCount: 7,
		},
		SchemaUrl: "https://opentelemetry.io/schemas/1.30.0",
		ScopeSpans: []*tracepb.ScopeSpans{{
			Scope:     &commonpb.InstrumentationScope{Name: "lib", Version: "2", Attributes: []*commonpb.KeyValue{otlptest.Text("k", "v")}, DroppedAttributesCount: 1},
			SchemaUrl: "https://opentelemetry.io/schemas/1.20.0",
			Spans: []*tracepb.Span{{
				TraceId: id, SpanId: span, ParentSpanId: parent, TraceState: "a=b,c=d", Flags: 0x301, Name: "GET /\u00fc", Kind: tracepb.Span_SPAN_KIND_CLIENT,
				StartTimeUnixNano: at, EndTimeUnixNano: at + 123456789,
				Attributes: []*commonpb.KeyValue{
					otlptest.Text("app.count", "007"),
					{Key: "error", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: true}}},
					whole("http.response.status_code", 503), otlptest.Text("net.peer.name", `quoted "name"`), whole("server.port", 8080),
				},
				DroppedAttributesCount: 2, DroppedEventsCount: 3, DroppedLinksCount: 4,
				Events: []*tracepb.Span_Event{{TimeUnixNano: at + 5, Name: "exception", DroppedAttributesCount: 5, Attributes: []*commonpb.KeyValue{otlptest.Text("exception.type", "X")}}},
				Links: []*tracepb.Span_Link{{
					TraceId: []byte("fedcba9876543210"), SpanId: parent, TraceState: "x=y", Flags: 1, DroppedAttributesCount: 6, Attributes: []*commonpb.KeyValue{otlptest.Text("l", "1")},
				}},
				Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "went wrong"},
			}},
		}},
	}
	store(t, &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{sent}})
	r, _ := reader(t, config())
	trace, err := r.Trace(t.Context(), "30313233343536373839616263646566", query.Range{})
	if err != nil {
		t.Fatal(err)
	}
	wire, err := (&ptrace.ProtoMarshaler{}).MarshalTraces(trace.OTLP)
	if err != nil {
		t.Fatal(err)
	}
	var got tracepb.TracesData
	if err := proto.Unmarshal(wire, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{sent}}, &got, protocmp.Transform()); diff != "" {
		t.Errorf("-sent +read:\n%s", diff)
	}
}

// A trace with more spans than allowed is cut and says so.
func TestTraceIsCut(t *testing.T) {
	at := uint64(shop.Start.Add(-2 * time.Hour).UnixNano())
	scope := &tracepb.ScopeSpans{}
	for i := range 12 {
		scope.Spans = append(scope.Spans, &tracepb.Span{TraceId: []byte("a long long one!"), SpanId: []byte{1, 2, 3, 4, 5, 6, 7, byte(i)}, Name: "x", StartTimeUnixNano: at + uint64(i), EndTimeUnixNano: at + 100})
	}
	store(t, &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{scope}}}})
	cfg := config()
	cfg.MaxSpans = 10
	r, _ := reader(t, cfg)
	const id = "61206c6f6e67206c6f6e67206f6e6521"
	trace, err := r.Trace(t.Context(), id, query.Range{})
	if err != nil || !trace.Cut || trace.Spans != 10 || trace.OTLP.SpanCount() != 10 {
		t.Errorf("%+v, %v", trace, err)
	}
	if _, err := r.Trace(t.Context(), id, query.Range{End: time.Unix(0, int64(at))}); !errors.Is(err, query.ErrNotFound) {
		t.Errorf("before its first span: %v", err)
	}
}

// A trace with more bytes than a result may have is cut as well, not refused.
func TestTraceOfLargeSpansIsCut(t *testing.T) {
	at := uint64(shop.Start.Add(-2 * time.Hour).UnixNano())
	scope := &tracepb.ScopeSpans{}
	for i := range 1000 {
		scope.Spans = append(scope.Spans, &tracepb.Span{
			TraceId: []byte("a trace too wide"), SpanId: []byte{9, 2, 3, 4, 5, 6, byte(i >> 8), byte(i)}, Name: "x", StartTimeUnixNano: at + uint64(i), EndTimeUnixNano: at + 2000,
			Attributes: []*commonpb.KeyValue{otlptest.Text("app.text", strings.Repeat("x", 4<<10))},
		})
	}
	store(t, &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{scope}}}})
	cfg := config()
	cfg.MaxResultBytes = 1 << 20
	r, _ := reader(t, cfg)
	trace, err := r.Trace(t.Context(), hex.EncodeToString([]byte("a trace too wide")), query.Range{})
	if err != nil || !trace.Cut || trace.Spans < 100 || trace.OTLP.SpanCount() != trace.Spans {
		t.Errorf("cut: %t, %d spans, %v", trace.Cut, trace.Spans, err)
	}
}

// Senders may use the names of what the query role adds, and give an attribute another type
// than the semantic conventions do.
func TestTraceWithAttributesOfTheSender(t *testing.T) {
	at := uint64(shop.Start.Add(-2 * time.Hour).UnixNano())
	store(t, &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{{
		TraceId: []byte("forged verdict.."), SpanId: []byte("the_span"), Name: "x", StartTimeUnixNano: at, EndTimeUnixNano: at + 1,
		Attributes: []*commonpb.KeyValue{otlptest.Text("@jaeger@warnings", "mine"), otlptest.Text("metaflow.network.verdict", "reset"), otlptest.Text("thread.id", "+7"), otlptest.Text("http.status_code", "0200")},
	}}}}}}})
	r, _ := reader(t, config())
	trace, err := r.Trace(t.Context(), "666f7267656420766572646963742e2e", query.Range{})
	if err != nil {
		t.Fatal(err)
	}
	got := trace.OTLP.ResourceSpans().At(0).ScopeSpans().At(0).Spans().At(0).Attributes().AsRaw()
	if diff := cmp.Diff(map[string]any{"@jaeger@warnings": "mine", "thread.id": "+7", "http.status_code": "0200"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A search that finds many large traces whose parents are missing stays within its memory.
func TestSearchOfLargeTraces(t *testing.T) {
	const traces, spans = 20, 5000
	at := shop.Start.Add(-5 * time.Hour)
	r, _ := reader(t, config())
	conn := chtest.Open(t, engine)
	insert := fmt.Sprintf(`INSERT INTO metaflow.spans_local (trace_id, span_id, parent_span_id, name, service_name, start_time, duration_ns)
		SELECT lower(hex(sipHash128(intDiv(number, %d)))), lower(hex(sipHash64(number))), lower(hex(sipHash64(number, 1))), 'wide', 'wide', fromUnixTimestamp64Nano(%d + number), 1
		FROM numbers(%d)`, spans, at.UnixNano(), traces*spans)
	if err := conn.Exec(t.Context(), insert); err != nil {
		t.Fatal(err)
	}
	result, err := r.Find(t.Context(), query.Search{Range: query.Range{Start: at.Add(-time.Hour), End: at.Add(time.Hour)}, Where: query.And{}, Limit: traces, SpansPerTrace: 3})
	if err != nil {
		t.Fatal(err)
	}
	found := result.Traces
	if len(found) != traces || found[0].Spans != spans || found[0].Orphans != spans {
		t.Errorf("%d traces, the first %+v", len(found), found[0])
	}
}

// Zipkin's senders give both ends of a call one id: each end has an answer of its own.
func TestBothEndsOfASharedID(t *testing.T) {
	at := uint64(shop.Start.Add(-2 * time.Hour).UnixNano())
	span := func(kind tracepb.Span_SpanKind) *tracepb.Span {
		return &tracepb.Span{TraceId: []byte("shared span ids."), SpanId: []byte("the_call"), Kind: kind, Name: "x", StartTimeUnixNano: at, EndTimeUnixNano: at + 1}
	}
	store(t, &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{
		Spans: []*tracepb.Span{span(tracepb.Span_SPAN_KIND_CLIENT), span(tracepb.Span_SPAN_KIND_SERVER)},
	}}}}})
	r, _ := reader(t, config())
	const id = "736861726564207370616e206964732e"
	network, err := r.Network(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []ptrace.SpanKind{ptrace.SpanKindClient, ptrace.SpanKindServer} {
		if n, ok := network[query.SpanKey{ID: "7468655f63616c6c", Kind: kind}]; !ok || n.Unmatched == "" {
			t.Errorf("%s: %+v, %t", kind, n, ok)
		}
	}
	if len(network) != 2 {
		t.Errorf("%+v", network)
	}
}

// The query role knows the verdicts that the view has, and no others.
func TestVerdictsAreThoseOfTheView(t *testing.T) {
	var text string
	if err := chtest.Open(t, engine).QueryRow(t.Context(), "SELECT as_select FROM system.tables WHERE database = 'metaflow' AND name = 'traces_network'").Scan(&text); err != nil {
		t.Fatal(err)
	}
	quoted := make([]string, len(query.Verdicts))
	for i, v := range query.Verdicts {
		quoted[i] = "'" + strings.ReplaceAll(v, "'", `\'`) + "'"
	}
	if want := "[" + strings.Join(quoted, ", ") + "] AS words"; !strings.Contains(text, want) {
		t.Errorf("the view has no %s:\n%.1500s", want, text)
	}
	if !strings.Contains(text, "{trace_ids:Array(String)}") {
		t.Error("the query role cannot put traces into the view's text")
	}
	if got, want := fmt.Sprint(query.LeastGap.Milliseconds()), (migrations.Params{}).GapMS(); got != want {
		t.Errorf("the query role takes calls of less than %s ms for unharmed, the views of less than %s", got, want)
	}
}

// Traces that together have more rows than a result may are read one after another.
func TestFindTracesOfManySpans(t *testing.T) {
	const traces, spans = 4, 400
	at := shop.Start.Add(-8 * time.Hour)
	cfg := config()
	cfg.MaxSpans, cfg.MaxResultRows = spans+100, 1000
	r, _ := reader(t, cfg)
	insert := fmt.Sprintf(`INSERT INTO metaflow.spans_local (trace_id, span_id, name, service_name, start_time, duration_ns)
		SELECT lower(hex(sipHash128('many', intDiv(number, %d)))), leftPad(lower(hex(sipHash64('many', number))), 16, '0'), 'many', 'many', fromUnixTimestamp64Nano(%d + number), 1
		FROM numbers(%d)`, spans, at.UnixNano(), traces*spans)
	if err := chtest.Open(t, engine).Exec(t.Context(), insert); err != nil {
		t.Fatal(err)
	}
	found := 0
	err := r.FindTraces(t.Context(), query.Search{Range: query.Range{Start: at.Add(-time.Hour), End: at.Add(time.Hour)}, Where: query.And{}, Limit: traces}, func(trace query.Trace) error {
		found++
		if trace.Cut || trace.Spans != spans {
			t.Errorf("%d spans, cut: %t", trace.Spans, trace.Cut)
		}
		return nil
	})
	if err != nil || found != traces {
		t.Errorf("%d traces, %v", found, err)
	}
}

// Traces that together have more bytes than a result may are all returned, also where their
// spans are much larger than most and one of them has a span that no result can hold.
func TestFindTracesOfLargeSpans(t *testing.T) {
	at := shop.Start.Add(-9 * time.Hour)
	cfg := config()
	cfg.MaxResultBytes = 1 << 20
	r, _ := reader(t, cfg)
	// Trace n has n spans of 60 KB; of trace 30, only a part fits.
	insert := fmt.Sprintf(`INSERT INTO metaflow.spans_local (trace_id, span_id, name, service_name, start_time, duration_ns, attributes)
		SELECT lower(hex(sipHash128('large', of))), leftPad(lower(hex(sipHash64('large', of, number))), 16, '0'), 'large', 'large', fromUnixTimestamp64Nano(%d - of * 1000 + number), 1,
			map('app.text', repeat(leftPad(toString(number), 10, '0'), if(of = 6, 600000, 6000)))
		FROM (SELECT arrayJoin([1, 2, 3, 4, 5, 6, 30]) AS of, arrayJoin(range(of)) AS number)`, at.UnixNano())
	if err := chtest.Open(t, engine).Exec(t.Context(), insert); err != nil {
		t.Fatal(err)
	}
	search := query.Search{Range: query.Range{Start: at.Add(-time.Hour), End: at.Add(time.Hour)}, Where: query.And{}, Limit: 20}
	var got []int
	err := r.FindTraces(t.Context(), search, func(trace query.Trace) error {
		got = append(got, trace.Spans)
		if trace.Cut != (len(got) == 6) {
			t.Errorf("a trace of %d spans, cut: %t", trace.Spans, trace.Cut)
		}
		return nil
	})
	if err != nil || len(got) != 6 || !slices.Equal(got[:5], []int{1, 2, 3, 4, 5}) || got[5] >= 30 || got[5] == 0 {
		t.Errorf("traces of %v spans, %v", got, err)
	}
	left := errors.New("left")
	if err := r.FindTraces(t.Context(), search, func(query.Trace) error { return left }); !errors.Is(err, left) {
		t.Errorf("a client that left: %v", err)
	}
	release, err := r.Answers().Hold(4 << 20)
	if err != nil {
		t.Fatalf("traces are still held: %v", err)
	}
	defer release()
	if err := r.FindTraces(t.Context(), search, func(query.Trace) error { return nil }); fault.ClassOf(err) != fault.Rejected || !strings.Contains(err.Error(), "unread") {
		t.Errorf("while too much is unread: %v", err)
	}
}
