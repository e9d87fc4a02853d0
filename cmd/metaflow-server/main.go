// Command metaflow-server receives OpenTelemetry spans over gRPC, queues them
// in Kafka, stores each exactly once in ClickHouse, and keeps agents configured.
package main

import (
	"context"
	"io"
	"os"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
)

func main() {
	chengine.MaybeRunChild()
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return program.Run(ctx, newRoot(), args, stdout, stderr)
}
