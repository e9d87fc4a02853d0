package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/kafka/follow"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Log reads the partition 0 of both topics. kafka.Client satisfies it.
type Log = follow.Log

// Producer writes to one topic. Produce returns nil only when every record is
// acknowledged by all in-sync replicas, and keeps nothing of batch.
type Producer interface {
	Produce(ctx context.Context, batch []kafka.Outgoing) error
}

// Options are set by code. Log, both producers and Replica are required.
type Options struct {
	Log       Log
	Commands  Producer // to schema.TopicControl
	Resources Producer // to schema.TopicResources
	// Replica is what this server is called among all replicas, the same after a restart. No
	// two may have the same at a time.
	Replica    string
	Logger     *slog.Logger          // nil logs nothing
	Registerer prometheus.Registerer // nil registers nothing
	Now        func() time.Time      // nil means time.Now
	// Guard knows what ids are bound to. Without it none is.
	Guard Guard
}

// Guard binds the ids of agents to those who have them. pkg/rpc/agentauth has one.
type Guard interface {
	// Bind returns the record of an agent that is let in, and whether it is to be written. An error says why
	// the agent must not be let in.
	Bind(ctx context.Context, agent string, now time.Time) (value []byte, news bool, err error)
	// Joined returns when an agent was let in first, if that is known.
	Joined(agent string) (time.Time, bool)
}

// changesAtOnce bounds the commands under way. Operators are few; more wait.
const changesAtOnce = 32

// Control implements controlapi.Service and agentgrpc.Controller. Make it with New; its
// methods may be called concurrently, and answer once Run has read both topics.
type Control struct {
	cfg     Config
	opts    Options
	log     *slog.Logger
	metrics *metrics
	changes chan struct{} // has an element for each command under way
	due     chan struct{} // capacity 1: there are statuses to write

	mu        sync.Mutex
	state     *fleet.State
	commands  position // in schema.TopicControl
	resources position // in schema.TopicResources
	// moved is closed, and another one made, when something in here is different.
	moved    chan struct{}
	waiting  map[string]chan<- fleet.Outcome // for the command with a request id
	sessions map[string]*session             // by agent id
	// conflicts are agents that were refused lately, by the id that they share with another.
	conflicts map[string]*conflict
	statuses  map[string]*agentv1.AgentStatus // to write, by agent id
	bindings  map[string][]byte               // to write with the status, by agent id
	newcomers map[netip.Prefix]*rate.Limiter  // of the addresses that agents registered from for the first time
	// built are the configurations as agents get them, by group id.
	built map[string]*agentv1.Configuration
}

// New returns a Control that knows nothing yet. It starts nothing.
func New(cfg Config, opts Options) (*Control, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("control config: %w", err)
	}
	if opts.Replica == "" {
		return nil, errors.New("control needs the name of its replica")
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	c := &Control{
		cfg: cfg, opts: opts, log: opts.Logger,
		changes:   make(chan struct{}, changesAtOnce),
		due:       make(chan struct{}, 1),
		state:     fleet.New(),
		commands:  position{topic: schema.TopicControl, next: unknown},
		resources: position{topic: schema.TopicResources, next: unknown},
		moved:     make(chan struct{}),
		waiting:   map[string]chan<- fleet.Outcome{},
		sessions:  map[string]*session{},
		conflicts: map[string]*conflict{},
		statuses:  map[string]*agentv1.AgentStatus{},
		newcomers: map[netip.Prefix]*rate.Limiter{},
		bindings:  map[string][]byte{},
		built:     map[string]*agentv1.Configuration{},
	}
	var err error
	if c.metrics, err = newMetrics(opts.Registerer, c); err != nil {
		return nil, fmt.Errorf("register control metrics: %w", err)
	}
	return c, nil
}

// Run follows both topics and writes what agents say until ctx ends. What they said until then
// is written before it returns, if Kafka takes it within a few seconds. Trouble with Kafka is
// logged and waited out. Run is called once.
func (c *Control) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.follow(ctx, &c.commands, c.applyCommands, c.state.ForgetCommands) })
	g.Go(func() error { return c.follow(ctx, &c.resources, c.applyResources, c.forgetAgents) })
	g.Go(func() error { return c.writeStatuses(ctx) })
	g.Go(func() error { return c.settleRivals(ctx) })
	g.Go(func() error { return c.forgetLost(ctx) })
	return g.Wait()
}

// Ready returns nil once both topics have been read to their end, or says why they are
// not.
func (c *Control) Ready(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.commands.unread(), c.resources.unread())
}

// broadcast wakes everybody in await. The caller holds mu.
func (c *Control) broadcast() {
	close(c.moved)
	c.moved = make(chan struct{})
}

// await waits until done, which is called with mu held, is true. It fails when ctx
// ends before.
func (c *Control) await(ctx context.Context, done func() bool) error {
	for {
		c.mu.Lock()
		ok, moved := done(), c.moved
		c.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// moment is when agents are judged: now, or when Kafka was last read, if it cannot be read
// for long enough that its silence would look like theirs. The caller holds mu.
func (c *Control) moment() time.Time {
	now := c.opts.Now()
	if read := c.resources.read; !read.IsZero() && now.Sub(read) > staleAfter {
		return read
	}
	return now
}

// staleAfter is several fetches, and well below fleet.LostAfter.
const staleAfter = 15 * time.Second
