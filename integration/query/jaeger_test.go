package query

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/metaflowys/metaflow-server/integration/internal/shop"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/query"
	"github.com/metaflowys/metaflow-server/pkg/query/jaeger"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	storage "github.com/metaflowys/metaflow-server/schema/jaegerstorage"
)

// newJaeger serves Jaeger's storage API over the shop's hour and returns a connection to it.
func newJaeger(t *testing.T) *grpc.ClientConn {
	t.Helper()
	return jaegerOf(t, config())
}

func jaegerOf(t *testing.T, of query.Config) *grpc.ClientConn {
	t.Helper()
	r, _ := reader(t, of)
	return dialJaeger(t, serveJaeger(t, r, query.ReadTime))
}

// serveJaeger serves Jaeger's storage API to clients that have to read their answers in time.
func serveJaeger(t *testing.T, r *query.Reader, readTime time.Duration) (addr string) {
	t.Helper()
	cfg := rpc.DefaultConfig()
	cfg.Listen = "127.0.0.1:0"
	opts := rpc.Options{Answers: r.Answers(), ReadTime: readTime}
	opts.Services = append(opts.Services, jaeger.NewService(r).Register)
	s, err := rpc.New(cfg, nil, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := contextOf(t)
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s.Addr().String()
}

func dialJaeger(t *testing.T, addr string) *grpc.ClientConn {
	t.Helper()
	// On a busy machine gRPC takes answers for far away, and windows grow until they hold all that a
	// test leaves unread.
	const window = 64 << 10
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithStaticStreamWindowSize(window), grpc.WithStaticConnWindowSize(window))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// received are the spans of a stream of chunks.
func received(t *testing.T, stream grpc.ServerStreamingClient[storage.TracesData], err error) (spans []*tracepb.Span, chunks int) {
	t.Helper()
	for err == nil {
		var data *storage.TracesData
		if data, err = stream.Recv(); err != nil {
			break
		}
		chunks++
		before := len(spans)
		for _, b := range data.ResourceSpans {
			var rs tracepb.ResourceSpans
			if err := proto.Unmarshal(b, &rs); err != nil {
				t.Fatal(err)
			}
			for _, ss := range rs.ScopeSpans {
				spans = append(spans, ss.Spans...)
			}
		}
		for _, s := range spans[before:] {
			if string(s.TraceId) != string(spans[before].TraceId) {
				t.Error("a chunk has spans of two traces")
			}
		}
		if len(spans) == before {
			t.Error("a chunk is empty")
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return spans, chunks
}

func during(q *storage.TraceQueryParameters) *storage.TraceQueryParameters {
	q.StartTimeMin, q.StartTimeMax = timestamppb.New(shop.Start), timestamppb.New(shop.End)
	q.SearchDepth = 3
	return q
}

func tagged(key, value string) *storage.KeyValue {
	return &storage.KeyValue{Key: key, Value: &storage.AnyValue{Value: &storage.AnyValue_StringValue{StringValue: value}}}
}

func TestJaegerNames(t *testing.T) {
	c := storage.NewTraceReaderClient(newJaeger(t))
	services, err := c.GetServices(t.Context(), &storage.GetServicesRequest{})
	if err != nil || !slices.Contains(services.GetServices(), "checkoutservice") {
		t.Errorf("services: %q, %v", services.GetServices(), err)
	}
	for kind, want := range map[string]string{"": "GET /cart server", "client": "PlaceOrder client"} {
		ops, err := c.GetOperations(t.Context(), &storage.GetOperationsRequest{Service: "frontend", SpanKind: kind})
		var got []string
		for _, o := range ops.GetOperations() {
			got = append(got, o.Name+" "+o.SpanKind)
		}
		if err != nil || !slices.Contains(got, want) || kind != "" && slices.Contains(got, "GET /cart server") {
			t.Errorf("operations of kind %q: %q, %v", kind, got, err)
		}
	}
	caps, err := storage.NewCapabilitiesClient(newJaeger(t)).GetCapabilities(t.Context(), &storage.GetCapabilitiesRequest{})
	if err != nil || !caps.Search.WithoutServiceName || caps.Search.SpanSearch {
		t.Errorf("capabilities: %v, %v", caps, err)
	}
}

// Every kind of search finds the traces that have such a span, in all three forms.
func TestJaegerSearch(t *testing.T) {
	c := storage.NewTraceReaderClient(newJaeger(t))
	for name, tc := range map[string]struct {
		query *storage.TraceQueryParameters
		root  string // of every trace that is found; "" if none is
	}{
		"a service":          {&storage.TraceQueryParameters{ServiceName: "paymentservice"}, "POST /checkout"},
		"an operation":       {&storage.TraceQueryParameters{ServiceName: "frontend", OperationName: "GET /cart"}, "GET /cart"},
		"a duration":         {&storage.TraceQueryParameters{OperationName: "Charge", DurationMin: durationpb.New(200 * time.Millisecond)}, "POST /checkout"},
		"a short duration":   {&storage.TraceQueryParameters{OperationName: "Charge", DurationMax: durationpb.New(time.Microsecond)}, ""},
		"an attribute":       {&storage.TraceQueryParameters{Attributes: []*storage.KeyValue{tagged("http.route", "/search")}}, "GET /search"},
		"a resource's":       {&storage.TraceQueryParameters{Attributes: []*storage.KeyValue{tagged("service.name", "emailservice")}}, "POST /checkout"},
		"an event's":         {&storage.TraceQueryParameters{Attributes: []*storage.KeyValue{tagged("exception.type", "payment.CardDeclined")}}, "POST /checkout"},
		"errors of a client": {&storage.TraceQueryParameters{Attributes: []*storage.KeyValue{tagged("error", "true"), tagged("span.kind", "client")}}, "POST /checkout"},
		"a scope's":          {&storage.TraceQueryParameters{ServiceName: "emailservice", Attributes: []*storage.KeyValue{tagged("otel.scope.name", "shop"), tagged("otel.scope.version", "1.0.0")}}, "POST /checkout"},
		"another scope's":    {&storage.TraceQueryParameters{ServiceName: "emailservice", Attributes: []*storage.KeyValue{tagged("otel.scope.name", "shops")}}, ""},
		"two of two spans":   {&storage.TraceQueryParameters{ServiceName: "paymentservice", Attributes: []*storage.KeyValue{tagged("http.route", "/checkout")}}, ""},
	} {
		q := during(tc.query)
		ids, err := c.FindTraceIDs(t.Context(), &storage.FindTraceIDsRequest{Query: q})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		stream, err := c.FindTraces(t.Context(), &storage.FindTracesRequest{Query: q})
		spans, _ := received(t, stream, err)
		traces := map[string]bool{}
		for _, s := range spans {
			traces[string(s.TraceId)] = true
			if len(s.ParentSpanId) == 0 && s.Name != tc.root {
				t.Errorf("%s: found a trace of %s", name, s.Name)
			}
		}
		if len(ids.TraceIds) != len(traces) || (len(traces) == 0) != (tc.root == "") {
			t.Errorf("%s: %d ids and %d traces", name, len(ids.TraceIds), len(traces))
		}
		sums, err := c.FindTraceSummaries(t.Context(), &storage.FindTraceSummariesRequest{Query: q})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := sums.Recv()
		if tc.root == "" {
			if !errors.Is(err, io.EOF) {
				t.Errorf("%s: summaries %v, %v", name, resp, err)
			}
			continue
		}
		if err != nil || len(resp.Summaries) != len(traces) || resp.Summaries[0].RootOperationName != tc.root || resp.Summaries[0].OrphanSpanCount != 0 {
			t.Errorf("%s: summaries %v, %v", name, resp, err)
		}
	}
	_, err := c.FindTraceIDs(t.Context(), &storage.FindTraceIDsRequest{Query: &storage.TraceQueryParameters{StartTimeMin: timestamppb.New(time.Unix(1, 0))}})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a search of all times: %v", err)
	}
}

// A call whose packets were lost says so in its attributes, and warns.
func TestJaegerShowsTheNetwork(t *testing.T) {
	c := storage.NewTraceReaderClient(newJaeger(t))
	ids, err := c.FindTraceIDs(t.Context(), &storage.FindTraceIDsRequest{Query: during(&storage.TraceQueryParameters{
		Attributes: []*storage.KeyValue{tagged("metaflow.network.verdict", "retransmission")},
	})})
	if err != nil || len(ids.TraceIds) == 0 {
		t.Fatalf("%v, %v", ids, err)
	}
	unknown, _ := hex.DecodeString(strings.Repeat("9", 32))
	stream, err := c.GetTraces(t.Context(), &storage.GetTracesRequest{Query: []*storage.GetTraceParams{{TraceId: unknown}, {TraceId: ids.TraceIds[0].TraceId}}})
	spans, _ := received(t, stream, err)
	warned := 0
	for _, s := range spans {
		attributes := map[string]*commonpb.AnyValue{}
		for _, kv := range s.Attributes {
			attributes[kv.Key] = kv.Value
		}
		bad := attributes["metaflow.network.verdict"].GetStringValue() == "retransmission"
		warning := attributes["@jaeger@warnings"].GetArrayValue().GetValues()
		if bad != (len(warning) == 1) {
			t.Errorf("%s has the verdict %v and the warnings %v", s.Name, attributes["metaflow.network.verdict"], warning)
		}
		if len(warning) > 0 {
			warned++
			if !strings.HasPrefix(warning[0].GetStringValue(), "network: retransmission: ") {
				t.Errorf("the warning is %q", warning[0].GetStringValue())
			}
		}
	}
	if len(spans) != 22 || warned == 0 {
		t.Errorf("%d spans, %d with a warning", len(spans), warned)
	}
	_, err = c.FindTraceIDs(t.Context(), &storage.FindTraceIDsRequest{Query: during(&storage.TraceQueryParameters{
		Attributes: []*storage.KeyValue{tagged("metaflow.network.retransmits", "1")},
	})})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), "search for the verdict") {
		t.Errorf("a search for the number of retransmits: %v", err)
	}
}

