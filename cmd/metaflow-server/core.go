package main

import (
	"context"
	"errors"
	"log/slog"
	"net"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/schema"
)

// signals are those that this program receives and stores.
var signals = []*signal.Signal{traces.Signal, flows.Signal}

// core is shared by all roles.
type core struct {
	cfg   *server
	log   *slog.Logger
	reg   *prometheus.Registry
	kafka *kafka.Client
	// producers are those that calls to the port need.
	producers []*kafka.Producer
	tokens    admission

	// Only standalone and tests set the following, before the app runs.

	// single means that Kafka is deliberately one broker, so nothing warns of missing
	// replicas.
	single bool
	// listening receives the addresses of the data ports once they are open. otlpHTTP is
	// nil if OTLP/HTTP is not served.
	listening func(grpc, otlpHTTP net.Addr)
	// spareHTTP is a default OTLP/HTTP address that the operator did not ask for: if
	// another program has it, the server runs without OTLP/HTTP.
	spareHTTP string
}

func newCore(cfg *server, log *slog.Logger) (*core, error) {
	c := &core{cfg: cfg, log: log, reg: prometheus.NewRegistry(), listening: func(_, _ net.Addr) {}}
	c.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	var err error
	if c.tokens, err = newAdmission(cfg, log); err != nil {
		return nil, err
	}
	c.kafka, err = kafka.New(cfg.Kafka, kafka.Options{Logger: log, Registerer: c.reg})
	return c, err
}

// newProducer returns a producer whose topic /ready checks. Call it before the app runs.
func (c *core) newProducer(topic string) *kafka.Producer {
	p := c.kafka.NewProducer(topic, kafka.ProducerOptions{})
	c.producers = append(c.producers, p)
	return p
}

// checkProducers reports the topics that Kafka currently does not store, and why.
func (c *core) checkProducers(ctx context.Context) error {
	var errs []error
	for _, p := range c.producers {
		errs = append(errs, p.Ready(ctx))
	}
	return errors.Join(errs...)
}

// namesOf returns the names of topics.
func namesOf(needs []kafka.Access) []string {
	names := make([]string, 0, len(needs))
	for _, n := range needs {
		names = append(names, n.Topic)
	}
	return names
}

// topicsNamed returns the topics with these names as they should be: by their policy, and
// where that leaves a choice, by the configuration.
func (c *core) topicsNamed(names ...string) []kafka.Topic {
	topics := make([]kafka.Topic, 0, len(names))
	for _, name := range names {
		policy := schema.PolicyOf(name)
		t := kafka.Topic{
			Name: name, Partitions: policy.Partitions, Compacted: policy.Compacted, Forever: policy.Forever,
			MaxMessageBytes: int(c.cfg.Kafka.MaxRecordBytes) + schema.BatchOverhead,
		}
		if policy.MinRetention > 0 {
			t.Retention = max(c.cfg.Kafka.Retention, policy.MinRetention)
		}
		topics = append(topics, t)
	}
	return topics
}

// background runs functions beyond the end of a context. The zero value is ready to use.
// It is not safe for concurrent use.
type background struct {
	group errgroup.Group
	stops []context.CancelFunc
}

// run starts f with a context that only stop cancels.
func (b *background) run(ctx context.Context, f func(context.Context) error) {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	b.stops = append(b.stops, stop)
	b.group.Go(func() error { return f(ctx) })
}

// stop cancels the functions, waits for them and returns the first error.
func (b *background) stop() error {
	for _, stop := range b.stops {
		stop()
	}
	return b.group.Wait()
}

// unlessStopped returns err, or nil once ctx has ended: a stop while a role waits is not
// a failure.
func unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the error only reports the stop
	}
	return err
}
