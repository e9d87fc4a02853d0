package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/gateway"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/opshttp"
	"github.com/metaflowys/metaflow-server/pkg/otlpgrpc"
	"github.com/metaflowys/metaflow-server/pkg/writer"
	"github.com/metaflowys/metaflow-server/schema"
)

// app is a server with its roles. Parts that a role does not need are nil.
type app struct {
	cfg   *server
	log   *slog.Logger
	reg   *prometheus.Registry
	kafka *kafka.Client
	db    *clickhouse.DB
	http  *opshttp.Server
	// listening is told the gateway's address once it has one.
	listening func(grpc net.Addr)
}

// newApp opens what can be opened while Kafka and ClickHouse are still away.
// It starts nothing. An app that was made must be run or closed.
func newApp(cfg *server, log *slog.Logger) (_ *app, err error) {
	a := &app{cfg: cfg, log: log, reg: prometheus.NewRegistry(), listening: func(net.Addr) {}}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	a.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	checks := []opshttp.Check{}
	if cfg.has(roleGateway) || cfg.has(roleWriter) {
		if a.kafka, err = kafka.New(cfg.Kafka, kafka.Options{Logger: log, Registerer: a.reg}); err != nil {
			return nil, err
		}
		checks = append(checks, opshttp.Check{Name: "kafka", Func: a.kafka.Ping})
	}
	if cfg.has(roleWriter) {
		if a.db, err = clickhouse.Open(cfg.ClickHouse, log); err != nil {
			return nil, err
		}
		checks = append(checks,
			opshttp.Check{Name: "clickhouse", Func: a.db.Ping},
			opshttp.Check{Name: "schema", Func: a.checkSchema},
		)
	}
	a.http, err = opshttp.New(cfg.HTTP, opshttp.Options{Logger: log, Gatherer: a.reg, Checks: checks})
	return a, err
}

func (a *app) close() {
	if a.http != nil {
		_ = a.http.Close()
	}
	if a.db != nil {
		_ = a.db.Close()
	}
	if a.kafka != nil {
		a.kafka.Close()
	}
}

func (a *app) checkSchema(ctx context.Context) error {
	current, wanted, err := a.db.SchemaVersion(ctx)
	if err != nil {
		return err
	}
	if current < wanted {
		return fmt.Errorf("the schema is at version %d, this program needs %d: run 'metaflow-server migrate up'", current, wanted)
	}
	return nil
}

// run serves until ctx ends or a part fails for good, and then stops in the
// order of the data: no more requests, then the producer, then the writer, and what
// operators watch it by last.
func (a *app) run(ctx context.Context) error {
	defer a.close()
	ops, stopOps := context.WithCancel(context.WithoutCancel(ctx))
	defer stopOps()
	served := make(chan error, 1)
	go func() { served <- a.http.Run(ops) }()

	g, ctx := errgroup.WithContext(ctx)
	if a.cfg.has(roleGateway) {
		g.Go(func() error { return a.runGateway(ctx) })
	}
	if a.cfg.has(roleWriter) {
		g.Go(func() error { return a.runWriter(ctx) })
	}
	g.Go(func() error { // a server of no role but control still lives
		<-ctx.Done()
		return nil
	})
	err := g.Wait()
	stopOps()
	a.log.Info("stopped")
	return errors.Join(err, <-served)
}

// runGateway takes requests until ctx ends, and returns when all are answered.
func (a *app) runGateway(ctx context.Context) error {
	if err := a.ensureTopics(ctx); err != nil {
		return ignoreStop(ctx, err)
	}
	partitions, err := a.kafka.Partitions(ctx, schema.TopicSpans)
	if err != nil {
		return ignoreStop(ctx, err)
	}
	producing, stopProducer := context.WithCancel(context.WithoutCancel(ctx))
	defer stopProducer()
	producer := a.kafka.NewProducer(schema.TopicSpans, kafka.ProducerOptions{})
	gw, err := gateway.New(a.cfg.Gateway, producer, gateway.Options{
		Partitions: partitions, MaxRecordBytes: int(a.cfg.Kafka.MaxRecordBytes), Registerer: a.reg,
	})
	if err != nil {
		return err
	}
	receiver, err := otlpgrpc.New(a.cfg.GRPC, gw, otlpgrpc.Options{Logger: a.log, Registerer: a.reg, ShutdownGrace: a.cfg.ShutdownGrace})
	if err != nil {
		return err
	}
	a.log.Info("gateway listens", "address", receiver.Addr().String(), "partitions", partitions)
	a.listening(receiver.Addr())
	var g errgroup.Group
	g.Go(func() error { return producer.Run(producing) })
	g.Go(func() error {
		defer stopProducer() // only after the last request is answered
		return receiver.Run(ctx)
	})
	return g.Wait()
}

