// Command metaflow-server receives OpenTelemetry spans over gRPC, queues them
// in Kafka and stores each exactly once in ClickHouse.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/metaflowys/metaflow-server/pkg/config"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
)

// Exit statuses that scripts can rely on.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2 // wrong flags or configuration: trying again will not help
)

func main() {
	chengine.MaybeRunChild()
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// run owns the process: nothing below it exits, reads flags or catches signals.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal kills at once

	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var wrong *config.Error
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &wrong):
		fmt.Fprintln(stderr, "metaflow-server: the configuration is wrong:")
		for _, p := range wrong.Problems {
			fmt.Fprintln(stderr, "  "+p.String())
		}
		return exitUsage
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "metaflow-server: %v\nTry --help.\n", err)
		return exitUsage
	default:
		fmt.Fprintln(stderr, "metaflow-server:", err)
		return exitFailed
	}
}

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }
