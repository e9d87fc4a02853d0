// Command metaflow-agent sends the traces and flow data of its host to
// metaflow-server, and spools them on disk while no server can be reached.
package main

import (
	"context"
	"os"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
)

func main() {
	os.Exit(program.Run(context.Background(), newRoot(), os.Args[1:], os.Stdout, os.Stderr))
}
