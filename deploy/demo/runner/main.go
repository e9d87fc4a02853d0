// Command runner is the WebStore demo. It starts a MetaFlow server and an agent
// on free ports (and a collector, if installed), makes the WebStore send the
// spans of a few hundred visitors, and prints from SQL what arrived: the
// counts, the slowest trace, the service graph. As root on Linux it then runs
// the WebStore in network namespaces, makes one edge lose packets, and prints
// which.
//
//	go run ./deploy/demo/runner                          the whole demo
//	go run ./deploy/demo/runner -endpoint 127.0.0.1:20035    only the WebStore, against a running server
//
// It ends by itself: with status 0 if every acknowledged span is stored exactly
// once, otherwise with 1 and the reason. It removes everything that it started,
// and its data, however it ends; only kill -9 leaves the data behind.
//
// Answers go to standard output, progress and problems to standard error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9/logging"
	"go.opentelemetry.io/otel"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	server    string
	agent     string
	ctl       string
	collector string
	service   string
	endpoint  string
	journeys  int
	seed      uint64
	patience  time.Duration
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.server, "server", "bin/metaflow-server", "the server `program` to start")
	flags.StringVar(&o.agent, "agent", "bin/metaflow-agent", "the agent `program` to start; empty sends to the server directly")
	flags.StringVar(&o.ctl, "ctl", "bin/metaflow-ctl", "the `program` that configures the agent")
	flags.StringVar(&o.collector, "collector", ".cache/collector/otelcol", "the OpenTelemetry Collector `program` to put in front of the agent, if it exists")
	flags.StringVar(&o.service, "service", "bin/webstore-service", "the `program` that runs one service of the WebStore in a network namespace")
	flags.StringVar(&o.endpoint, "endpoint", "", "start no programs; send the spans to the OTLP/gRPC receiver at `host:port`, or to an OTLP/HTTP URL")
	flags.IntVar(&o.journeys, "journeys", 260, "number of visitors, each of about 80 spans")
	flags.Uint64Var(&o.seed, "seed", 1, "seed of who buys what")
	flags.DurationVar(&o.patience, "patience", defaultPatience, "give up when no span was stored for this long")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	if o.journeys <= 0 {
		return o, fmt.Errorf("-journeys: %d is not positive", o.journeys)
	}
	return o, nil
}

// run owns the process: nothing below it exits, reads flags or catches signals.
func run(ctx context.Context, args []string, stdout *os.File, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	// A second Ctrl-C has no effect: cleanup is bounded and must finish.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()

	progress := newProgress(stderr)
	otel.SetErrorHandler(otel.ErrorHandlerFunc(progress.failed()))
	logging.Disable() // go-redis would log each connection that Ctrl-C closes
	if o.endpoint != "" {
		progress.printf("spans go from WebStore -> %s", o.endpoint)
		_, err := visit(ctx, o, o.endpoint, progress)
		return explain(ctx, err)
	}
	return demo(ctx, o, newTerminal(stdout), progress)
}

// explain returns the cause of ctx's end in place of the context's error.
func explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}
