package integration

import (
	"context"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// client sends requests like an OTLP exporter: it retries the same bytes until
// they are acknowledged.
type client struct {
	t     *testing.T
	conn  *grpc.ClientConn
	trace coltracepb.TraceServiceClient
	gen   *otlptest.Generator
	sent  int // spans acknowledged
	again int // requests that were sent more than once
}

func newClient(t *testing.T, addr string, seed uint64) *client {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &client{
		t: t, conn: conn, trace: coltracepb.NewTraceServiceClient(conn),
		gen: otlptest.New(seed, otlptest.Options{Start: time.Now().Add(-time.Minute)}),
	}
}

// send exports one request of the given number of spans until it is
// acknowledged.
func (c *client) send(ctx context.Context, spans int) {
	c.t.Helper()
	req := c.gen.Request(spans)
	for attempt := 0; ; attempt++ {
		call, cancel := context.WithTimeout(ctx, 15*time.Second)
		resp, err := c.trace.Export(call, req)
		cancel()
		if err == nil {
			if n := resp.GetPartialSuccess().GetRejectedSpans(); n > 0 {
				c.t.Fatalf("%d spans rejected: %s", n, resp.GetPartialSuccess().GetErrorMessage())
			}
			c.sent += spans
			if attempt > 0 {
				c.again++
			}
			return
		}
		switch status.Code(err) {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		default:
			c.t.Fatalf("export: %v", err)
		}
		select {
		case <-ctx.Done():
			c.t.Fatalf("export: not acknowledged in time: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
