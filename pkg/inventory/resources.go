package inventory

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

	"github.com/metaflowys/metaflow-server/pkg/inventory/index"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/kafka/follow"
	"github.com/metaflowys/metaflow-server/schema"
)

// Producer writes to one topic. Produce returns nil only when all in-sync replicas have
// acknowledged every record. It does not retain batch.
type Producer interface {
	Produce(ctx context.Context, batch []kafka.Outgoing) error
}

// Options are set by code. Log is required. Producer is required to accept reports.
type Options struct {
	Log        follow.Log
	Producer   Producer              // to schema.TopicResources
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil does not register the metrics
	Now        func() time.Time      // nil means time.Now
	// Joined returns when an agent first registered, if that is known. Nil knows no
	// agent.
	Joined func(agent string) (time.Time, bool)
	// Also receives every record, in order, and is told when all of them are void.
	Also Observer
}

// Observer follows the topic together with a Resources. It must not block.
type Observer interface {
	Observe(key, value []byte)
	// CaughtUp is called when the topic has been read to its end, and again after Forget.
	CaughtUp()
	Forget()
}

// Resources holds the known pods and services. Create it with New. Its methods are safe
// for concurrent use.
type Resources struct {
	cfg     Config
	opts    Options
	log     *slog.Logger
	metrics *metrics
	caught  chan struct{} // closed when the topic was first read to its end

	mu      sync.RWMutex
	index   *index.Index
	reached bool // the topic was read to its end
	err     error
}

// New returns an empty Resources. It starts nothing.
func New(cfg Config, opts Options) (*Resources, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("resources config: %w", err)
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	r := &Resources{cfg: cfg, opts: opts, log: opts.Logger, index: index.New(), caught: make(chan struct{})}
	r.metrics = newMetrics(opts.Registerer, r)
	return r, nil
}

// Run follows the topic until ctx ends and removes stale objects. It logs and retries
// Kafka errors. Call it once.
func (r *Resources) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return follow.New(schema.TopicResources, r.opts.Log, (*sink)(r), r.log).Run(ctx) })
	if r.opts.Producer != nil {
		g.Go(func() error { return r.sweep(ctx) })
	}
	return g.Wait()
}

// Ready returns nil once the topic has been read to its end, otherwise the reason why
// not.
func (r *Resources) Ready(context.Context) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	switch {
	case r.reached:
		return nil
	case r.err != nil:
		return fmt.Errorf("%s has not been read yet: %w", schema.TopicResources, r.err)
	default:
		return errors.New(schema.TopicResources + " has not been read to its end yet")
	}
}

// Await waits until the topic has been read to its end once. If ctx ends first, it
// returns the reason.
func (r *Resources) Await(ctx context.Context) error {
	select {
	case <-r.caught:
		return nil
	case <-ctx.Done():
		return r.Ready(ctx)
	}
}

// Resolve returns who held an address in a cluster at the given time, in nanoseconds
// since the Unix epoch. It does no I/O and does not allocate: call it for every row.
func (r *Resources) Resolve(cluster string, address netip.Addr, at uint64) index.Holder {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.index.Lookup(cluster, address, at)
}

// sink receives the records of the topic.
type sink Resources

// Take implements follow.Sink.
func (s *sink) Take(step follow.Step) {
	r := (*Resources)(s)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range step.Records {
		if err := r.index.Observe(rec.Key, rec.Value); err != nil {
			s.Unreadable(rec.Offset, err)
		}
		if r.opts.Also != nil {
			r.opts.Also.Observe(rec.Key, rec.Value)
		}
	}
	r.err = nil
	if !step.AtEnd || r.reached {
		return
	}
	r.reached = true
	if r.opts.Also != nil {
		r.opts.Also.CaughtUp()
	}
	select {
	case <-r.caught: // earlier, before the topic was recreated
	default:
		close(r.caught)
	}
}

// Unreadable implements follow.Sink.
func (s *sink) Unreadable(offset int64, cause error) {
	s.metrics.unreadable.Inc()
	s.log.Error("cannot read record, skipping it",
		slog.String("topic", schema.TopicResources), slog.Int64("offset", offset), slog.Any("error", cause))
}

// Failed implements follow.Sink.
func (s *sink) Failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// Forget implements follow.Sink.
func (s *sink) Forget(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index.Forget()
	if s.opts.Also != nil {
		s.opts.Also.Forget()
	}
	s.reached, s.err = false, err
}
