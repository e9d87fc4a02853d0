package otlphttp

import (
	"context"
	"net/netip"

	"github.com/metaflowys/metaflow-server/pkg/signal/traces/otlpjson"
)

// Request is one ExportTraceServiceRequest.
type Request struct {
	// Body is protobuf: decompressed, and not validated if it arrived as protobuf. It
	// belongs to the consumer until ConsumeTraces returns, and is reused afterwards.
	Body []byte
	// Peer is the client's address, invalid if it is not an IP address.
	Peer netip.AddrPort
}

// Result is the outcome of an accepted request. The zero value means full success.
type Result struct {
	Rejected int64  // spans that were not stored and must not be retried
	Message  string // the reason, or a warning if Rejected is zero
}

// add adds the parts of a JSON request that could not be decoded.
func (r *Result) add(p *otlpjson.Problems) {
	r.Rejected += p.Spans
	if text := p.Message(); text != "" {
		if r.Message != "" {
			text += "; " + r.Message
		}
		r.Message = text
	}
}

// Consumer processes requests. It is declared here because this package calls it.
//
// ConsumeTraces returns nil only when the spans are safe. It is called concurrently, must
// return soon after ctx ends, which happens when the client disconnects, and must not
// retain req.Body. The fault class of its error selects the status: Rejected is 400, all
// others are 503 with Retry-After. If the error, or one that it wraps, has a method
// RetryAfter() time.Duration, that delay is used. The client receives the error's text.
type Consumer interface {
	ConsumeTraces(ctx context.Context, req Request) (Result, error)
}
