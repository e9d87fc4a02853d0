package traces

import (
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"

	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/schema"
)

// Signal is the signal of OTLP traces. A request is an
// ExportTraceServiceRequest.
var Signal = &signal.Signal{
	Name: "traces", Item: "span", Items: "spans",
	Request: "ExportTraceServiceRequest",
	Method:  coltracepb.TraceService_Export_FullMethodName,
	Topic:   schema.TopicSpans,
	Message: request,
	Path:    []signal.Tag{TagRequestResourceSpans, TagResourceSpansScopeSpans, TagScopeSpansSpans},

	Judge: judge, Rules: rules, Describe: describe,
	Around: "resource and scope",
	// A resource is some five times as large as a span. So records take at most
	// six times the bytes of their request, where every span goes to another
	// partition than its neighbours.
	Repeats: 8, Spare: 8 << 20,
}

// Key returns the key of a span with acceptable ids.
func (h *Head) Key() signal.Key {
	k := signal.Key{Time: int64(h.Start)}
	copy(k.ID[:16], h.TraceID)
	copy(k.ID[16:24], h.SpanID)
	return k
}

// IDs returns the ids of the span whose key is k.
func IDs(k *signal.Key) (traceID, spanID []byte) { return k.ID[:16], k.ID[16:24] }
