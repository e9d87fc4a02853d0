package traces_test

import (
	"fmt"
	"strings"
	"testing"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
)

// A resource stands in every record that has a span of it. Whoever makes one so large that each span needs a
// record of its own gets no more than a few times the memory of the request.
func TestRepeatedResourcesAreBounded(t *testing.T) {
	var spans []*tracepb.Span
	for i := range 1000 {
		spans = append(spans, &tracepb.Span{
			TraceId: fmt.Appendf(nil, "%016d", i+1), SpanId: []byte("12345678"), Name: "s", StartTimeUnixNano: 1e18, EndTimeUnixNano: 1e18,
		})
	}
	large := &commonpb.KeyValue{Key: "k", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: strings.Repeat("x", 99_700)}}}
	req, err := proto.Marshal(&coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: []*commonpb.KeyValue{large}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	records, rejected, err := traces.Signal.NewSplitter().Split(req, signal.Options{Partitions: 12, Window: signal.Window{Latest: 1<<63 - 1}, MaxRecordBytes: 100_000})
	if err != nil {
		t.Fatal(err)
	}
	size, kept := 0, int64(0)
	for _, r := range records {
		size += len(r.Value)
		kept += int64(r.Items)
	}
	if limit := 8*len(req) + 8<<20; size > limit {
		t.Errorf("a request of %d bytes becomes %d", len(req), size)
	}
	if kept == 0 || kept+rejected.Count[signal.TooLarge] != 1000 {
		t.Errorf("%d spans kept, rejected %v", kept, rejected)
	}
}
