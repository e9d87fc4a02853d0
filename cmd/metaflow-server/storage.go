package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/inventory"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/opshttp"
	"github.com/metaflowys/metaflow-server/pkg/writer"
	"github.com/metaflowys/metaflow-server/schema"
)

// storage is the role writer: it stores the topics' records in ClickHouse.
type storage struct {
	*startup

	know *knowledge
	db   *clickhouse.DB
}

func newStorage(c *core, know *knowledge) (*storage, error) {
	db, err := clickhouse.Open(c.cfg.ClickHouse, c.log)
	if err != nil {
		return nil, err
	}
	return &storage{startup: &startup{core: c}, know: know, db: db}, nil
}

func (s *storage) close() { _ = s.db.Close() }

func (s *storage) needs() []kafka.Access {
	return []kafka.Access{
		{Topic: schema.TopicSpans, Read: true, Group: s.cfg.Writer.Group},
		{Topic: schema.TopicFlows, Read: true, Group: s.cfg.FlowWriter.Group},
		{Topic: schema.TopicResources, Read: true, Group: s.cfg.Resources.Group},
		{Topic: schema.TopicDeadLetter, Write: true},
	}
}

func (s *storage) checks() []opshttp.Check {
	return []opshttp.Check{{Name: "clickhouse", Func: s.db.Ping}, {Name: "schema", Func: s.checkSchema}, {Name: "writer", Func: s.ready}}
}

func (s *storage) checkSchema(ctx context.Context) error {
	current, wanted, err := s.db.SchemaVersion(ctx)
	if err != nil {
		return err
	}
	if current < wanted {
		return fmt.Errorf("the schema is at version %d, this program needs %d: run 'metaflow-server migrate up'", current, wanted)
	}
	return nil
}

// run stores spans, flows, and the tables of pods and agents until ctx ends.
func (s *storage) run(ctx context.Context) error {
	if err := s.prepare(ctx); err != nil {
		return unlessStopped(ctx, err)
	}
	inserter, err := clickhouse.NewInserter(s.cfg.ClickHouse, clickhouse.InserterOptions{Logger: s.log, Registerer: s.reg})
	if err != nil {
		return err
	}
	defer inserter.Close()
	if err := s.retry(ctx, "find the shards", inserter.Discover); err != nil {
		return unlessStopped(ctx, err)
	}
	dead := s.kafka.NewProducer(schema.TopicDeadLetter, kafka.ProducerOptions{})
	spans, err := s.newWriter(s.cfg.Writer, columns.TracesTable(), inserter, dead)
	if err != nil {
		return err
	}
	flows, err := s.newWriter(s.cfg.FlowWriter, columns.FlowsTable(s.know.resources.Resolve), inserter, dead)
	if err != nil {
		return err
	}
	tables, err := inventory.NewTables(inserter, inventory.TablesOptions{Logger: s.log, Registerer: s.reg})
	if err != nil {
		return err
	}
	handleTables := kafka.Handler(tables.Handle)
	if s.cfg.EdgeMetrics.Enabled {
		handleTables = beside(clickhouse.NewEdgeMetrics(s.cfg.EdgeMetrics, s.db, s.log, s.reg).Run, handleTables)
	}
	if s.cfg.Retention.DiskGuard > 0 {
		handleTables = beside(clickhouse.NewDiskGuard(s.cfg.Retention, s.db, s.log, s.reg).Run, handleTables)
	}
	var producing background
	producing.run(ctx, dead.Run)
	s.finish()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return s.follow(ctx, schema.TopicSpans, s.cfg.Writer.Group, s.cfg.Writer.Session, handlerOf(spans))
	})
	g.Go(func() error {
		// After a restart, flows must not be stored without the owners of their
		// addresses. But flows without owners are better than none.
		s.know.await(ctx, "flows are stored without the pods and services that are not known yet")
		return s.follow(ctx, schema.TopicFlows, s.cfg.FlowWriter.Group, s.cfg.FlowWriter.Session, handlerOf(flows))
	})
	g.Go(func() error {
		return s.follow(ctx, schema.TopicResources, s.cfg.Resources.Group, s.cfg.Writer.Session, handleTables)
	})
	return errors.Join(g.Wait(), producing.stop())
}

func (s *storage) newWriter(cfg writer.Config, table columns.Table, inserter *clickhouse.Inserter, dead *kafka.Producer) (*writer.Writer, error) {
	return writer.New(cfg, table, s.db, inserter, dead, writer.Options{
		AcceptPast: s.cfg.Gateway.AcceptPast, AcceptFuture: s.cfg.Gateway.AcceptFuture,
		Grace: s.cfg.ShutdownGrace, Logger: s.log, Registerer: s.reg,
	})
}

// follow runs a member of a topic's writer group until ctx ends.
func (s *storage) follow(ctx context.Context, topic, group string, session time.Duration, handle kafka.Handler) error {
	s.log.Info("joining writer group", slog.String("group", group), slog.String("topic", topic))
	return s.kafka.NewGroup(group, topic, kafka.GroupOptions{SessionTimeout: session}).Run(ctx, handle)
}

// beside returns a handler that also runs a function while it has its claim. One replica has
// the claim of a topic with one partition.
func beside(run func(context.Context), handle kafka.Handler) kafka.Handler {
	return func(ctx context.Context, c *kafka.Claim) error {
		running, stop := context.WithCancel(ctx)
		var wait sync.WaitGroup
		wait.Go(func() { run(running) })
		defer wait.Wait()
		defer stop()
		return handle(ctx, c)
	}
}

func handlerOf(w *writer.Writer) kafka.Handler {
	return func(ctx context.Context, c *kafka.Claim) error { return w.Handle(ctx, c) }
}

// prepare waits for Kafka, for ClickHouse and for a schema that this program supports.
func (s *storage) prepare(ctx context.Context) error {
	if err := s.ensureTopics(ctx, namesOf(s.needs())...); err != nil {
		return err
	}
	if err := s.db.Wait(ctx); err != nil {
		return err
	}
	migrate, what := s.checkSchema, "check the schema"
	if s.cfg.Migrate {
		migrate, what = func(ctx context.Context) error { return s.db.Migrate(ctx, s.cfg.Retention) }, "migrate the schema"
	}
	if err := s.retry(ctx, what, migrate); err != nil {
		return err
	}
	return s.retry(ctx, "check the settings of tables", s.checkTables)
}

// checkTables applies the table settings that writers rely on. If this program may not
// change the schema, it logs the missing ones.
func (s *storage) checkTables(ctx context.Context) error {
	partitions := 0
	for _, topic := range []string{schema.TopicSpans, schema.TopicFlows} {
		n, err := s.kafka.Partitions(ctx, topic)
		if err != nil {
			return err
		}
		partitions = max(partitions, n)
	}
	if s.cfg.Migrate {
		return s.db.EnsureTableSettings(ctx, partitions)
	}
	err := s.db.CheckTableSettings(ctx, partitions)
	if errors.Is(err, clickhouse.ErrTableSettings) {
		s.log.Warn("table settings are missing, so guarantees are weaker", slog.Any("error", err))
		return nil
	}
	return err
}
