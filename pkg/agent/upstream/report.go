package upstream

import (
	"context"

	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Report sends a report about Kubernetes to one of the replicas and returns nil
// once it is stored; the result counts the rejected objects. It tries once, for at
// most Config.Timeout, and fails at once if no connection is up. Its errors
// have the classes of Export's.
func (c *Client) Report(ctx context.Context, r *agentv1.ReportRequest) (signal.Result, error) {
	if state := c.state(); state == connectivity.Idle || state == connectivity.Connecting {
		return signal.Result{}, notReady(state)
	}
	ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(ctx, c.plain), c.cfg.Timeout)
	defer cancel()
	resp, err := agentv1.NewResourceServiceClient(c.conn).Report(ctx, r)
	if err != nil {
		return signal.Result{}, exportError(err, true, proto.Size(r))
	}
	return signal.Result{Rejected: resp.GetRejected(), Message: resp.GetErrorMessage()}, nil
}
