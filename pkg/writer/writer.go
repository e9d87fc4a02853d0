package writer

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

// Claim is one partition, owned for one generation of the group.
// *kafka.Claim is one.
type Claim interface {
	Topic() string
	Partition() int
	// Grace is how long the partition stays ours after the context of its
	// handler has ended.
	Grace() time.Duration
	// Committed returns the committed offset and its metadata; the offset is
	// negative when the group has none.
	Committed(ctx context.Context) (offset int64, metadata string, err error)
	// Commit fails with class fault.Fenced once the partition is somebody else's.
	Commit(ctx context.Context, offset int64, metadata string) error
	// Fetch returns what there is from offset on, nothing when nothing comes
	// within maxWait, and kafka.ErrOffsetOutOfRange when offset is not in the log.
	// The records are valid until the next Fetch.
	Fetch(ctx context.Context, offset int64, maxBytes int, maxWait time.Duration) (kafka.Batch, error)
	// Bounds returns the first offset of the log and the one after its last.
	Bounds(ctx context.Context) (start, end int64, err error)
	// OffsetAt returns the first offset whose record is not older than t, or
	// the end of the log.
	OffsetAt(ctx context.Context, t time.Time) (int64, error)
}

// Store is where rows end up. *clickhouse.Inserter is one.
type Store interface {
	// Shards is how many shards there are, at least 1, and stays the same.
	Shards() int
	// Insert stores one block, once for one token. An error of class
	// fault.Rejected depends on the values of the rows; after any other, the
	// outcome is unknown.
	Insert(ctx context.Context, shard int, table, token string, input proto.Input, rows int) error
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
	kind    Kind
	store   Store
	dead    DeadLetters
	log     *slog.Logger
	metrics *metrics
	blocks  sync.Pool // of Block; idle ones are the garbage collector's

	mu     sync.Mutex
	shares map[int]*share // by shard
}

// New checks cfg and returns a Writer of records of one kind. It starts nothing.
func New(cfg Config, kind Kind, store Store, dead DeadLetters, opts Options) (*Writer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	w := &Writer{
		cfg: cfg, opts: opts, kind: kind, store: store, dead: dead, log: opts.Logger,
		metrics: newMetrics(opts.Registerer, kind),
		shares:  make(map[int]*share),
	}
	w.blocks.New = func() any { return kind.NewBlock() }
	return w, nil
}

// Handle follows one partition until ctx ends or the partition is lost. It
// returns nil for both: there is nothing for the caller to do. Trouble with
// Kafka or ClickHouse is logged, counted and waited out.
func (w *Writer) Handle(ctx context.Context, claim Claim) error {
	p := newPartition(w, claim)
	defer p.close()
	p.run(ctx)
	return nil
}
