package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/metaflowys/metaflow-server/pkg/fault"
)

// defaultMaxConns suits a writer with a few partitions in flight. A connection that has
// inserted holds 2 MiB, or 13 MiB with zstd.
const defaultMaxConns = 4

// InserterOptions are set by code. The zero value is usable.
type InserterOptions struct {
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil does not register the metrics
	// MaxConns bounds the connections to one address, and so the concurrent inserts
	// there; further ones wait. Zero means 4.
	MaxConns int
}

// Inserter sends blocks over the native protocol. The caller must close it.
type Inserter struct {
	database string
	timeout  time.Duration
	settings []proto.Setting // of every insert
	shards   *shards
	metrics  *metrics
}

// NewInserter checks cfg and reads its TLS files. It does not connect.
func NewInserter(cfg Config, opts InserterOptions) (*Inserter, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("clickhouse config: %w", err)
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.MaxConns <= 0 {
		opts.MaxConns = defaultMaxConns
	}
	s, err := newShards(cfg, opts.MaxConns, opts.Logger)
	if err != nil {
		return nil, err
	}
	m := newMetrics(opts.Registerer)
	return &Inserter{
		database: cfg.Database,
		timeout:  cfg.QueryTimeout,
		settings: insertSettings(cfg),
		shards:   s,
		metrics:  m,
	}, nil
}

// Close closes the idle connections; the others close when their insert ends.
func (i *Inserter) Close() { i.shards.close() }

// Discover reads the shards of the configured cluster and fixes their number. Without a
// cluster it does nothing.
func (i *Inserter) Discover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	return i.shards.refresh(ctx, refreshEvery)
}

// Shards returns the number of shards: 1 without a cluster, otherwise the number found by
// Discover or the first Insert, and 0 before that. Partition p belongs to shard p mod
// Shards().
func (i *Inserter) Shards() int { return i.shards.count() }

// Guard ties an insert to a right that may expire while the insert is in flight: the
// ownership of the inserted records. The zero value guards nothing.
type Guard struct {
	// Query names whose rows are inserted, within the database, see QueryOf. Settle finds the
	// insert by it.
	Query string
	// Until returns the time after which the rows must not be sent, as far as is known
	// when it is called. The rows are sent only after ClickHouse has accepted the
	// statement and only before that time. If the program is stopped in between and sends
	// them later, ClickHouse has already given up on the insert (receiveTimeout). Nil
	// means no bound.
	Until func() time.Time
}

// expired reports whether the time has passed on the monotonic or the wall clock: the
// monotonic clock stops while a machine is suspended, and the wall clock may be set back.
func (g *Guard) expired() bool {
	if g.Until == nil {
		return false
	}
	until, now := g.Until(), time.Now()
	return !now.Before(until) || !now.Round(0).Before(until.Round(0))
}

// ErrExpired means that Guard.Until passed before the rows were sent: none is stored.
var ErrExpired = errors.New("rows not sent: the guard has expired")

// receiveTimeout is how long ClickHouse waits for the rows of an insert after it has
// accepted the statement. It bounds how late a program that was stopped in between can
// still store them, and how long Settle waits for such an insert.
const receiveTimeout = 10 * time.Second

// Insert calls InsertGuarded without a guard.
func (i *Inserter) Insert(ctx context.Context, shard int, table, token string, input proto.Input, rows int) error {
	return i.InsertGuarded(ctx, Guard{}, shard, table, token, input, rows)
}

