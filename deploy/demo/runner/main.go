// Command runner is the demo: it starts a MetaFlow server and an agent of its own
// on free ports (and a collector, when there is one), has the WebStore send the spans of
// some hundred visitors, and prints from SQL what arrived: the counts, the slowest
// trace, the service graph. As root on Linux it then runs the WebStore in network namespaces,
// one of whose edges loses packets, and prints which.
//
//	go run ./deploy/demo/runner                          the whole demo
//	go run ./deploy/demo/runner -endpoint 127.0.0.1:20035    only the WebStore, against a running server
//
// It ends by itself: with status 0 when every acknowledged span is stored exactly
// once, else with 1 and the reason. What it started and its data are gone
// when it ends, however it ends, short of a kill -9 that leaves the data.
//
// Answers go to standard output, progress and trouble to standard error.
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
	flags.StringVar(&o.collector, "collector", ".cache/collector/otelcol", "an OpenTelemetry Collector `program` to put in front of the agent, if it is there")
	flags.StringVar(&o.service, "service", "bin/webstore-service", "the `program` that is one service of the WebStore, for network namespaces")
	flags.StringVar(&o.endpoint, "endpoint", "", "start nothing: send the spans to the OTLP/gRPC receiver at `host:port`, or to an OTLP/HTTP URL")
	flags.IntVar(&o.journeys, "journeys", 260, "visitors of the shop, of about 80 spans each")
	flags.Uint64Var(&o.seed, "seed", 1, "decides who buys what")
	flags.DurationVar(&o.patience, "patience", defaultPatience, "give up when no span was stored for so long")
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
	// A second Ctrl-C changes nothing: the way out is bounded, and must be gone to its end.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()

	progress := newProgress(stderr)
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { progress.printf("export: %v", err) }))
	logging.Disable() // go-redis reports each connection that Ctrl-C cuts off
	if o.endpoint != "" {
		_, err := visit(ctx, o, o.endpoint, progress)
		return explain(ctx, err)
	}
	return demo(ctx, o, newTerminal(stdout), progress)
}

// explain says why ctx ended instead of that it did.
func explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}