// Traces whose network was not read in time say so.
func TestJaegerSaysThatTheNetworkIsMissing(t *testing.T) {
	cfg := config()
	cfg.NetworkTimeout = time.Nanosecond
	c := storage.NewTraceReaderClient(jaegerOf(t, cfg))
	stream, err := c.FindTraces(t.Context(), &storage.FindTracesRequest{Query: during(&storage.TraceQueryParameters{ServiceName: "paymentservice", SearchDepth: 3})})
	spans, _ := received(t, stream, err)
	late := 0
	for _, s := range spans {
		for _, a := range s.Attributes {
			if a.Key == "@jaeger@warnings" && strings.Contains(a.Value.String(), "or not within query.network_timeout") {
				late++
			}
		}
	}
	if late != 3 {
		t.Errorf("%d of 3 traces say that their network is missing", late)
	}
}

// A trace larger than a message comes in several.
func TestJaegerSplitsLargeTraces(t *testing.T) {
	at := uint64(shop.Start.Add(-2 * time.Hour).UnixNano())
	scope := &tracepb.ScopeSpans{}
	for i := range 40 {
		scope.Spans = append(scope.Spans, &tracepb.Span{
			TraceId: []byte("a large trace..."), SpanId: []byte{9, 2, 3, 4, 5, 6, 7, byte(i)}, Name: "x", StartTimeUnixNano: at + uint64(i), EndTimeUnixNano: at + 100,
			Attributes: []*commonpb.KeyValue{otlptest.Text("app.text", strings.Repeat(string(rune('a'+i%26)), 100<<10))},
		})
	}
	store(t, &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{scope}}}})
	c := storage.NewTraceReaderClient(newJaeger(t))
	stream, err := c.GetTraces(t.Context(), &storage.GetTracesRequest{Query: []*storage.GetTraceParams{{TraceId: []byte("a large trace...")}}})
	spans, chunks := received(t, stream, err)
	if len(spans) != 40 || chunks != 4 {
		t.Errorf("%d spans in %d chunks, want 40 in 4", len(spans), chunks)
	}
}

