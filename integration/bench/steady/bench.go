package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/integration/bench/chain"
	"github.com/metaflowys/metaflow-server/integration/bench/measured"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// bench is one load on one chain.
type bench struct {
	options
	site     chain.Site
	broker   *measured.Process
	exporter *chain.Exporter
	spans    *otlptest.Generator
	sent     *acknowledged
}

// figures are what the chain cost. CPU is in microseconds a span.
type figures struct {
	gateway, writer, clickhouse float64
	gatewayRSS, writerRSS       int64 // peak resident bytes; of the largest writer
	clickhouseRSS               int64
	inserts                     float64 // a second
	rows                        float64 // in one INSERT
	merged                      float64 // how often a row was merged
	parts                       float64 // that are alive at the end of the load
	p50, p99                    time.Duration
}

func newBench(ctx context.Context, o options) (_ *bench, err error) {
	b := &bench{options: o}
	defer func() {
		if err != nil {
			_ = b.close()
		}
	}()
	b.site = chain.Site{Partitions: o.partitions, Verbose: o.verbose}
	if b.site.Dir, err = os.MkdirTemp("", "steadybench-"); err != nil {
		return nil, err
	}
	if b.broker, b.site.Kafka, err = measured.StartBroker(ctx, o.verbose); err != nil {
		return nil, err
	}
	b.site.ClickHouse, err = measured.StartClickHouse(ctx, chengine.Options{
		DataDir: filepath.Join(b.site.Dir, "clickhouse"), MaxMemoryBytes: 8 << 30,
	}, nil)
	b.spans = otlptest.New(1, otlptest.Options{Start: time.Now().Add(-time.Minute), SpansPerSecond: o.rate})
	return b, err
}

func (b *bench) close() error {
	if b.exporter != nil {
		b.exporter.Close()
	}
	if b.site.ClickHouse != nil {
		b.site.ClickHouse.Close()
	}
	if b.broker != nil {
		b.broker.Stop()
	}
	return os.RemoveAll(b.site.Dir)
}

func (b *bench) chain(ctx context.Context, name string) (chain.Chain, error) {
	if name == "collector" {
		return b.site.OTelCol(ctx, b.collector)
	}
	c, err := b.site.MetaFlow(b.server, b.profiles != "")
	if err == nil {
		err = b.site.JoinOnce(ctx, c)
	}
	return c, err
}

// warmUp is how long the load runs before anything is measured: members of a
// consumer group that join change its partitions.
const warmUp = 10 * time.Second

// measure runs the programs of a chain and sends them the load.
func (b *bench) measure(ctx context.Context, c chain.Chain) (f figures, err error) {
	receiver, gatewayOps, err := start(c.Receiver)
	if err != nil {
		return f, err
	}
	defer receiver.Stop()
	if err := receiver.WaitListening(ctx, c.OTLP); err != nil {
		return f, err
	}
	var writers []*measured.Process
	var writerOps string // of the first
	for range b.writers {
		w, ops, err := start(c.Writer)
		if err != nil {
			return f, err
		}
		defer w.Stop()
		writers = append(writers, w)
		writerOps = cmp.Or(writerOps, ops)
	}
	if b.exporter, err = chain.Dial(c.OTLP); err != nil {
		return f, err
	}
	measured.Progress("%s: %d spans/s, %d partitions, %d writers", c.Name, b.rate, b.partitions, b.writers)
	b.sent = &acknowledged{}
	if err := b.send(ctx, warmUp); err != nil {
		return f, err
	}
	if err := b.waitStored(ctx, c); err != nil {
		return f, err
	}
	if b.profiles != "" && c.Once {
		seconds := int(b.duration.Seconds())
		chain.Profile(ctx, b.profiles, gatewayOps, "gateway", seconds)
		chain.Profile(ctx, b.profiles, writerOps, "writer", seconds)
	}
	if err := b.cost(ctx, c, &f, receiver, writers); err != nil {
		return f, err
	}
	f.p50, f.p99, err = b.delays(ctx, c)
	return f, err
}

// start starts a program and returns the address of its metrics.
func start(program chain.Start) (_ *measured.Process, ops string, err error) {
	if ops, err = measured.FreeAddr(); err != nil {
		return nil, "", err
	}
	p, err := program(ops)
	return p, ops, err
}

// cost measures what the load costs each program, merges included.
func (b *bench) cost(ctx context.Context, c chain.Chain, f *figures, receiver *measured.Process, writers []*measured.Process) error {
	var all meter
	before, err := all.read(ctx, b, receiver, writers)
	if err != nil {
		return err
	}
	spans, begun := b.sent.count(), time.Now()
	if err := b.send(ctx, b.duration); err != nil {
		return err
	}
	took := time.Since(begun).Seconds()
	if f.parts, err = b.parts(ctx); err != nil {
		return err
	}
	if err := b.waitStored(ctx, c); err != nil {
		return err
	}
	if err := b.site.ClickHouse.WaitMerged(ctx); err != nil {
		return err
	}
	after, err := all.read(ctx, b, receiver, writers)
	if err != nil {
		return err
	}
	n := b.sent.count() - spans
	f.gateway = measured.MicrosEach(after.gateway.CPU-before.gateway.CPU, n)
	f.writer = measured.MicrosEach(after.writerCPU-before.writerCPU, n)
	f.clickhouse = measured.MicrosEach(after.clickhouse.CPU-before.clickhouse.CPU, n)
	f.gatewayRSS, f.writerRSS, f.clickhouseRSS = after.gateway.Peak, after.writerPeak, after.clickhouse.Peak
	f.inserts = (after.inserts - before.inserts) / took
	f.rows = float64(n) / max(after.inserts-before.inserts, 1)
	f.merged = (after.merged - before.merged) / float64(n)
	return nil
}

