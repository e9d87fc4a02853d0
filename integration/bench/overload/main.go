// Command overload sends a server twice what it can take for some minutes, and shows that it holds: memory within
// its bounds, every refusal with a time to retry, as much accepted as without the overload, everything accepted
// stored once, and no hand needed afterwards.
//
//	go run ./integration/bench/overload -server bin/metaflow-server
//
// The bottleneck is the way to Kafka, which carries a fixed number of bytes a second (-kafka-rate), so
// that the sustainable rate does not depend on what else the machine does. Gateway, writer, broker, ClickHouse and
// the senders are processes of their own, or this one. Senders are collectors over OTLP/gRPC and programs over
// OTLP/HTTP: each sends a request on schedule, again after the time that it is told, and gives it up when the
// next ones are due, as a full queue does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
)

func main() {
	measured.MaybeRunEngine()
	maybeServeBroker()
	var o options
	flag.StringVar(&o.server, "server", "bin/metaflow-server", "the server's program")
	flag.Float64Var(&o.kafkaRate, "kafka-rate", 300_000, "bytes a second that the way to Kafka carries")
	flag.Int64Var(&o.inFlight, "in-flight", 128<<20, "grpc.max_bytes_in_flight of the gateway")
	flag.DurationVar(&o.measure, "measure", 40*time.Second, "how long the sustainable rate is measured")
	flag.DurationVar(&o.duration, "duration", 5*time.Minute, "how long twice that rate is sent")
	flag.Float64Var(&o.times, "times", 2, "how many times the sustainable rate is sent")
	flag.BoolVar(&o.verbose, "v", false, "show what the programs log")
	measured.Main("overload", o.run)
}

type options struct {
	server            string
	kafkaRate, times  float64
	inFlight          int64
	measure, duration time.Duration
	verbose           bool
}

// site is the programs.
type site struct {
	options
	dir             string
	broker          *measured.Process
	link            *link
	clickhouse      *measured.ClickHouse
	gateway, writer *measured.Process
	grpc, http      string // of the gateway
	gatewayOps      string
}

// clickhouseMemory is the limit of ClickHouse.
const clickhouseMemory = 3 << 30

func (o *options) run(ctx context.Context) (err error) {
	s := &site{options: *o}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.start(ctx); err != nil {
		return err
	}
	return s.overload(ctx)
}

func (s *site) start(ctx context.Context) (err error) {
	if s.dir, err = os.MkdirTemp("", "overload-"); err != nil {
		return err
	}
	if s.broker, s.link, err = startBroker(ctx, s.kafkaRate, s.verbose); err != nil {
		return err
	}
	s.clickhouse, err = measured.StartClickHouse(ctx, chengine.Options{
		DataDir: filepath.Join(s.dir, "clickhouse"), MaxMemoryBytes: clickhouseMemory,
	}, nil)
	if err != nil {
		return err
	}
	var writerOps string
	for _, addr := range []*string{&s.grpc, &s.http, &s.gatewayOps, &writerOps} {
		if *addr, err = measured.FreeAddr(); err != nil {
			return err
		}
	}
	config := filepath.Join(s.dir, "metaflow.yaml")
	yaml := fmt.Sprintf(`grpc: {listen: %q, max_bytes_in_flight: %d}
gateway: {http_listen: %q}
kafka: {brokers: [%q], partitions: 12}
clickhouse: {addresses: [%q]}
`, s.grpc, s.inFlight, s.http, s.link.addr(), s.clickhouse.NativeAddr())
	if err := os.WriteFile(config, []byte(yaml), 0o600); err != nil {
		return err
	}
	role := func(role, ops string) (*measured.Process, error) {
		p, err := measured.Start(s.verbose, nil, s.server, "serve", "--config", config, "--roles", role, "--http-listen", ops)
		if err != nil {
			return nil, err
		}
		return p, waitReady(ctx, p, ops)
	}
	if s.writer, err = role("writer", writerOps); err != nil {
		return err
	}
	s.gateway, err = role("gateway", s.gatewayOps)
	return err
}

func (s *site) close() error {
	for _, p := range []*measured.Process{s.gateway, s.writer} {
		if p != nil {
			p.Stop()
		}
	}
	if s.clickhouse != nil {
		s.clickhouse.Close()
	}
	if s.link != nil {
		s.link.close()
	}
	if s.broker != nil {
		s.broker.Stop()
	}
	return os.RemoveAll(s.dir)
}

// overload measures the sustainable rate, sends more, and judges.
func (s *site) overload(ctx context.Context) error {
	l, err := newLoad(s.grpc, s.http)
	if err != nil {
		return err
	}
	defer l.close()
	idle, err := s.gateway.Usage()
	if err != nil {
		return err
	}
	l.closed(ctx, 5*time.Second) // warm up
	measured.Progress("measuring the sustainable rate")
	before, line := l.counts(), s.line(ctx)
	l.closed(ctx, s.measure)
	sustainable := l.counts().minus(before).rate()
	measured.Progress("the way to Kafka: %s", s.line(ctx).minus(line).describe(s.kafkaRate, s.measure))
	measured.Progress("%.0f spans/s are sustainable; sending %.1f times as many for %s", sustainable, s.times, s.duration)

	before, line = l.counts(), s.line(ctx)
	watching, stop := context.WithCancel(ctx)
	full := make(chan float64, 1)
	go func() { full <- s.watch(watching) }()
	l.open(ctx, sustainable*s.times, s.duration)
	during := l.counts().minus(before)
	measured.Progress("the way to Kafka: %s", s.line(ctx).minus(line).describe(s.kafkaRate, s.duration))
	stop()
	inFlight := <-full

	ended := time.Now()
	if err := l.calm(ctx, sustainable/2, 10*time.Second); err != nil {
		return err
	}
	recovered := time.Since(ended)
	stored, err := s.stored(ctx, l)
	if err != nil {
		return err
	}
	return s.report(os.Stdout, &figures{
		sustainable: sustainable, during: during, recovered: recovered, stored: stored, idle: idle.Peak, inFlight: inFlight,
	})
}
