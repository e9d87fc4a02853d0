package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/control"
	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/gateway"
	"github.com/metaflowys/metaflow-server/pkg/inventory"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/opshttp"
	"github.com/metaflowys/metaflow-server/pkg/otlphttp"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/rpc/agentauth"
	"github.com/metaflowys/metaflow-server/pkg/rpc/agentgrpc"
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
	// What is known of pods and services, in every role. Who serves the gRPC port takes reports
	// of agents, and has a producer for them; control says with it how agents are.
	resources   *inventory.Resources
	resourcesTo *kafka.Producer
	// guard knows who may speak for which agent, in every role.
	guard *agentauth.Guard
	// Of the role control: what it decides and the producer it writes with, and the
	// streams of agents.
	control  *control.Control
	commands *kafka.Producer
	agents   *agentgrpc.Service
	// Of the role gateway: where it produces to.
	spansTo, flowsTo *kafka.Producer
	// single says that Kafka is one broker by intention, so that nobody is told of its replicas.
	single bool
	// listening is told the addresses of the ports that take data once they have them;
	// that of OTLP/HTTP is nil when there is none.
	listening func(grpc, otlpHTTP net.Addr)
	// spareHTTP is an address of OTLP/HTTP that nobody asked for: when somebody else has it,
	// the server does without.
	spareHTTP string
}

// newApp opens what can be opened while Kafka and ClickHouse are still away.
// It starts nothing. An app that was made must be run or closed.
func newApp(cfg *server, log *slog.Logger) (_ *app, err error) {
	a := &app{cfg: cfg, log: log, reg: prometheus.NewRegistry(), listening: func(_, _ net.Addr) {}}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	for _, e := range cfg.exposures() {
		log.Warn("this server is open to the network", "how", e)
	}
	a.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if a.kafka, err = kafka.New(cfg.Kafka, kafka.Options{Logger: log, Registerer: a.reg}); err != nil {
		return nil, err
	}
	if err = a.newResources(); err != nil {
		return nil, err
	}
	checks := []opshttp.Check{{Name: "kafka", Func: a.kafka.Ping}, {Name: "resources", Func: a.resources.Ready}}
	if cfg.has(roleWriter) {
		if a.db, err = clickhouse.Open(cfg.ClickHouse, log); err != nil {
			return nil, err
		}
		checks = append(checks,
			opshttp.Check{Name: "clickhouse", Func: a.db.Ping},
			opshttp.Check{Name: "schema", Func: a.checkSchema},
		)
	}
	if cfg.has(roleControl) {
		checks = append(checks, opshttp.Check{Name: "control", Func: func(ctx context.Context) error { return a.control.Ready(ctx) }})
	}
	if cfg.has(roleGateway) {
		a.spansTo = a.kafka.NewProducer(schema.TopicSpans, kafka.ProducerOptions{})
		a.flowsTo = a.kafka.NewProducer(schema.TopicFlows, kafka.ProducerOptions{})
	}
	checks = append(checks, opshttp.Check{Name: "topics", Func: a.checkTopics})
	if a.http, err = opshttp.New(cfg.HTTP, opshttp.Options{Logger: log, Gatherer: a.reg, Checks: checks}); err != nil {
		return nil, err
	}
	if cfg.has(roleControl) {
		err = a.newControl()
	}
	return a, err
}

// newResources makes what knows the pods and services.
func (a *app) newResources() (err error) {
	a.guard = agentauth.New(a.cfg.Control.AgentTokens, a.cfg.GRPC.TLS.ClientCAFile != "")
	opts := inventory.Options{Log: a.kafka, Logger: a.log, Registerer: a.reg, Also: a.guard, Joined: a.guard.Joined}
	if a.servesPort() {
		a.resourcesTo = a.kafka.NewProducer(schema.TopicResources, kafka.ProducerOptions{})
		opts.Producer = a.resourcesTo
	}
	a.resources, err = inventory.New(a.cfg.Resources, opts)
	return err
}

