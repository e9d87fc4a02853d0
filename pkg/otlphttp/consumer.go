package otlphttp

import (
	"context"

	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces/otlpjson"
)

// addProblems adds the parts of a JSON request that could not be decoded.
func addProblems(r *signal.Result, p *otlpjson.Problems) {
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
// Consume returns nil only when the spans are safe. It is called concurrently, must
// return soon after ctx ends, which happens when the client disconnects, and must not
// retain req.Body. The fault class of its error selects the status: Rejected is 400, all
// others are 503 with Retry-After. If the error, or one that it wraps, has a method
// RetryAfter() time.Duration, that delay is used. The client receives the error's text.
type Consumer interface {
	Consume(ctx context.Context, req signal.Request) (signal.Result, error)
}
