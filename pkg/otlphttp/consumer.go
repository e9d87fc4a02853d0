package otlphttp

import (
	"context"
	"net/netip"

	"github.com/metaflowys/metaflow-server/pkg/signal/traces/otlpjson"
)

// Request is one ExportTraceServiceRequest.
type Request struct {
	// Body holds protobuf bytes, decompressed and, when they came as protobuf,
	// not checked. It belongs to the consumer until ConsumeTraces returns, and to
	// other requests afterwards.
	Body []byte
	// Peer is the client's address, invalid when it is not an IP's.
	Peer netip.AddrPort
}

// Result is what the consumer did with a request that it accepted. The zero
// value is full success.
type Result struct {
	Rejected int64  // spans that were not stored and must not be sent again
	Message  string // why, or a warning when Rejected is zero
}

// add adds what of a request in JSON did not reach the consumer.
func (r *Result) add(p *otlpjson.Problems) {
	r.Rejected += p.Spans
	if text := p.Message(); text != "" {
		if r.Message != "" {
			text += "; " + r.Message
		}
		r.Message = text
	}
}

// Consumer takes requests. It is declared here because this package is its
// caller.
//
// ConsumeTraces returns nil only when the spans are safe. It is called from many
// goroutines, must return soon after ctx ends, which it does when the client leaves, and
// must not keep req.Body. The class of its error (pkg/fault) decides the answer: Rejected
// is 400, all others are 503 with Retry-After, of as long as the error says when it, or
// what it wraps, has a method RetryAfter() time.Duration. The error's text goes to the
// client.
type Consumer interface {
	ConsumeTraces(ctx context.Context, req Request) (Result, error)
}