// servesPort tells whether the gRPC port is served.
func (a *app) servesPort() bool { return a.cfg.has(roleGateway) || a.cfg.has(roleControl) }

// newControl makes what agents and operators speak to. Operators can from the start: they
// are told what it still waits for.
func (a *app) newControl() error {
	replica, err := replicaName(a.http.Addr())
	if err != nil {
		return err
	}
	a.commands = a.kafka.NewProducer(schema.TopicControl, kafka.ProducerOptions{})
	a.control, err = control.New(a.cfg.Control, control.Options{
		Log: a.kafka, Commands: a.commands, Resources: a.resourcesTo, Replica: replica, Logger: a.log, Registerer: a.reg, Guard: a.guard,
	})
	if err != nil {
		return err
	}
	a.agents, err = agentgrpc.New(a.control, agentgrpc.Options{
		Logger: a.log, Registerer: a.reg, MaxStreams: a.cfg.Control.MaxStreams, Authorize: a.guard.Check,
	})
	if err != nil {
		return err
	}
	a.http.Handle("/v1/", api.NewHandler(a.control, api.HandlerOptions{
		Logger: a.log, Token: a.cfg.Control.Token, AnonymousWrites: a.cfg.Control.AllowAnonymousWrites,
	}))
	return nil
}

// replicaName is where metaflow-ctl reaches this server, from its neighbours. Two servers on one
// host have different ports.
func replicaName(http net.Addr) (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("find out the name of this host: %w", err)
	}
	_, port, err := net.SplitHostPort(http.String())
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(host, port), nil
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

// checkTopics says which records Kafka does not store, and why.
func (a *app) checkTopics(ctx context.Context) error {
	var errs []error
	for _, p := range []*kafka.Producer{a.spansTo, a.flowsTo, a.commands, a.resourcesTo} {
		if p != nil {
			errs = append(errs, p.Ready(ctx))
		}
	}
	return errors.Join(errs...)
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
	g, ctx := errgroup.WithContext(ctx)
	ops, stopOps := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { return a.http.Run(ops) })
	g.Go(func() error {
		defer stopOps()
		return a.runRoles(ctx)
	})
	err := g.Wait()
	a.log.Info("stopped")
	return err
}

func (a *app) runRoles(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.followResources(ctx) })
	g.Go(func() error {
		a.kafka.WatchSettings(ctx, !a.single, a.topics(a.roleTopics()...)...)
		return nil
	})
	if a.servesPort() {
		g.Go(func() error { return a.runPort(ctx) })
	}
	if a.cfg.has(roleWriter) {
		g.Go(func() error { return a.runWriter(ctx) })
	}
	return g.Wait()
}

// followResources learns of pods and services until ctx ends.
func (a *app) followResources(ctx context.Context) error {
	if err := a.ensureTopics(ctx, schema.TopicResources); err != nil {
		return ignoreStop(ctx, err)
	}
	return a.resources.Run(ctx)
}

