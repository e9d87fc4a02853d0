package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/metaflowys/metaflow-server/integration/bench/chain"
	"github.com/metaflowys/metaflow-server/integration/bench/measured"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
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

// requests makes the load: the same bytes for every chain.
func requests(o options) [][]byte {
	// As fast as on a busy cluster, and ending now: within the accepted times.
	const rate = 20_000
	begin := time.Now().Add(-time.Duration(o.spans/rate)*time.Second - time.Minute)
	g := otlptest.New(1, otlptest.Options{Start: begin, SpansPerSecond: rate})
	var all [][]byte
	for sent := 0; sent < o.spans; sent += o.batch {
		all = append(all, g.RequestBytes(min(o.batch, o.spans-sent)))
	}
	return all
}

// send exports every request to addr and returns when each is acknowledged in full.
func (b *bench) send(ctx context.Context, addr string) error {
	exporter, err := chain.Dial(addr)
	if err != nil {
		return err
	}
	defer exporter.Close()
	return measured.Send(ctx, b.load, len(b.load), b.senders, 0, exporter.Export)
}

// start starts one program of a chain, and takes profiles of ours.
func (b *bench) start(ctx context.Context, c chain.Chain, role string, start chain.Start) (*measured.Process, error) {
	ops, err := measured.FreeAddr()
	if err != nil {
		return nil, err
	}
	if b.profiles != "" && c.Once {
		chain.Profile(ctx, b.profiles, ops, role, 4)
	}
	return start(ops)
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

// measure sends the load and follows it stage by stage: the writer starts only
// after the receiver has finished.
func (b *bench) measure(ctx context.Context, c chain.Chain) (f figures, err error) {
	f.name = c.Name
	measured.Progress("%s: sending", c.Name)
	receiver, err := b.start(ctx, c, "gateway", c.Receiver)
	if err != nil {
		return f, err
	}
	defer receiver.Stop()
	if err := receiver.WaitListening(ctx, c.OTLP); err != nil {
		return f, err
	}
	before, err := receiver.Usage()
	if err != nil {
		return f, err
	}
	begun := time.Now()
	if err := b.send(ctx, c.OTLP); err != nil {
		return f, err
	}
	f.sendSeconds = time.Since(begun).Seconds()
	after, err := receiver.Usage()
	if err != nil {
		return f, err
	}
	f.gateway, f.gatewayRSS = b.perSpan(after.CPU-before.CPU), after.Peak
	receiver.Stop()

	measured.Progress("%s: writing", c.Name)
	engineBefore, err := measured.UsageOf(b.engine.PID())
	if err != nil {
		return f, err
	}
	begun = time.Now()
	writer, err := b.start(ctx, c, "writer", c.Writer)
	if err != nil {
		return f, err
	}
	defer writer.Stop()
	if err := b.waitStored(ctx, c, writer); err != nil {
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
	f.bytesPerSpan, err = b.onDisk(ctx, c)
	return f, err
}

func (b *bench) perSpan(cpu time.Duration) float64 { return measured.MicrosEach(cpu, b.spans) }

func (b *bench) waitStored(ctx context.Context, c chain.Chain, writer *measured.Process) error {
	for {
		var n uint64
		err := b.engine.Conn.QueryRow(ctx, c.Count()).Scan(&n)
		if err == nil && n >= uint64(b.spans) {
			if extra := n - uint64(b.spans); extra > 0 && c.Once {
				return fmt.Errorf("%d spans stored twice", extra)
			} else if extra > 0 {
				measured.Progress("%s: %d spans stored twice", c.Name, extra)
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

func (b *bench) onDisk(ctx context.Context, c chain.Chain) (float64, error) {
	if err := b.engine.Conn.Exec(ctx, "OPTIMIZE TABLE "+c.Table+" FINAL"); err != nil {
		return 0, err
	}
	var bytes, rows uint64
	err := b.engine.Conn.QueryRow(ctx, "SELECT sum(bytes_on_disk), sum(rows) FROM system.parts WHERE active AND concat(database, '.', table) = $1", c.Table).Scan(&bytes, &rows)
	return float64(bytes) / float64(max(rows, 1)), err
}