// InsertGuarded stores input as one block in table of the configured database, under the
// deduplication token: the same rows under the same token are stored once as long as the
// table remembers the token. rows is the number of rows of input.
//
// It blocks until ClickHouse responds, ctx ends or query_timeout passes. It never changes
// the rows of input, so the same input can be sent again after an error. But it fills
// caches inside the columns, so two goroutines must not insert the same input
// concurrently.
//
// After any error but ErrExpired the block may be stored, in whole or in part: ClickHouse
// may report an error of a dependent view after the rows are in the table. Class Rejected
// means that ClickHouse refused values; look up which rows are stored before bisecting
// the block. Any other error is Retryable under the same token. A table may also remember
// a token whose rows it lost in a crash, so a successful retry proves nothing either:
// look the rows up.
func (i *Inserter) InsertGuarded(ctx context.Context, guard Guard, shard int, table, token string, input proto.Input, rows int) error {
	if rows == 0 {
		return nil
	}
	if err := checkRows(input, rows); err != nil {
		return fmt.Errorf("insert into %s.%s: %w", i.database, table, err)
	}
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	start := time.Now()
	in := i.insertion(guard, table, token, input, rows)
	addr, err := i.shards.run(ctx, shard, func(_ context.Context, c *conn) error { return c.insert(in) })
	if err != nil {
		err = fault.As(classOf(err), fmt.Errorf("insert %d rows into %s.%s at %s: %w",
			rows, i.database, table, addr, readable(err)))
	}
	i.metrics.observe(table, rows, time.Since(start), err)
	return err
}

func seconds(d time.Duration) int { return max(int((d+time.Second-1)/time.Second), 1) }

// checkRows detects a programming error before ClickHouse would.
func checkRows(input proto.Input, rows int) error {
	for _, c := range input {
		if n := c.Data.Rows(); n != rows {
			return fmt.Errorf("column %s has %d rows, not %d", c.Name, n, rows)
		}
	}
	return nil
}

func (i *Inserter) insertion(guard Guard, table, token string, input proto.Input, rows int) insertion {
	settings := make([]proto.Setting, 0, len(i.settings)+3)
	settings = append(settings, i.settings...)
	settings = append(settings,
		setting("insert_deduplication_token", token),
		// Keeps ClickHouse from splitting the block.
		setting("max_insert_block_size", strconv.Itoa(max(rows, 1<<20))),
	)
	if guard.Until != nil {
		settings = append(settings, setting("receive_timeout", strconv.Itoa(seconds(receiveTimeout))))
	}
	return insertion{
		guard: guard, id: queryID(i.database, guard.Query), sql: insertSQL(i.database, table, input), settings: settings, input: input, rows: rows,
	}
}

func insertSQL(database, table string, input proto.Input) string {
	var b strings.Builder
	b.WriteString("INSERT INTO `" + database + "`.`" + table + "` (")
	for n, c := range input {
		if n > 0 {
			b.WriteString(", ")
		}
		b.WriteString("`" + c.Name + "`")
	}
	b.WriteString(") VALUES")
	return b.String()
}

func insertSettings(cfg Config) []proto.Setting {
	settings := []proto.Setting{
		// ClickHouse must respond only after the rows are in a part.
		setting("async_insert", "0"),
		setting("insert_deduplicate", "1"),
		setting("deduplicate_blocks_in_dependent_materialized_views", "1"),
		// ClickHouse gives up when the client does: anything it did later would belong to
		// an insert that is being retried.
		setting("max_execution_time", strconv.Itoa(seconds(cfg.QueryTimeout))),
		// The following settings are unknown to some servers, which ignore them. This one
		// overrides insert_deduplicate, and a user's profile may turn it off.
		{Key: "deduplicate_insert", Value: "enable"},
		// A block must not be split, whatever the user's profile.
		{Key: "use_strict_insert_block_limits", Value: "0"},
		// Merges build the skip indexes, once for many inserts. Until then a young part
		// is read without them.
		{Key: "materialize_skip_indexes_on_insert", Value: "0"},
		// Nobody reads the profile events.
		{Key: "send_profile_events", Value: "0"},
	}
	if cfg.InsertQuorum != "" {
		settings = append(settings, setting("insert_quorum", cfg.InsertQuorum))
	}
	return settings
}

// setting returns a setting that the server must know: an error is better than storing
// twice.
func setting(key, value string) proto.Setting {
	return proto.Setting{Key: key, Value: value, Important: true}
}
