// Command queriesbench measures how fast ClickHouse answers what people ask of
// spans and flows: one trace, slow and failed spans, an attribute's value, and
// the views that join both. It asks the schema of the collector's ClickHouse
// exporter, filled with the same spans, the same questions.
//
//	go run ./integration/bench/queries -rows 50000000
//
// ClickHouse generates the data itself, so filling takes minutes. Each question
// is asked cold (ClickHouse's caches dropped, its files evicted from the page
// cache) and then again warm, each time about another hour, trace or pod.
// Before a question is timed, the answer is checked against what was generated.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"

	driver "github.com/ClickHouse/clickhouse-go/v2"
	"golang.org/x/sys/unix"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
)

type options struct {
	dir       string
	rows      int
	perHour   int
	runs      int
	collector bool
	explain   bool
}

func main() {
	measured.MaybeRunEngine()
	var o options
	flag.IntVar(&o.rows, "rows", 50_000_000, "spans to store, and as many flows")
	flag.IntVar(&o.perHour, "per-hour", 1_000_000, "spans and flows of one hour")
	flag.IntVar(&o.runs, "runs", 20, "times that each question is asked, cold and warm")
	flag.BoolVar(&o.collector, "collector", true, "measure the schema of the collector's exporter too")
	flag.BoolVar(&o.explain, "explain", false, "print how the indexes answer each question")
	flag.StringVar(&o.dir, "data", "", "keep the tables in this `directory` and continue with what it holds; if empty, they are removed")
	measured.Main("queriesbench", func(ctx context.Context) error { return run(ctx, o) })
}

func run(ctx context.Context, o options) error {
	if o.perHour < minPerHour || o.rows < o.perHour || o.runs < 1 {
		return fmt.Errorf("-rows %d -per-hour %d -runs %d: want an hour or more of at least %d rows, and a run", o.rows, o.perHour, o.runs, minPerHour)
	}
	if o.dir == "" {
		dir, err := os.MkdirTemp("", "queriesbench-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		o.dir = dir
	} else if err := os.MkdirAll(o.dir, 0o750); err != nil {
		return err
	}
	// Parts of half an hour: few merges are left to wait for, and a sorted block
	// fits into the engine's memory.
	engine, err := measured.StartClickHouse(ctx, chengine.Options{DataDir: o.dir, MaxMemoryBytes: 8 << 30}, driver.Settings{
		"async_insert": 0, "max_insert_threads": 1, "min_insert_block_size_rows": 500_000, "min_insert_block_size_bytes": 0,
	})
	if err != nil {
		return err
	}
	defer engine.Close()
	if err := migrate(ctx, engine.NativeAddr()); err != nil {
		return err
	}
	d := &data{conn: engine.Conn, pid: engine.PID(), hours: o.rows / o.perHour, perHour: o.perHour, collector: o.collector}
	if err := d.open(ctx); err != nil {
		return err
	}
	if err := checkDisk(o, d.missing()); err != nil {
		return err
	}
	if err := d.fill(ctx); err != nil {
		return err
	}
	measured.Progress("waiting for merges")
	if err := engine.WaitMerged(ctx); err != nil {
		return err
	}
	if err := d.printTables(ctx); err != nil {
		return err
	}
	if err := d.ask(ctx, o); err != nil {
		return err
	}
	return d.askAPIs(ctx, o, engine.NativeAddr())
}

func migrate(ctx context.Context, addr string) (err error) {
	cfg := clickhouse.DefaultConfig()
	cfg.Addresses = []string{addr}
	db, err := clickhouse.Open(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.Migrate(ctx, clickhouse.Retention{})
}

// checkDisk says how much disk the rows need, and fails if less is free.
func checkDisk(o options, rows int) error {
	const (
		spanAndFlow   = 100 // bytes on disk, measured, rounded up
		collectorSpan = 100
		copies        = 2 // a merge keeps its sources until it is done
	)
	each := spanAndFlow
	if o.collector {
		each += collectorSpan
	}
	need := uint64(rows) * uint64(each) * copies
	var fs unix.Statfs_t
	if err := unix.Statfs(o.dir, &fs); err != nil {
		return fmt.Errorf("free disk of %s: %w", o.dir, err)
	}
	free := fs.Bavail * uint64(fs.Bsize)
	measured.Progress("%d rows a table to fill need up to %.1f GB of disk, %.1f GB are free in %s", rows, float64(need)/1e9, float64(free)/1e9, o.dir)
	if free < need {
		return errors.New("not enough free disk: choose another -data, fewer -rows, or -collector=false")
	}
	return nil
}
