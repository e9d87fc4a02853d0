package writer

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// Claim is one partition, owned for one generation of the group.
// *kafka.Claim is one.
type Claim interface {
	Topic() string
	Partition() int
	// Grace is how long the partition stays ours after the context of its
	// handler has ended.
	Grace() time.Duration
	// Lease is a moment until which the partition is ours as far as is known now.
	Lease() time.Time
	// TopicID tells the topic from others of the same name; zero where the brokers cannot.
	TopicID() kafka.TopicID
	// Position returns the committed offset and its metadata; the offset is
	// negative when the group has none.
	Position(ctx context.Context) (kafka.Position, error)
	// CommitPosition fails with class fault.Fenced once the partition is somebody else's, or
	// may be.
	CommitPosition(ctx context.Context, position kafka.Position) error
	// Seek sets the leader epoch that the next Fetch checks, see kafka.Claim.
	Seek(position kafka.Position)
	// EpochEnd returns where the log of a leader epoch ends, negative when that is unknown.
	EpochEnd(ctx context.Context, epoch int32) (int64, error)
	// Fetch returns what there is from offset on, nothing when nothing comes
	// within maxWait, and kafka.ErrOffsetOutOfRange when offset is not in the log.
	// The records are valid until the next Fetch.
	Fetch(ctx context.Context, offset int64, maxBytes int, maxWait time.Duration) (kafka.Batch, error)
	// Collect is Fetch that returns once there are minBytes, compressed, or after maxWait with
	// what there is.
	Collect(ctx context.Context, offset int64, minBytes, maxBytes int, maxWait time.Duration) (kafka.Batch, error)
	// Bounds returns the first offset of the log and the one after its last.
	Bounds(ctx context.Context) (start, end int64, err error)
	// End returns the end of the log alone, and may be called while another call is under way.
	End(ctx context.Context) (int64, error)
	// OffsetAt returns the first offset whose record is not older than t, or
	// the end of the log.
	OffsetAt(ctx context.Context, t time.Time) (int64, error)
}

// Store is where rows end up. *clickhouse.Inserter is one.
type Store interface {
	// Shards is how many shards there are, at least 1, and stays the same.
	Shards() int
	// InsertGuarded stores one block, once for one token while ClickHouse remembers it. After
	// any error but clickhouse.ErrExpired rows of it may be stored; one of class fault.Rejected
	// depends on the values of the rows.
	InsertGuarded(ctx context.Context, guard clickhouse.Guard, shard int, table, token string, input proto.Input, rows int) error
	// Settle ends the inserts that run at the shard for the guard's query, and returns when
	// they have ended.
	Settle(ctx context.Context, shard int, query string) error
}

// DeadLetters takes what cannot be stored.
type DeadLetters interface {
	Produce(ctx context.Context, batch []kafka.Outgoing) error
}

// Options are set by code.
type Options struct {
	// AcceptPast and AcceptFuture are the gateway's. The writer judges by the same
	// time of first receipt and is an hour more generous, so that it only finds what
	// no gateway has seen.
	AcceptPast, AcceptFuture time.Duration
	// Grace is how long an insert under way may take when the partition is given
	// up or the program stops, but no longer than Claim.Grace.
	Grace      time.Duration
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil means none
}

// Writer holds what its partitions share. Make it with New.
type Writer struct {
	cfg     Config
	opts    Options
	signal  *signal.Signal
	table   columns.Table
	find    Finder
	store   Store
	dead    DeadLetters
	log     *slog.Logger
	metrics *metrics
	blocks  sync.Pool          // of columns.Block; idle ones are the garbage collector's
	idle    chan columns.Block // small ones, of any partition; their number is bounded by Config.MemoryBytes
	working working
	failing failing
	ticks   ticks

	mu     sync.Mutex
	shares map[int]*share // by shard
}

// New checks cfg and returns a Writer of the records of table's signal. It
// starts nothing.
func New(cfg Config, table columns.Table, find Finder, store Store, dead DeadLetters, opts Options) (*Writer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	w := &Writer{
		cfg: cfg, opts: opts, signal: table.Signal, table: table, find: find, store: store, dead: dead, log: opts.Logger,
		metrics: newMetrics(opts.Registerer, table.Signal),
		ticks:   ticks{wait: cfg.MaxWait},
		shares:  make(map[int]*share),
		idle:    make(chan columns.Block, cfg.MemoryBytes/2/idleBytes),
	}
	w.blocks.New = func() any { return table.New() }
	return w, nil
}

// Handle follows one partition until ctx ends or the partition is lost. It
// returns nil for both: there is nothing for the caller to do. Trouble with
// Kafka or ClickHouse is logged, counted and waited out.
func (w *Writer) Handle(ctx context.Context, claim Claim) error {
	p := newPartition(w, claim)
	defer p.close()
	watching, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { p.watchLag(watching) })
	p.run(ctx)
	stop()
	watch.Wait()
	return nil
}

// lagInterval is how often the lag is measured while nothing is fetched.
const lagInterval = 5 * time.Second

// watchLag measures how far the partition is behind until ctx ends, also while ClickHouse or
// Kafka keep its goroutine waiting. Where a fetch has told, it does not ask: a writer of many
// partitions would send a request for each.
func (p *partition) watchLag(ctx context.Context) {
	for retry.Sleep(ctx, lagInterval) == nil {
		if p.fetched.Swap(false) {
			continue
		}
		if end, err := p.claim.End(ctx); err == nil {
			p.showLag(end)
		}
	}
}

// showLag shows the lag of a log that ends at end, once the committed offset is known.
func (p *partition) showLag(end int64) {
	p.shown.Lock()
	defer p.shown.Unlock()
	if committed := p.committed.Load(); committed >= 0 {
		p.metrics.position(p.claim.Partition(), p.place, committed, end)
	}
}
