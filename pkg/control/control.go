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

// Log reads partition 0 of both topics. kafka.Client implements it.
type Log = follow.Log

// Producer writes to one topic. Produce returns nil only when all in-sync replicas have
// acknowledged every record. It does not retain batch.
type Producer interface {
	Produce(ctx context.Context, batch []kafka.Outgoing) error
}

// Options are set by code. Log and Replica are required, and both producers for Run.
type Options struct {
	Log       Log
	Commands  Producer // to schema.TopicControl
	Resources Producer // to schema.TopicResources
	// Replica is the unique name of this server among all replicas. It must be the same
	// after a restart.
	Replica    string
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil does not register the metrics
	Now        func() time.Time      // nil means time.Now
	// Guard binds agent ids. If nil, no id is bound.
	Guard Guard
}

// Guard binds agent ids to their owners. pkg/rpc/agentauth implements it.
type Guard interface {
	// MayJoin returns nil if the caller may join an agent group that has these names,
	// otherwise a status.
	MayJoin(ctx context.Context, agent string, group ...string) error
	// Bind returns the binding record of an agent that is admitted, and whether it must
	// be written. An error means that the agent must not be admitted.
	Bind(ctx context.Context, agent string, now time.Time) (value []byte, news bool, err error)
	// Joined returns when an agent was first admitted, if that is known.
	Joined(agent string) (time.Time, bool)
}

// changesAtOnce bounds the concurrent commands; further ones wait. Operators are few.
const changesAtOnce = 32

// Control implements api.Service and rpc.Controller. Create it with New. Its
// methods are safe for concurrent use and succeed once Run has read both topics.
type Control struct {
	cfg     Config
	opts    Options
	log     *slog.Logger
	metrics *metrics
	changes chan struct{} // one element for each command in flight
	due     chan struct{} // capacity 1: signals that there are statuses to write

	mu        sync.Mutex
	state     *fleet.State
	commands  position // in schema.TopicControl
	resources position // in schema.TopicResources
	// moved is closed and replaced when the state below changes.
	moved    chan struct{}
	waiting  map[string]chan<- fleet.Outcome // by request id: the waiting command
	sessions map[string]*session             // by agent id
	// conflicts are recently refused agents, by the id they share with another agent.
	conflicts map[string]*conflict
	statuses  map[string]*agentv1.AgentStatus // to be written, by agent id
	bindings  map[string][]byte               // to be written with the status, by agent id
	newcomers map[netip.Prefix]*rate.Limiter  // by address of newly registered agents
	// built caches the configurations sent to agents, by group id.
	built map[string]*agentv1.Configuration
	// limits caches those of groups, by group id.
	limits map[string]limits
}

// New returns a Control that has read nothing. It starts nothing.
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
		limits:    map[string]limits{},
	}
	c.metrics = newMetrics(opts.Registerer, c)
	return c, nil
}

// Run follows both topics and writes agent statuses until ctx ends. Before it returns it
// writes the pending statuses, if Kafka accepts them within a few seconds. It logs and
// retries Kafka errors. Call it once.
func (c *Control) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.Follow(ctx) })
	g.Go(func() error { return c.writeStatuses(ctx) })
	g.Go(func() error { return c.settleRivals(ctx) })
	g.Go(func() error { return c.forgetLost(ctx) })
	return g.Wait()
}

// Ready returns nil once both topics have been read to their end, otherwise the reason
// why they have not.
func (c *Control) Ready(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.commands.unread(), c.resources.unread())
}

// broadcast wakes all callers of await. The caller holds mu.
func (c *Control) broadcast() {
	close(c.moved)
	c.moved = make(chan struct{})
}

// await waits until done returns true. It calls done with mu held. It fails if ctx ends
// first.
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

// moment returns the time at which agents are judged: now, or the last successful read
// from Kafka if that is so long ago that live agents would look lost. The caller holds
// mu.
func (c *Control) moment() time.Time {
	now := c.opts.Now()
	if read := c.resources.read; !read.IsZero() && now.Sub(read) > staleAfter {
		return read
	}
	return now
}

// staleAfter is several fetches, and well below fleet.LostAfter.
const staleAfter = 15 * time.Second