// runPort serves the gRPC port, which gateway and control share, and the port of OTLP/HTTP
// until ctx ends, and returns when all calls are answered.
func (a *app) runPort(ctx context.Context) error {
	producers := []*kafka.Producer{a.resourcesTo}
	var traces rpc.Consumer // none without the role
	var overHTTP otlphttp.Consumer
	opts := rpc.Options{
		Logger: a.log, Registerer: a.reg, ShutdownGrace: a.cfg.ShutdownGrace,
		Register: agentgrpc.NewResources(a.resources, a.guard.Check).Register,
		Auth:     a.guard,
	}
	if a.cfg.has(roleControl) {
		if err := a.ensureTopics(ctx, controlTopics...); err != nil {
			return ignoreStop(ctx, err)
		}
		producers = append(producers, a.commands)
		opts.Register = agentgrpc.All(opts.Register, a.agents.Register)
	}
	if a.cfg.has(roleGateway) {
		gw, err := a.newGateways(ctx)
		if err != nil {
			return ignoreStop(ctx, err)
		}
		producers = append(producers, a.spansTo, a.flowsTo)
		traces, opts.Flows, overHTTP = gw.traces, gw.flows, gateway.HTTP{Gateway: gw.traces}
	}
	a.awaitBindings(ctx)
	receiver, err := rpc.New(a.cfg.GRPC, traces, opts)
	if err != nil {
		return err
	}
	a.log.Info("grpc port listens", "address", receiver.Addr().String(), "roles", a.cfg.Roles)
	httpReceiver, err := a.newOTLPHTTP(overHTTP, receiver)
	if err != nil {
		return errors.Join(err, receiver.Close())
	}
	receivers, receiving := errgroup.WithContext(ctx)
	if httpReceiver == nil {
		a.listening(receiver.Addr(), nil)
	} else {
		a.listening(receiver.Addr(), httpReceiver.Addr())
		receivers.Go(func() error { return httpReceiver.Run(receiving) })
	}

	// What a call stands on lives longer than the last call: control, and the producers under
	// both. Neither ends before it is told to.
	controlling, stopControl := context.WithCancel(context.WithoutCancel(ctx))
	defer stopControl()
	producing, stopProducers := context.WithCancel(context.WithoutCancel(ctx))
	defer stopProducers()
	var above, below errgroup.Group
	for _, p := range producers {
		below.Go(func() error { return p.Run(producing) })
	}
	if a.control != nil {
		above.Go(func() error { return a.control.Run(controlling) })
	}
	receivers.Go(func() error { return receiver.Run(receiving) })
	err = receivers.Wait()
	stopControl()
	err = errors.Join(err, above.Wait())
	stopProducers()
	return errors.Join(err, below.Wait())
}

// newOTLPHTTP binds the port of OTLP/HTTP, which shares bounds and certificates with
// OTLP/gRPC. It returns nil when none is to be served.
func (a *app) newOTLPHTTP(traces otlphttp.Consumer, receiver *rpc.Server) (*otlphttp.Server, error) {
	if traces == nil || a.cfg.Gateway.HTTPListen == "" {
		return nil, nil //nolint:nilnil // nil is no port
	}
	certificates, err := a.cfg.GRPC.TLS.Config("grpc.tls", a.log, "h2", "http/1.1")
	if err != nil {
		return nil, err
	}
	s, err := otlphttp.New(a.cfg.otlpHTTP(), traces, otlphttp.Options{
		Logger: a.log, Metrics: otlphttp.NewMetrics(a.reg), ShutdownGrace: a.cfg.ShutdownGrace, TLS: certificates,
		Budget: receiver.Budget(), Trusted: receiver.Trusted,
	})
	switch {
	case err != nil && a.cfg.Gateway.HTTPListen == a.spareHTTP && errors.Is(err, syscall.EADDRINUSE):
		a.log.Warn("otlp http is not received: somebody else has its port; --otlp-http-listen sets another", "address", a.spareHTTP)
		return nil, nil //nolint:nilnil // nil is no port
	case err != nil:
		return nil, fmt.Errorf("gateway.http_listen: %w", err)
	}
	a.log.Info("otlp http port listens", "address", s.Addr().String())
	return s, nil
}

// gateways are what takes traces and flows to Kafka.
type gateways struct {
	traces *gateway.Gateway
	flows  *gateway.Flows
}

