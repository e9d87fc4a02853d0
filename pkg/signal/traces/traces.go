package traces

import (
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/schema"
)

// Signal is the signal of OTLP traces. A request is an
// ExportTraceServiceRequest.
var Signal = &signal.Signal{
	Name: "traces", Item: "span", Items: "spans",
	Topic:   schema.TopicSpans,
	Message: request,
	Path:    []signal.Tag{TagRequestResourceSpans, TagResourceSpansScopeSpans, TagScopeSpansSpans},
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
