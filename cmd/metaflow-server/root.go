package main

import (
	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
)

func newRoot() *cobra.Command {
	root := program.Root("metaflow-server", "Keep every OpenTelemetry span exactly once, ready for SQL",
		newServe(), newStandalone(), newMigrate(), configured.Command(nil), newDeadLetter(), newMCP())
	root.Long = `metaflow-server receives OpenTelemetry spans over OTLP/gRPC, queues them in
Kafka partitioned by trace and stores each exactly once in ClickHouse.

To try it without installing anything else:  metaflow-server standalone --data-dir DIR`
	return root
}
