// Command steadybench measures what a span costs while spans come at a steady
// rate, as in service: gateway, writer and ClickHouse, each a process of its
// own. The broker and the sender are processes of their own too, and not
// counted.
//
//	go run ./integration/bench/steady -server bin/metaflow-server
//
// With -collector the spans take the way of an OpenTelemetry Collector too, right
// after ours and over engines of its own, so that ratios hold on a noisy machine.
// `make collector` builds one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
)

func main() {
	measured.MaybeRunEngine()
	var o options
	rates, partitions, writers := numbers{500, 5_000, 20_000}, numbers{12, 48}, numbers{1, 2}
	flag.StringVar(&o.server, "server", "bin/metaflow-server", "the server's program")
	flag.StringVar(&o.collector, "collector", "", "a collector's program to compare with; empty compares nothing")
	flag.Var(&rates, "rates", "spans a second, separated by commas")
	flag.Var(&partitions, "partitions", "partitions of the topic, separated by commas")
	flag.Var(&writers, "writers", "writers, separated by commas")
	flag.DurationVar(&o.duration, "duration", time.Minute, "how long each load lasts")
	flag.DurationVar(&o.freshness, "freshness", 15*time.Second, "how long after it the delay until spans can be queried is measured; asking costs ClickHouse some CPU")
	flag.IntVar(&o.rounds, "rounds", 1, "how often each load is measured; the report shows medians")
	flag.StringVar(&o.profiles, "profiles", "", "`directory` for CPU and heap profiles of the gateway and the first writer; profiling itself costs some CPU")
	flag.BoolVar(&o.verbose, "v", false, "show what the programs log")
	measured.Main("steadybench", func(ctx context.Context) error {
		if o.profiles != "" {
			if err := os.MkdirAll(o.profiles, 0o700); err != nil {
				return err
			}
		}
		for _, o.rate = range rates {
			for _, o.partitions = range partitions {
				for _, o.writers = range writers {
					if err := o.run(ctx); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
}

type options struct {
	server, collector         string
	profiles                  string
	rate, partitions, writers int
	rounds                    int
	duration, freshness       time.Duration
	verbose                   bool
}

// numbers is a flag of several numbers.
type numbers []int

func (n *numbers) String() string { return strings.Trim(fmt.Sprint([]int(*n)), "[]") }

// Set reads numbers that commas separate.
func (n *numbers) Set(text string) error {
	*n = nil
	for word := range strings.SplitSeq(text, ",") {
		v, err := strconv.Atoi(word)
		if err != nil || v <= 0 {
			return fmt.Errorf("%q is not a positive number", word)
		}
		*n = append(*n, v)
	}
	return nil
}

// run measures one load on all chains.
func (o options) run(ctx context.Context) error {
	names := []string{"metaflow"}
	if o.collector != "" {
		names = append(names, "collector")
	}
	all := make([][]figures, len(names))
	for range o.rounds {
		for i, name := range names {
			f, err := o.measure(ctx, name)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			all[i] = append(all[i], f)
		}
	}
	fmt.Printf("\n%d spans/s for %s, %d partitions, writers: %d, medians of %d\n\n", o.rate, o.duration, o.partitions, o.writers, o.rounds)
	report(os.Stdout, names, all)
	return nil
}

// measure measures one chain, over engines of its own.
func (o options) measure(ctx context.Context, name string) (f figures, err error) {
	b, err := newBench(ctx, o)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	c, err := b.chain(ctx, name)
	if err != nil {
		return f, err
	}
	return b.measure(ctx, c)
}