// meter reads what all programs have used up.
type meter struct {
	gateway, clickhouse measured.Usage
	writerCPU           time.Duration
	writerPeak          int64
	inserts, merged     float64
}

func (meter) read(ctx context.Context, b *bench, receiver *measured.Process, writers []*measured.Process) (m meter, err error) {
	if m.gateway, err = receiver.Usage(); err != nil {
		return m, err
	}
	for _, w := range writers {
		u, err := w.Usage()
		if err != nil {
			return m, err
		}
		m.writerCPU += u.CPU
		m.writerPeak = max(m.writerPeak, u.Peak)
	}
	if m.clickhouse, err = measured.UsageOf(b.site.ClickHouse.PID()); err != nil {
		return m, err
	}
	const events = "SELECT toFloat64(sumIf(value, event = 'InsertQuery')), toFloat64(sumIf(value, event = 'MergedRows')) FROM system.events"
	return m, b.site.ClickHouse.Conn.QueryRow(ctx, events).Scan(&m.inserts, &m.merged)
}

func (b *bench) parts(ctx context.Context) (n float64, err error) {
	const parts = "SELECT toFloat64(count()) FROM system.parts WHERE active AND database IN ('metaflow', 'otel')"
	return n, b.site.ClickHouse.Conn.QueryRow(ctx, parts).Scan(&n)
}

// acknowledged is what a receiver has acknowledged, in order.
type acknowledged struct {
	mu    sync.Mutex
	spans int
	times []mark
}

// mark is a time at which so many spans were acknowledged in total.
type mark struct {
	spans int
	at    time.Time
}

func (a *acknowledged) add(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.spans += n
	a.times = append(a.times, mark{a.spans, time.Now()})
}

func (a *acknowledged) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.spans
}

// senders is how many requests are under way at a time at most.
const senders = 8

// send sends spans at the rate, in ten requests a second or more.
func (b *bench) send(ctx context.Context, duration time.Duration) error {
	batch := min(512, max(b.rate/10, 1))
	every := time.Duration(float64(time.Second) * float64(batch) / float64(b.rate))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(senders)
	next, end := time.Now(), time.Now().Add(duration)
	for next.Before(end) && ctx.Err() == nil {
		request := b.spans.RequestBytes(batch)
		if err := retry.Sleep(ctx, time.Until(next)); err != nil {
			break
		}
		g.Go(func() error {
			if err := b.exporter.Export(ctx, request); err != nil {
				return err
			}
			b.sent.add(batch)
			return nil
		})
		next = next.Add(every)
	}
	return g.Wait()
}

func (b *bench) stored(ctx context.Context, c chain.Chain) (n uint64, err error) {
	return n, b.site.ClickHouse.Conn.QueryRow(ctx, c.Count()).Scan(&n)
}

// waitStored waits until all spans that were acknowledged are stored.
func (b *bench) waitStored(ctx context.Context, c chain.Chain) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	want := uint64(b.sent.count())
	for {
		n, err := b.stored(ctx, c)
		switch {
		case err == nil && n > want && c.Once:
			return fmt.Errorf("%d spans are stored, and %d were sent", n, want)
		case err == nil && n >= want:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d spans are stored: %w", n, want, ctx.Err())
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// pollInterval is how often delays asks what is stored: the precision of what it
// finds.
const pollInterval = 20 * time.Millisecond

// delays goes on with the load, and measures how long after its acknowledgement
// a span can be queried. It counts spans and takes those that were acknowledged
// first for those that are stored first.
func (b *bench) delays(ctx context.Context, c chain.Chain) (p50, p99 time.Duration, err error) {
	from := b.sent.count()
	sending, stop := context.WithCancel(ctx)
	defer stop()
	var seen []mark
	var polling errgroup.Group
	polling.Go(func() error {
		for {
			n, err := b.stored(ctx, c)
			if err != nil {
				return err
			}
			if len(seen) == 0 || int(n) > seen[len(seen)-1].spans {
				seen = append(seen, mark{int(n), time.Now()})
			}
			if sending.Err() != nil && int(n) >= b.sent.count() {
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(pollInterval):
			}
		}
	})
	err = b.send(ctx, b.freshness)
	stop()
	if polled := polling.Wait(); err == nil {
		err = polled
	}
	if err != nil {
		return 0, 0, err
	}
	var delays []time.Duration // of requests, which are all of one size
	i := 0
	for _, m := range b.sent.times {
		if m.spans <= from {
			continue
		}
		for i < len(seen) && seen[i].spans < m.spans {
			i++
		}
		if i == len(seen) {
			return 0, 0, fmt.Errorf("nobody saw %d spans stored", m.spans)
		}
		delays = append(delays, max(seen[i].at.Sub(m.at), 0))
	}
	slices.Sort(delays)
	return delays[len(delays)/2], delays[len(delays)*99/100], nil
}