// Resources count in a message, too, and an attribute with the name of Jaeger's warnings is
// kept as one.
func TestJaegerTracesOfManyResources(t *testing.T) {
	at := uint64(shop.Start.Add(-2 * time.Hour).UnixNano())
	var all []*tracepb.ResourceSpans
	for i := range 60 {
		span := &tracepb.Span{
			TraceId: []byte("many resources.."), SpanId: []byte{8, 2, 3, 4, 5, 6, 7, byte(i)}, Name: "x", StartTimeUnixNano: at + uint64(i), EndTimeUnixNano: at + 100,
			Attributes: []*commonpb.KeyValue{otlptest.Text("@jaeger@warnings", "mine")},
		}
		all = append(all, &tracepb.ResourceSpans{
			Resource:   &resourcepb.Resource{Attributes: []*commonpb.KeyValue{otlptest.Text("app.text", strings.Repeat(string(rune('a'+i%26)), 100<<10)+strconv.Itoa(i))}},
			ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{span}}},
		})
	}
	store(t, &coltracepb.ExportTraceServiceRequest{ResourceSpans: all})
	cfg := config()
	cfg.MaxSpans = 59 // so that the trace has a warning
	c := storage.NewTraceReaderClient(jaegerOf(t, cfg))
	stream, err := c.GetTraces(t.Context(), &storage.GetTracesRequest{Query: []*storage.GetTraceParams{{TraceId: []byte("many resources..")}}})
	spans, chunks := received(t, stream, err)
	if len(spans) != 59 || chunks != 6 {
		t.Fatalf("%d spans in %d chunks, want 59 in 6", len(spans), chunks)
	}
	warnings := spans[0].Attributes[0].GetValue().GetArrayValue().GetValues()
	if len(warnings) != 2 || warnings[0].GetStringValue() != "mine" || !strings.Contains(warnings[1].GetStringValue(), "query.max_spans") {
		t.Errorf("warnings %v", warnings)
	}
}

