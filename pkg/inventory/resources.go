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

// Producer writes to one topic. Produce returns nil only when every record is
// acknowledged by all in-sync replicas, and keeps nothing of batch.
type Producer interface {
	Produce(ctx context.Context, batch []kafka.Outgoing) error
}

// Options are set by code. Log is required, and Producer for those who take reports.
type Options struct {
	Log        follow.Log
	Producer   Producer              // to schema.TopicResources
	Logger     *slog.Logger          // nil logs nothing
	Registerer prometheus.Registerer // nil registers nothing
	Now        func() time.Time      // nil means time.Now
	// Joined returns when an agent was registered first, if that is known. nil knows of none.
	Joined func(agent string) (time.Time, bool)
	// Also is told every record that is read, in order, and when all of them are void.
	Also Observer
}

// Observer follows the topic beside a Resources. It must not block.
type Observer interface {
	Observe(key, value []byte)
	// CaughtUp says that the topic was read to its end. After Forget it is called again.
	CaughtUp()
	Forget()
}

// Resources is what is known. Make it with New; its methods may be called concurrently.
type Resources struct {
	cfg     Config
	opts    Options
	log     *slog.Logger
	metrics *metrics
	caught  chan struct{} // closed when the topic was read to its end for the first time

	mu      sync.RWMutex
	index   *index.Index
	reached bool // the topic was read to its end once
	err     error
}

// New returns a Resources that knows nothing yet. It starts nothing.
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
	var err error
	if r.metrics, err = newMetrics(opts.Registerer, r); err != nil {
		return nil, fmt.Errorf("register metrics of resources: %w", err)
	}
	return r, nil
}

// Run follows the topic until ctx ends, and lets go of what is over. Trouble with Kafka is
// logged and waited out. Run is called once.
func (r *Resources) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return follow.New(schema.TopicResources, r.opts.Log, (*sink)(r), r.log).Run(ctx) })
	if r.opts.Producer != nil {
		g.Go(func() error { return r.sweep(ctx) })
	}
	return g.Wait()
}

// Ready returns nil once the topic has been read to its end, or says why it is not.
func (r *Resources) Ready(context.Context) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	switch {
	case r.reached:
		return nil
	case r.err != nil:
		return fmt.Errorf("%s was not read yet: %w", schema.TopicResources, r.err)
	default:
		return errors.New(schema.TopicResources + " was not read to its end yet")
	}
}

// Await waits until the topic was read to its end for the first time. When ctx ends before, it says why it was not.
func (r *Resources) Await(ctx context.Context) error {
	select {
	case <-r.caught:
		return nil
	case <-ctx.Done():
		return r.Ready(ctx)
	}
}

// Resolve returns who of a cluster held an address at a time, in nanoseconds since the Unix
// epoch. It does no I/O and allocates nothing: it may be called for every row.
func (r *Resources) Resolve(cluster string, address netip.Addr, at uint64) index.Holder {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.index.Lookup(cluster, address, at)
}

// sink takes what is read of the topic.
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
	case <-r.caught: // before the topic became another one
	default:
		close(r.caught)
	}
}

// Unreadable implements follow.Sink.
func (s *sink) Unreadable(offset int64, cause error) {
	s.metrics.unreadable.Inc()
	s.log.Error("record cannot be read, passing over it",
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
