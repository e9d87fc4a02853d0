// Command pipelinebench measures what a span costs on its way through the
// server, stage by stage: gateway, writer and ClickHouse, each a process of its
// own, so that the operating system's accounting tells them apart. The broker and the
// sender are processes of their own too, and not counted.
//
//	go run ./integration/bench/pipeline -server bin/metaflow-server
//
// With -collector the same spans then take the way that an OpenTelemetry
// Collector offers (otlp receiver to kafka exporter, kafka receiver to clickhouse
// exporter) over the same broker and the same ClickHouse, in the same run, so that
// ratios hold on a noisy machine. `make collector` builds one.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
)

func main() {
	measured.MaybeRunEngine()
	var o options
	flag.StringVar(&o.server, "server", "bin/metaflow-server", "the server's program")
	flag.StringVar(&o.collector, "collector", "", "a collector's program to compare with; empty compares nothing")
	flag.IntVar(&o.spans, "spans", 1_000_000, "spans to send")
	flag.IntVar(&o.batch, "batch", 512, "spans in one request")
	flag.IntVar(&o.partitions, "partitions", 12, "partitions of the topic")
	flag.IntVar(&o.senders, "senders", 4, "requests at a time")
	flag.StringVar(&o.profiles, "profiles", "", "directory for CPU and heap profiles of our gateway and writer; taking them costs some CPU itself")
	flag.BoolVar(&o.verbose, "v", false, "show what the programs log")
	measured.Main("pipelinebench", func(ctx context.Context) error { return run(ctx, o) })
}

type options struct {
	server, collector, profiles       string
	spans, batch, partitions, senders int
	verbose                           bool
}

// figures are what one pipeline cost.
type figures struct {
	name                        string
	gateway, writer, clickhouse float64 // CPU microseconds a span
	gatewayRSS, writerRSS       int64   // peak resident bytes
	bytesPerSpan                float64 // on disk after OPTIMIZE FINAL
	sendSeconds, writeSeconds   float64
}

func run(ctx context.Context, o options) error {
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer b.close()
	ours, err := b.metaflow(ctx)
	if err != nil {
		return fmt.Errorf("metaflow: %w", err)
	}
	all := []figures{ours}
	if o.collector != "" {
		theirs, err := b.otelcol(ctx)
		if err != nil {
			return fmt.Errorf("collector: %w", err)
		}
		all = append(all, theirs)
	}
	report(os.Stdout, o, all)
	return nil
}
