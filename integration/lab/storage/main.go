// Command storagelab measures the costs of alternative ways to store spans, on
// which the table in migrations/ is based: bytes per span, the server's CPU per
// span for inserts and merges, and the duration of typical queries.
//
//	go run ./integration/lab/storage -spans 2000000
//
// It fills one staging table with WebStore-like spans (pkg/testkit/otlptest).
// For each variant (variants.go) it then reads blocks of the variant's columns
// from that table, inserts them in the native format, and measures. CPU is that
// of the engine's process, so other load on the machine affects only the
// latencies.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
)

type config struct {
	spans, block, perHour, repeat int
	sorted, steady                bool
	dir, only                     string
}

func main() {
	chengine.MaybeRunChild()
	if err := run(context.Background(), os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "storagelab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	var c config
	flags := flag.NewFlagSet("storagelab", flag.ContinueOnError)
	flags.IntVar(&c.spans, "spans", 2_000_000, "number of spans to store")
	flags.IntVar(&c.block, "block", 50_000, "rows per insert")
	flags.BoolVar(&c.sorted, "sorted", false, "insert blocks whose rows already have the order of the table")
	flags.BoolVar(&c.steady, "steady", false, "merge while inserting, as in service, and no more than ClickHouse does by itself; insert us is then of inserts and merges")
	flags.IntVar(&c.perHour, "per-hour", 1_000_000, "number of spans that begin in an hour")
	flags.IntVar(&c.repeat, "repeat", 7, "runs of each query; the median counts")
	flags.StringVar(&c.dir, "dir", "", "data directory to keep, with its staging table; if empty, a temporary one")
	flags.StringVar(&c.only, "only", "", "comma-separated substrings of the names of the variants to measure; if empty, all")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()

	if c.dir == "" {
		if c.dir, err = os.MkdirTemp("", "storagelab"); err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(c.dir) }() // at worst left in the temporary directory
	}
	const memory = 8 << 30 // the lab measures tables, not a tight limit
	engine, err := chengine.Start(ctx, chengine.Options{DataDir: c.dir, MaxMemoryBytes: memory})
	if err != nil {
		return err
	}
	defer func() {
		if stopErr := engine.Stop(context.WithoutCancel(ctx)); err == nil {
			err = stopErr
		}
	}()
	l := lab{config: c, server: server{addr: engine.HTTPAddr(), pid: engine.PID()}}
	if err := l.fill(ctx, engine.NativeAddr()); err != nil {
		return fmt.Errorf("fill the staging table: %w", err)
	}
	return l.compare(ctx, out)
}

// compare measures each variant and prints its row when it is done.
func (l *lab) compare(ctx context.Context, out io.Writer) error {
	fmt.Fprintf(out, "%d spans, %d rows an insert, %d spans an hour\n\n", l.spans, l.block, l.perHour)
	fmt.Fprintln(out, "| variant | bytes/span | ids | times | attributes | resource | indexes | rest | insert us | first merge us | rewrite us | "+
		"trace cold/warm ms | slowest | attribute | pod errors |")
	fmt.Fprintln(out, "|---|"+strings.Repeat("---:|", 14))
	for _, v := range variants {
		if !l.wanted(v.name) {
			continue
		}
		r, err := l.measure(ctx, v)
		if err != nil {
			fmt.Fprintf(out, "| %s | not possible: %.200s |\n", v.name, strings.ReplaceAll(err.Error(), "\n", " "))
			if ctx.Err() != nil {
				return ctx.Err()
			}
			continue
		}
		fmt.Fprintln(out, r)
	}
	return nil
}

func (l *lab) wanted(name string) bool {
	if l.only == "" {
		return true
	}
	for part := range strings.SplitSeq(l.only, ",") {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}
