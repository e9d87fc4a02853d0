package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// raw is a gRPC codec for messages that are bytes already.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) ([]byte, error) { return v.([]byte), nil }

func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

// requests returns the load: the same bytes for every pipeline.
func requests(o options) [][]byte {
	// The rate of a busy cluster, ending now: within the accepted times.
	const rate = 20_000
	begin := time.Now().Add(-time.Duration(o.spans/rate)*time.Second - time.Minute)
	g := otlptest.New(1, otlptest.Options{Start: begin, SpansPerSecond: rate})
	var all [][]byte
	for sent := 0; sent < o.spans; sent += o.batch {
		all = append(all, g.RequestBytes(min(o.batch, o.spans-sent)))
	}
	return all
}

// send exports every request to addr and returns when each is acknowledged in
// full.
func send(ctx context.Context, addr string, senders int, load [][]byte) error {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.WaitForReady(true)))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return measured.Send(ctx, load, len(load), senders, 0, func(ctx context.Context, request []byte) error {
		var reply []byte
		if err := conn.Invoke(ctx, "/opentelemetry.proto.collector.trace.v1.TraceService/Export", request, &reply); err != nil {
			return fmt.Errorf("export: %w", err)
		}
		// A successful reply is empty or has an empty partial_success.
		if len(reply) > 2 {
			return fmt.Errorf("export: spans were rejected: %q", reply)
		}
		return nil
	})
}