// newGateways waits for Kafka.
func (a *app) newGateways(ctx context.Context) (*gateways, error) {
	if err := a.ensureTopics(ctx, dataTopics...); err != nil {
		return nil, err
	}
	for _, p := range []*kafka.Producer{a.spansTo, a.flowsTo} {
		if err := a.retry(ctx, "count the partitions", p.Look); err != nil {
			return nil, err
		}
	}
	opts := gateway.Options{
		MaxRecordBytes: int(a.cfg.Kafka.MaxRecordBytes), Registerer: a.reg,
		DedupWindow: max(a.cfg.Writer.DedupWindow, a.cfg.FlowWriter.DedupWindow),
	}
	traces, err := gateway.New(a.cfg.Gateway, a.spansTo, opts)
	if err != nil {
		return nil, err
	}
	var agents gateway.Agents // nobody knows them without the role control
	if a.control != nil {
		agents = a.control
	}
	flows, err := gateway.NewFlows(a.cfg.Gateway, a.flowsTo, agents, opts)
	return &gateways{traces: traces, flows: flows}, err
}

// runWriter stores what the topics hold until ctx ends.
func (a *app) runWriter(ctx context.Context) error {
	if err := a.ensureTopics(ctx, dataTopics...); err != nil {
		return ignoreStop(ctx, err)
	}
	if err := a.prepareSchema(ctx); err != nil {
		return ignoreStop(ctx, err)
	}
	if err := a.prepareTables(ctx); err != nil {
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
	dead := a.kafka.NewProducer(schema.TopicDeadLetter, kafka.ProducerOptions{})
	spans, err := a.newWriter(a.cfg.Writer, columns.TracesTable(), inserter, dead)
	if err != nil {
		return err
	}
	flows, err := a.newWriter(a.cfg.FlowWriter, columns.FlowsTable(a.resources.Resolve), inserter, dead)
	if err != nil {
		return err
	}
	tables, err := inventory.NewTables(inserter, inventory.TablesOptions{Logger: a.log, Registerer: a.reg})
	if err != nil {
		return err
	}
	producing, stopProducer := context.WithCancel(context.WithoutCancel(ctx))
	defer stopProducer()
	var below errgroup.Group
	below.Go(func() error { return dead.Run(producing) })
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return a.follow(ctx, schema.TopicSpans, a.cfg.Writer.Group, a.cfg.Writer.Session, handlerOf(spans))
	})
	g.Go(func() error {
		a.awaitResources(ctx)
		return a.follow(ctx, schema.TopicFlows, a.cfg.FlowWriter.Group, a.cfg.FlowWriter.Session, handlerOf(flows))
	})
	g.Go(func() error {
		return a.follow(ctx, schema.TopicResources, a.cfg.Resources.Group, a.cfg.Writer.Session, tables.Handle)
	})
	err = g.Wait()
	stopProducer()
	return errors.Join(err, below.Wait())
}

func (a *app) newWriter(cfg writer.Config, table columns.Table, inserter *clickhouse.Inserter, dead *kafka.Producer) (*writer.Writer, error) {
	return writer.New(cfg, table, a.db, inserter, dead, writer.Options{
		AcceptPast: a.cfg.Gateway.AcceptPast, AcceptFuture: a.cfg.Gateway.AcceptFuture,
		Grace: a.cfg.ShutdownGrace, Logger: a.log, Registerer: a.reg,
	})
}

// follow is a member of a topic's group of writers until ctx ends.
func (a *app) follow(ctx context.Context, topic, group string, session time.Duration, handle kafka.Handler) error {
	a.log.Info("writer joins", "group", group, "topic", topic)
	return a.kafka.NewGroup(group, topic, kafka.GroupOptions{SessionTimeout: session}).Run(ctx, handle)
}

func handlerOf(w *writer.Writer) kafka.Handler {
	return func(ctx context.Context, c *kafka.Claim) error { return w.Handle(ctx, c) }
}

// resourcesPatience is how long flows wait, after a start, for what is known of pods and services: several times
// what it takes to read as many of them as resources.max_objects allows, and no longer than flows
// are gathered by the agents before they are sent.
const resourcesPatience = 10 * time.Second

