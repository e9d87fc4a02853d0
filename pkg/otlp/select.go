package otlp

import (
	"fmt"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Spans counts the spans of a valid request.
func Spans(req []byte) int {
	n := 0
	each(req, TagRequestResourceSpans, func(rs []byte) {
		each(rs, TagResourceSpansScopeSpans, func(ss []byte) {
			each(ss, TagScopeSpansSpans, func([]byte) { n++ })
		})
	})
	return n
}

// each calls f with the value of every field of b that has this tag. It stops
// at what is malformed.
func each(b []byte, want Tag, f func([]byte)) {
	for i := 0; i < len(b); {
		tag, lo, hi := Next(b, i)
		if hi < 0 {
			return
		}
		if tag == want {
			f(b[lo:hi])
		}
		i = hi
	}
}

// Select returns a request with those spans of req for which keep is true;
// index counts all spans of req from 0. It is for the few that are diverted, not for speed.
func Select(req []byte, keep func(index int) bool) ([]byte, error) {
	var msg coltracepb.ExportTraceServiceRequest
	if err := proto.Unmarshal(req, &msg); err != nil {
		return nil, ErrMalformed
	}
	index := 0
	var resources []*tracepb.ResourceSpans
	for _, rs := range msg.GetResourceSpans() {
		var scopes []*tracepb.ScopeSpans
		for _, ss := range rs.GetScopeSpans() {
			var spans []*tracepb.Span
			for _, sp := range ss.GetSpans() {
				if keep(index) {
					spans = append(spans, sp)
				}
				index++
			}
			if ss.Spans = spans; len(spans) > 0 {
				scopes = append(scopes, ss)
			}
		}
		if rs.ScopeSpans = scopes; len(scopes) > 0 {
			resources = append(resources, rs)
		}
	}
	msg.ResourceSpans = resources
	out, err := proto.Marshal(&msg)
	if err != nil {
		return nil, fmt.Errorf("marshal selected spans: %w", err)
	}
	return out, nil
}
