package clickhouse

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/metaflowys/metaflow-server/pkg/fault"
)

// defaultMaxConns is for a writer that has a few partitions in flight. A
// connection that has inserted holds 2 MiB, with zstd 13.
const defaultMaxConns = 4

// InserterOptions is what code chooses; every field may be left zero.
type InserterOptions struct {
	Logger     *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: metrics are kept and shown to nobody
	// MaxConns bounds the connections to one address, and so the inserts that
	// run there at a time; more wait. Zero: 4.
	MaxConns int
}

// Inserter sends blocks over the native protocol. Close it to close its
// connections.
type Inserter struct {
	database string
	timeout  time.Duration
	settings []proto.Setting // those of every insert
	shards   *shards
	metrics  *metrics
}

// NewInserter checks cfg and reads the files of its TLS; it does not connect.
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
	m, err := newMetrics(opts.Registerer)
	if err != nil {
		return nil, err
	}
	return &Inserter{
		database: cfg.Database,
		timeout:  cfg.QueryTimeout,
		settings: insertSettings(cfg),
		shards:   s,
		metrics:  m,
	}, nil
}

// Close closes the idle connections; those in use close when their insert ends.
func (i *Inserter) Close() { i.shards.close() }

// Discover reads the shards of the configured cluster, once: their number is
// fixed from then on. Without a cluster it does nothing.
func (i *Inserter) Discover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	return i.shards.refresh(ctx, refreshEvery)
}

// Shards is 1 without a cluster, and with one the number that Discover or the
// first Insert found; before that it is 0. A partition belongs to shard
// partition mod Shards().
func (i *Inserter) Shards() int { return i.shards.count() }

// Insert stores input, which has the given number of rows, in table of the
// configured database, as one block under the deduplication token: the same
// rows under the same token are stored once, however often they are sent.
//
// It blocks until ClickHouse has answered, ctx ends or query_timeout passes.
// It reads input and never changes its rows, so that after an error the same
// input can be sent again; but it fills caches inside the columns, so no two
// goroutines may insert the same input at the same time.
//
// An error of class Rejected means that ClickHouse refused values of these
// rows and stored none. Any other error is Retryable, and the block may have
// been stored: send it again under the same token, or be told apart by
// nothing else.
func (i *Inserter) Insert(ctx context.Context, shard int, table, token string, input proto.Input, rows int) error {
	if rows == 0 {
		return nil
	}
	if err := checkRows(input, rows); err != nil {
		return fmt.Errorf("insert into %s.%s: %w", i.database, table, err)
	}
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	start := time.Now()
	in := i.insertion(table, token, input, rows)
	addr, err := i.shards.run(ctx, shard, func(_ context.Context, c *conn) error { return c.insert(in) })
	if err != nil {
		err = fault.As(classOf(err), fmt.Errorf("insert %d rows into %s.%s at %s: %w",
			rows, i.database, table, addr, readable(err)))
	}
	i.metrics.observe(table, rows, time.Since(start), err)
	return err
}

// checkRows finds a programming error before ClickHouse would.
func checkRows(input proto.Input, rows int) error {
	for _, c := range input {
		if n := c.Data.Rows(); n != rows {
			return fmt.Errorf("column %s has %d rows, not %d", c.Name, n, rows)
		}
	}
	return nil
}

func (i *Inserter) insertion(table, token string, input proto.Input, rows int) insertion {
	settings := make([]proto.Setting, 0, len(i.settings)+2)
	settings = append(settings, i.settings...)
	settings = append(settings,
		setting("insert_deduplication_token", token),
		// A block is never cut below this many rows.
		setting("max_insert_block_size", strconv.Itoa(max(rows, 1<<20))),
	)
	return insertion{sql: insertSQL(i.database, table, input), settings: settings, input: input, rows: rows}
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
		// The answer must come after the rows are in a part.
		setting("async_insert", "0"),
		setting("insert_deduplicate", "1"),
		setting("deduplicate_blocks_in_dependent_materialized_views", "1"),
		// What follows is not known to every server; one that does not know it
		// ignores it. A block must not be cut, whatever the user's profile says.
		{Key: "use_strict_insert_block_limits", Value: "0"},
		// Merges build the skip indexes, once for many inserts: until then a
		// young part is read without them.
		{Key: "materialize_skip_indexes_on_insert", Value: "0"},
		// Nobody reads them.
		{Key: "send_profile_events", Value: "0"},
	}
	if cfg.InsertQuorum != "" {
		settings = append(settings, setting("insert_quorum", cfg.InsertQuorum))
	}
	return settings
}

// setting is one that the server must know: on an error we would rather hear
// of it than store twice.
func setting(key, value string) proto.Setting {
	return proto.Setting{Key: key, Value: value, Important: true}
}