// awaitResources returns when the owners of addresses are known, so that a restart does not store flows without
// them; or when that takes too long, because flows without them are better than none.
func (a *app) awaitResources(ctx context.Context) {
	patience, cancel := context.WithTimeout(ctx, resourcesPatience)
	defer cancel()
	if err := a.resources.Await(patience); err != nil && ctx.Err() == nil {
		a.log.Warn("flows are stored without the pods and services that are not known yet", "error", err)
	}
}

// awaitBindings returns when it is known whom the ids of agents belong to; or when that takes too long, because
// only agents are refused until then.
func (a *app) awaitBindings(ctx context.Context) {
	patience, cancel := context.WithTimeout(ctx, resourcesPatience)
	defer cancel()
	if err := a.resources.Await(patience); err != nil && ctx.Err() == nil {
		a.log.Warn("agents are refused until it is known whom their ids belong to", "error", err)
	}
}

// ensureTopics creates the topics that are missing. It waits for Kafka.
func (a *app) ensureTopics(ctx context.Context, names ...string) error {
	topics := a.topics(names...)
	return a.retry(ctx, "create topics", func(ctx context.Context) error { return a.kafka.EnsureTopics(ctx, topics...) })
}

// The topics that roles need. Every role needs TopicResources.
var (
	dataTopics    = []string{schema.TopicSpans, schema.TopicFlows, schema.TopicDeadLetter, schema.TopicResources} // gateway, writer
	controlTopics = []string{schema.TopicControl, schema.TopicResources}
)

// roleTopics are the topics that this server's roles need, each once.
func (a *app) roleTopics() []string {
	names := []string{schema.TopicResources}
	if a.cfg.has(roleGateway) || a.cfg.has(roleWriter) {
		names = append(names, dataTopics...)
	}
	if a.cfg.has(roleControl) {
		names = append(names, controlTopics...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// topics returns the topics by these names as they should be: the policy of each, and where the
// policy leaves a choice, the configuration.
func (a *app) topics(names ...string) []kafka.Topic {
	topics := make([]kafka.Topic, 0, len(names))
	for _, name := range names {
		policy := schema.PolicyOf(name)
		t := kafka.Topic{
			Name: name, Partitions: policy.Partitions, Compacted: policy.Compacted, Forever: policy.Forever,
			MaxMessageBytes: int(a.cfg.Kafka.MaxRecordBytes) + schema.BatchOverhead,
		}
		if policy.MinRetention > 0 {
			t.Retention = max(a.cfg.Kafka.Retention, policy.MinRetention)
		}
		topics = append(topics, t)
	}
	return topics
}

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

// prepareTables gives the tables the settings that writers rely on, or says which they lack when the
// schema is not this program's to change.
func (a *app) prepareTables(ctx context.Context) error {
	return a.retry(ctx, "check the settings of tables", func(ctx context.Context) error {
		partitions := 0
		for _, topic := range []string{schema.TopicSpans, schema.TopicFlows} {
			n, err := a.kafka.Partitions(ctx, topic)
			if err != nil {
				return err
			}
			partitions = max(partitions, n)
		}
		if a.cfg.Migrate {
			return a.db.EnsureTableSettings(ctx, partitions)
		}
		err := a.db.CheckTableSettings(ctx, partitions)
		if errors.Is(err, clickhouse.ErrTableSettings) {
			a.log.Warn("guarantees are weaker than they could be", "error", err)
			return nil
		}
		return err
	})
}

// retry calls f until it succeeds or ctx ends, and says why it has to.
func (a *app) retry(ctx context.Context, what string, f func(context.Context) error) error {
	return retry.Do(ctx, retry.Policy{First: 2 * time.Second, Max: 2 * time.Second}, f, func(failure retry.Failure) {
		a.log.Warn("failed, trying again", "operation", what, "error", failure.Err, "after", failure.Pause)
	})
}

// ignoreStop is err, unless it only says that ctx has ended: a stop that was
// asked for while waiting is no failure.
func ignoreStop(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // this is what it is for
	}
	return err
}