// runWriter stores what the topic holds until ctx ends.
func (a *app) runWriter(ctx context.Context) error {
	if err := a.ensureTopics(ctx); err != nil {
		return ignoreStop(ctx, err)
	}
	if err := a.prepareSchema(ctx); err != nil {
		return ignoreStop(ctx, err)
	}
	inserter, err := clickhouse.NewInserter(a.cfg.ClickHouse, clickhouse.InserterOptions{Logger: a.log, Registerer: a.reg})
	if err != nil {
		return err
	}
	defer inserter.Close()
	if err := a.retry(ctx, "find the shards", inserter.Discover); err != nil {
		return ignoreStop(ctx, err)
	}
	producing, stopProducer := context.WithCancel(context.WithoutCancel(ctx))
	defer stopProducer()
	dead := a.kafka.NewProducer(schema.TopicDeadLetter, kafka.ProducerOptions{})
	w, err := writer.New(a.cfg.Writer, store{inserter, a.db}, dead, writer.Options{
		AcceptPast: a.cfg.Gateway.AcceptPast, AcceptFuture: a.cfg.Gateway.AcceptFuture,
		Grace: a.cfg.ShutdownGrace, Logger: a.log, Registerer: a.reg,
	})
	if err != nil {
		return err
	}
	group := a.kafka.NewGroup(a.cfg.Writer.Group, schema.TopicSpans, kafka.GroupOptions{SessionTimeout: a.cfg.Writer.Session})
	a.log.Info("writer joins", "group", a.cfg.Writer.Group)
	var g errgroup.Group
	g.Go(func() error { return dead.Run(producing) })
	g.Go(func() error {
		defer stopProducer()
		return group.Run(ctx, func(ctx context.Context, c *kafka.Claim) error { return w.Handle(ctx, c) })
	})
	return g.Wait()
}

// store is where the writer stores and looks up.
type store struct {
	*clickhouse.Inserter
	*clickhouse.DB
}

// ensureTopics creates the topics that are missing; it waits for Kafka.
func (a *app) ensureTopics(ctx context.Context) error {
	k := &a.cfg.Kafka
	topic := kafka.Topic{
		Name: schema.TopicSpans, Partitions: k.Partitions, Replication: k.Replication, Retention: k.Retention,
		MaxMessageBytes: int(k.MaxRecordBytes) + maxMessageOverhead,
	}
	dead := topic
	dead.Name, dead.Partitions = schema.TopicDeadLetter, 1
	dead.Retention = max(k.Retention, deadLetterRetention)
	return a.retry(ctx, "create topics", func(ctx context.Context) error {
		return a.kafka.EnsureTopics(ctx, topic, dead)
	})
}

// deadLetterRetention leaves somebody a fortnight to look at what was diverted.
const deadLetterRetention = 14 * 24 * time.Hour

// prepareSchema waits for ClickHouse and for a schema that this program knows.
func (a *app) prepareSchema(ctx context.Context) error {
	if err := a.db.Wait(ctx); err != nil {
		return err
	}
	if a.cfg.Migrate {
		return a.retry(ctx, "migrate the schema", func(ctx context.Context) error {
			return a.db.Migrate(ctx, a.cfg.Retention)
		})
	}
	return a.retry(ctx, "check the schema", a.checkSchema)
}

// retry calls f until it succeeds or ctx ends, and says why it has to.
func (a *app) retry(ctx context.Context, what string, f func(context.Context) error) error {
	const pause = 2 * time.Second
	for {
		err := f(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		a.log.Warn("failed, trying again", "operation", what, "error", err, "after", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ignoreStop is err, unless it only says that ctx has ended: a stop that was
// asked for while waiting is no failure.
func ignoreStop(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // this is what it is for
	}
	return err
}
