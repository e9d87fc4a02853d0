package otlptest_test

import (
	"bytes"
	"testing"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

var compositions = map[string]otlptest.Composition{
	"collector batch": otlptest.CollectorBatch,
	"service batch":   otlptest.ServiceBatch,
}

// spansOf calls visit for each span of req with its service's name.
func spansOf(req *coltracepb.ExportTraceServiceRequest, visit func(service string, s *tracepb.Span)) {
	for _, rs := range req.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				visit(attribute(rs.Resource.Attributes, "service.name"), s)
			}
		}
	}
}

func attribute(kvs []*commonpb.KeyValue, key string) string {
	for _, kv := range kvs {
		if kv.Key == key {
			return kv.Value.GetStringValue()
		}
	}
	return ""
}

func TestSameSeedGivesSameBytes(t *testing.T) {
	for name, composition := range compositions {
		t.Run(name, func(t *testing.T) {
			o := otlptest.Options{Composition: composition}
			a, b, other := otlptest.New(1, o), otlptest.New(1, o), otlptest.New(2, o)
			for i := range 5 {
				x := a.RequestBytes(300)
				if !bytes.Equal(x, b.RequestBytes(300)) {
					t.Fatalf("request %d differs between equal seeds", i)
				}
				if bytes.Equal(x, other.RequestBytes(300)) {
					t.Fatalf("request %d is the same for another seed", i)
				}
			}
		})
	}
}

func TestRequestsAreValidAndComposedAsAsked(t *testing.T) {
	for name, composition := range compositions {
		t.Run(name, func(t *testing.T) {
			g := otlptest.New(7, otlptest.Options{Composition: composition})
			ids := map[string]bool{}
			for range 20 {
				req := g.Request(250)
				if one := len(req.ResourceSpans) == 1; one != (composition == otlptest.ServiceBatch) {
					t.Fatalf("request has %d resources", len(req.ResourceSpans))
				}
				n := 0
				spansOf(req, func(_ string, s *tracepb.Span) {
					n++
					checkSpan(t, s)
					if ids[string(s.SpanId)] {
						t.Errorf("span id %x twice", s.SpanId)
					}
					ids[string(s.SpanId)] = true
				})
				if n != 250 {
					t.Fatalf("request has %d spans, want 250", n)
				}
			}
		})
	}
}

func checkSpan(t *testing.T, s *tracepb.Span) {
	t.Helper()
	if len(s.TraceId) != 16 || bytes.Equal(s.TraceId, make([]byte, 16)) {
		t.Errorf("trace id %x", s.TraceId)
	}
	if len(s.SpanId) != 8 || bytes.Equal(s.SpanId, make([]byte, 8)) {
		t.Errorf("span id %x", s.SpanId)
	}
	if len(s.ParentSpanId) != 0 && len(s.ParentSpanId) != 8 {
		t.Errorf("parent span id %x", s.ParentSpanId)
	}
	if s.EndTimeUnixNano < s.StartTimeUnixNano {
		t.Errorf("span %x ends before it starts", s.SpanId)
	}
}

// The figures of the storage measurements hold for spans like these.
func TestSpansLookLikeTheWebStore(t *testing.T) {
	const spans, batch = 40_000, 1000
	g := otlptest.New(3, otlptest.Options{})
	size, failed, linked, first, last := 0, 0, 0, uint64(0), uint64(0)
	services, traces := map[string]int{}, map[string]int{}
	for range spans / batch {
		size += len(g.RequestBytes(batch))
	}
	g = otlptest.New(3, otlptest.Options{})
	spansOf(g.Request(spans), func(service string, s *tracepb.Span) {
		services[service]++
		traces[string(s.TraceId)]++
		if s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR {
			failed++
		}
		linked += len(s.Links)
		if first == 0 {
			first = s.StartTimeUnixNano
		}
		last = max(last, s.StartTimeUnixNano)
	})
	within(t, "bytes a span", float64(size)/spans, 661, 681)
	within(t, "percent of errors", 100*float64(failed)/spans, 2, 4)
	within(t, "percent of links", 100*float64(linked)/spans, 0.05, 1)
	within(t, "spans a trace", spans/float64(len(traces)), 10, 40)
	within(t, "services", float64(len(services)), 11, 11)
	within(t, "seconds", float64(last-first)/1e9, 35, 45)
	t.Logf("%.1f bytes a span, %.1f spans a trace", float64(size)/spans, spans/float64(len(traces)))
}

func within(t *testing.T, what string, got, low, high float64) {
	t.Helper()
	if got < low || got > high {
		t.Errorf("%s: %.2f, want %.2f to %.2f", what, got, low, high)
	}
}

func BenchmarkRequestBytes(b *testing.B) {
	const spans = 1000
	g := otlptest.New(1, otlptest.Options{})
	size := 0
	for b.Loop() {
		size += len(g.RequestBytes(spans))
	}
	b.SetBytes(int64(size / b.N))
	b.ReportMetric(float64(b.N*spans)/b.Elapsed().Seconds(), "spans/s")
}