func TestJaegerDependencies(t *testing.T) {
	c := storage.NewDependencyReaderClient(newJaeger(t))
	resp, err := c.GetDependencies(t.Context(), &storage.GetDependenciesRequest{StartTime: timestamppb.New(shop.Start), EndTime: timestamppb.New(shop.End)})
	if err != nil {
		t.Fatal(err)
	}
	sources := map[string]string{}
	for _, d := range resp.Dependencies {
		if d.CallCount == 0 {
			t.Errorf("%v", d)
		}
		sources[d.Parent+" "+d.Child] = d.Source
	}
	if len(sources) != 7 || sources["frontend cartservice"] != "metaflow" || sources["checkoutservice paymentservice"] != "metaflow, network: retransmission" {
		t.Errorf("%q", sources)
	}
}

// After a day without spans, the services and operations of query.max_range are listed.
func TestNamesAfterAQuietDay(t *testing.T) {
	_, db := reader(t, config())
	for days, want := range map[int]bool{0: true, 3: true, 30: false} {
		r := query.NewReader(config(), db, clickhouse.DefaultConfig().Database, query.Options{Now: func() time.Time { return shop.End.AddDate(0, 0, days) }})
		services, err := r.Services(t.Context())
		if err != nil || slices.Contains(services, "paymentservice") != want {
			t.Errorf("services after %d days: %q, %v", days, services, err)
		}
		operations, err := r.Operations(t.Context(), "paymentservice", "")
		if err != nil || (len(operations) > 0) != want {
			t.Errorf("operations after %d days: %+v, %v", days, operations, err)
		}
	}
}

// allRead returns an error if an answer of a reader waits for its client.
func allRead(r *query.Reader, cfg query.Config) error {
	release, err := r.Answers().Hold(4 * int(cfg.MaxResultBytes)) // all there is
	if err == nil {
		release()
	}
	return err
}

// A client that asks for traces and takes none of them loses its connection in time. What waited
// for it no longer counts as unread, and other clients are served.
func TestJaegerGivesUpUnreadTraces(t *testing.T) {
	at := uint64(shop.Start.Add(-10 * time.Hour).UnixNano())
	scope := &tracepb.ScopeSpans{}
	for trace := range 3 {
		for i := range 40 {
			scope.Spans = append(scope.Spans, &tracepb.Span{
				TraceId: fmt.Appendf(nil, "an unread trace%d", trace), SpanId: []byte{7, 2, 3, 4, 5, 6, 7, byte(i)}, Name: "unread", StartTimeUnixNano: at + uint64(i), EndTimeUnixNano: at + 100,
				Attributes: []*commonpb.KeyValue{otlptest.Text("app.text", strings.Repeat(string(rune('a'+i%26)), 50<<10))},
			})
		}
	}
	store(t, &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{scope}}}})
	cfg := config()
	cfg.MaxResultBytes = 32 << 20 // so that all of them may wait
	metrics := prometheus.NewRegistry()
	r, _ := readerWith(t, cfg, query.Options{Registerer: metrics})
	addr := serveJaeger(t, r, time.Second)
	find := during(&storage.TraceQueryParameters{OperationName: "unread"})
	find.StartTimeMin, find.StartTimeMax = timestamppb.New(time.Unix(0, int64(at)).Add(-time.Minute)), timestamppb.New(time.Unix(0, int64(at)).Add(time.Minute))
	get := &storage.GetTracesRequest{Query: []*storage.GetTraceParams{{TraceId: []byte("an unread trace0")}, {TraceId: []byte("an unread trace1")}}}

	conn := dialJaeger(t, addr)
	idle := storage.NewTraceReaderClient(conn)
	var streams []grpc.ServerStreamingClient[storage.TracesData]
	for range 3 {
		found, err := idle.FindTraces(t.Context(), &storage.FindTracesRequest{Query: find})
		if err != nil {
			t.Fatal(err)
		}
		got, err := idle.GetTraces(t.Context(), get)
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, found, got)
	}
	wait.Until(t, "the connection is closed", func() bool { return conn.GetState() != connectivity.Ready })
	for _, s := range streams {
		var err error
		for err == nil {
			_, err = s.Recv()
		}
		if status.Code(err) != codes.Unavailable {
			t.Errorf("the stream ended with %v", err)
		}
	}
	wait.NoError(t, func() error { return allRead(r, cfg) })
	if n := prom.Value(t, metrics, "metaflow_query_unread_connections_total"); n != 1 {
		t.Errorf("%g connections are counted, want one, of six answers", n)
	}
	busy := storage.NewTraceReaderClient(dialJaeger(t, addr))
	stream, err := busy.FindTraces(t.Context(), &storage.FindTracesRequest{Query: find})
	if spans, _ := received(t, stream, err); len(spans) != 120 {
		t.Errorf("another client gets %d spans, want 120", len(spans))
	}
}
