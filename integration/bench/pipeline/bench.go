package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
)

// bench holds what both pipelines use.
type bench struct {
	options
	dir    string
	broker *measured.Process
	kafka  string
	engine *measured.ClickHouse
	load   [][]byte
}

func newBench(ctx context.Context, o options) (_ *bench, err error) {
	b := &bench{options: o}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.dir, err = os.MkdirTemp("", "pipelinebench-"); err != nil {
		return nil, err
	}
	if b.broker, b.kafka, err = measured.StartBroker(ctx, o.verbose); err != nil {
		return nil, err
	}
	if b.engine, err = measured.StartClickHouse(ctx, chengine.Options{DataDir: filepath.Join(b.dir, "clickhouse"), MaxMemoryBytes: 8 << 30}, nil); err != nil {
		return nil, err
	}
	measured.Progress("generating %d spans", o.spans)
	b.load = requests(o)
	return b, nil
}

func (b *bench) close() {
	if b.engine != nil {
		b.engine.Close()
	}
	if b.broker != nil {
		b.broker.Stop()
	}
	_ = os.RemoveAll(b.dir)
}

// pipeline starts one system: a receiver that fills Kafka and a writer that
// empties it.
type pipeline struct {
	name     string
	otlp     string // address of the receiver
	receiver func() (*measured.Process, error)
	writer   func() (*measured.Process, error)
	count    string // SQL that counts the stored spans
	once     bool   // duplicates are an error; otherwise they are reported
	table    string // database.table of the spans
}

// measure sends the load and follows it stage by stage: the writer starts only
// after the receiver has finished.
func (b *bench) measure(ctx context.Context, p pipeline) (f figures, err error) {
	f.name = p.name
	measured.Progress("%s: sending", p.name)
	receiver, err := p.receiver()
	if err != nil {
		return f, err
	}
	defer receiver.Stop()
	if err := receiver.WaitListening(ctx, p.otlp); err != nil {
		return f, err
	}
	before, err := receiver.Usage()
	if err != nil {
		return f, err
	}
	begun := time.Now()
	if err := send(ctx, p.otlp, b.senders, b.load); err != nil {
		return f, err
	}
	f.sendSeconds = time.Since(begun).Seconds()
	after, err := receiver.Usage()
	if err != nil {
		return f, err
	}
	f.gateway, f.gatewayRSS = b.perSpan(after.CPU-before.CPU), after.Peak
	receiver.Stop()

	measured.Progress("%s: writing", p.name)
	engineBefore, err := measured.UsageOf(b.engine.PID())
	if err != nil {
		return f, err
	}
	begun = time.Now()
	writer, err := p.writer()
	if err != nil {
		return f, err
	}
	defer writer.Stop()
	if err := b.waitStored(ctx, p, writer); err != nil {
		return f, err
	}
	f.writeSeconds = time.Since(begun).Seconds()
	used, err := writer.Usage()
	if err != nil {
		return f, err
	}
	f.writer, f.writerRSS = b.perSpan(used.CPU), used.Peak
	if err := b.engine.WaitMerged(ctx); err != nil {
		return f, err
	}
	engineAfter, err := measured.UsageOf(b.engine.PID())
	if err != nil {
		return f, err
	}
	f.clickhouse = b.perSpan(engineAfter.CPU - engineBefore.CPU)
	writer.Stop()
	f.bytesPerSpan, err = b.onDisk(ctx, p)
	return f, err
}

func (b *bench) perSpan(cpu time.Duration) float64 { return measured.MicrosEach(cpu, b.spans) }

func (b *bench) waitStored(ctx context.Context, p pipeline, writer *measured.Process) error {
	for {
		var n uint64
		err := b.engine.Conn.QueryRow(ctx, p.count).Scan(&n)
		if err == nil && n >= uint64(b.spans) {
			if extra := n - uint64(b.spans); extra > 0 && p.once {
				return fmt.Errorf("%d spans stored twice", extra)
			} else if extra > 0 {
				measured.Progress("%s: %d spans stored twice", p.name, extra)
			}
			return nil
		}
		select {
		case <-writer.Done:
			return fmt.Errorf("the writer ended with %d spans stored: %s", n, writer.Output.String())
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(250 * time.Millisecond):
		}
	}
}

func (b *bench) onDisk(ctx context.Context, p pipeline) (float64, error) {
	if err := b.engine.Conn.Exec(ctx, "OPTIMIZE TABLE "+p.table+" FINAL"); err != nil {
		return 0, err
	}
	var bytes, rows uint64
	err := b.engine.Conn.QueryRow(ctx, "SELECT sum(bytes_on_disk), sum(rows) FROM system.parts WHERE active AND concat(database, '.', table) = $1", p.table).Scan(&bytes, &rows)
	return float64(bytes) / float64(max(rows, 1)), err
}
