package chain

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// Exporter sends requests over OTLP/gRPC.
type Exporter struct{ conn *grpc.ClientConn }

// Dial returns an exporter to an address. Close it.
func Dial(addr string) (*Exporter, error) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(otlptest.Raw), grpc.WaitForReady(true)))
	if err != nil {
		return nil, err
	}
	return &Exporter{conn}, nil
}

// Close ends the connection.
func (e *Exporter) Close() { _ = e.conn.Close() }

// Export sends one request and returns once it is acknowledged in full.
func (e *Exporter) Export(ctx context.Context, request []byte) error {
	var reply []byte
	if err := e.conn.Invoke(ctx, "/opentelemetry.proto.collector.trace.v1.TraceService/Export", request, &reply); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	// A reply is empty, or an empty partial_success, when all is well.
	if len(reply) > 2 {
		return fmt.Errorf("export: spans were rejected: %q", reply)
	}
	return nil
}
