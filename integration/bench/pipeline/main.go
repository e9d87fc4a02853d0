// Command pipelinebench measures the cost of a span in each stage of the
// server: gateway, writer and ClickHouse, each in its own process, so that the
// operating system's accounting separates them. The broker and the sender are
// separate processes too and are not counted.
//
//	go run ./integration/bench/pipeline -server bin/metaflow-server
//
// With -collector the same spans then take the OpenTelemetry Collector's path
// (otlp receiver to kafka exporter, kafka receiver to clickhouse exporter) over
// the same broker and ClickHouse, in the same run, so that ratios hold on a
// noisy machine. `make collector` builds one.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/metaflowys/metaflow-server/integration/bench/chain"
	"github.com/metaflowys/metaflow-server/integration/bench/measured"
)

func main() {
	measured.MaybeRunEngine()
	var o options
	flag.StringVar(&o.server, "server", "bin/metaflow-server", "the server `program`")
	flag.StringVar(&o.collector, "collector", "", "a collector `program` to compare with; if empty, none")
	flag.IntVar(&o.spans, "spans", 1_000_000, "spans to send")
	flag.IntVar(&o.batch, "batch", 512, "spans in one request")
	flag.IntVar(&o.partitions, "partitions", 12, "partitions of the topic")
	flag.IntVar(&o.senders, "senders", 4, "concurrent requests")
	flag.StringVar(&o.profiles, "profiles", "", "`directory` for CPU and heap profiles of the gateway and writer; profiling itself costs some CPU")
	flag.BoolVar(&o.verbose, "v", false, "show what the programs log")
	measured.Main("pipelinebench", func(ctx context.Context) error { return run(ctx, o) })
}

type options struct {
	server, collector, profiles       string
	spans, batch, partitions, senders int
	verbose                           bool
}

// figures are the costs of one pipeline.
type figures struct {
	name                        string
	gateway, writer, clickhouse float64 // CPU microseconds per span
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
	site := chain.Site{Dir: b.dir, Kafka: b.kafka, ClickHouse: b.engine, Partitions: o.partitions, Verbose: o.verbose}
	ours, err := site.MetaFlow(o.server, o.profiles != "")
	if err == nil {
		err = site.JoinOnce(ctx, ours)
	}
	if err != nil {
		return fmt.Errorf("metaflow: %w", err)
	}
	chains := []chain.Chain{ours}
	if o.collector != "" {
		theirs, err := site.OTelCol(ctx, o.collector)
		if err != nil {
			return fmt.Errorf("collector: %w", err)
		}
		chains = append(chains, theirs)
	}
	var all []figures
	for _, c := range chains {
		f, err := b.measure(ctx, c)
		if err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		all = append(all, f)
	}
	report(os.Stdout, o, all)
	return nil
}
