package otlptest

import (
	"strconv"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// Sized returns a request of about so many bytes. Its text compresses moderately, so sizes on the wire are of
// the same order.
func Sized(bytes int) *coltracepb.ExportTraceServiceRequest {
	var spans []*tracepb.Span
	for size := 0; size < bytes; size += 64 {
		spans = append(spans, &tracepb.Span{
			TraceId: []byte("0123456789abcdef"), SpanId: []byte("01234567"), Name: "GET /api/" + strconv.Itoa(size*2654435761%1000003),
		})
	}
	return &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans}},
	}}}
}
