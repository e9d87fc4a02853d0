package gateway

import (
	"context"

	"github.com/metaflowys/metaflow-server/pkg/otlphttp"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
)

// HTTP is a Gateway as otlphttp knows it. What comes over HTTP is treated as what comes
// over gRPC from a client that is no agent: no address of the sender is added.
type HTTP struct{ *Gateway }

// ConsumeTraces implements otlphttp.Consumer. Its contract is that of
// Gateway.ConsumeTraces.
func (h HTTP) ConsumeTraces(ctx context.Context, req otlphttp.Request) (otlphttp.Result, error) {
	res, err := h.Gateway.ConsumeTraces(ctx, rpc.Request{Body: req.Body, Peer: req.Peer})
	return otlphttp.Result(res), err
}
