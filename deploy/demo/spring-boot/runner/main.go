// Command runner is the Spring Boot demo. It builds the shop with Maven, starts
// a MetaFlow server and an agent on free ports, starts the shop's services with
// OpenTelemetry's Java agent, makes some visits, and prints from SQL what
// arrived: the service graph, the slowest request, the slowest statements, the
// errors.
//
//	go run ./deploy/demo/spring-boot/runner          the whole demo
//	go run ./deploy/demo/spring-boot/runner -stay    and then your own queries, until Ctrl-C
//
// It needs a JDK (17 or newer) and Maven. It ends by itself: with status 0 if
// the stored data is complete, that is if the sender's counters match the table
// and no span lacks its parent; otherwise with 1 and the reason. It removes
// everything that it started, and its data.
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
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	server   string
	agent    string
	ctl      string
	direct   bool
	stay     bool
	source   string
	build    string
	visits   int
	seed     uint64
	patience time.Duration
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.server, "server", "bin/metaflow-server", "the server `program` to start")
	flags.StringVar(&o.agent, "agent", "bin/metaflow-agent", "the agent `program` to start")
	flags.StringVar(&o.ctl, "ctl", "bin/metaflow-ctl", "the `program` that configures the agent")
	flags.BoolVar(&o.direct, "direct", false, "run no agent; the services send OTLP/gRPC to the server")
	flags.BoolVar(&o.stay, "stay", false, "keep ClickHouse running after the answers, for your own queries, until Ctrl-C")
	flags.StringVar(&o.source, "source", "deploy/demo/spring-boot", "`directory` of the shop's sources")
	flags.StringVar(&o.build, "build", ".cache/spring-boot", "`directory` that Maven builds into")
	flags.IntVar(&o.visits, "visits", 80, "visits to the shop, of six requests each")
	flags.Uint64Var(&o.seed, "seed", 1, "seed of who buys what")
	flags.DurationVar(&o.patience, "patience", 30*time.Second, "give up when no span was stored for this long")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	if o.visits <= 0 {
		return o, fmt.Errorf("-visits: %d is not positive", o.visits)
	}
	return o, nil
}

// run owns the process: nothing below it exits, reads flags or catches signals.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
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
	start := time.Now()
	progress := func(format string, args ...any) {
		fmt.Fprintf(stderr, "[%5.1fs] %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
	err = demo(ctx, o, stdout, progress)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause // the cause, not context.Canceled
	}
	return err
}
