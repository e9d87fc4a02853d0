package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// metaflow measures our own pipeline.
func (b *bench) metaflow(ctx context.Context) (figures, error) {
	otlp, err := freeAddr()
	if err != nil {
		return figures{}, err
	}
	config := filepath.Join(b.dir, "metaflow.yaml")
	yaml := fmt.Sprintf(`grpc: {listen: %q}
http: {listen: "127.0.0.1:0"}
kafka: {brokers: [%q], partitions: %d}
clickhouse: {addresses: [%q]}
`, otlp, b.kafka, b.partitions, b.engine.NativeAddr())
	if err := os.WriteFile(config, []byte(yaml), 0o600); err != nil {
		return figures{}, err
	}
	role := func(role string) func() (*process, error) {
		return func() (*process, error) {
			return start(b.verbose, nil, b.server, "serve", "--config", config, "--roles", role)
		}
	}
	return b.measure(ctx, pipeline{
		name: "metaflow", otlp: otlp, receiver: role("gateway"), writer: role("writer"),
		count: "SELECT count() FROM metaflow.spans", table: "metaflow.spans_local",
	})
}
