package clickhouse

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go"
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

// Guard ties an insert to a right that may end while the insert is under way: the
// ownership of what is inserted. The zero value guards nothing.
type Guard struct {
	// Query names who inserts, within the database. Settle finds the insert by it.
	Query string
	// Until returns the moment after which the rows must not be sent any more, as far as is
	// known when it is called. The rows go out only once ClickHouse has taken the statement
	// and that moment has not passed. Of a block sent later, by a program that was stopped in
	// between, ClickHouse hears nothing, or it gives up on the rows first (receiveTimeout).
	// Nil means no bound.
	Until func() time.Time
}

// expired reports whether the moment has passed, by the monotonic or by the wall clock:
// the monotonic one stands still while a machine is suspended, and the wall clock may be
// set back.
func (g *Guard) expired() bool {
	if g.Until == nil {
		return false
	}
	until, now := g.Until(), time.Now()
	return !now.Before(until) || !now.Round(0).Before(until.Round(0))
}

// ErrExpired says that Guard.Until passed before the rows were sent: none of them is stored.
var ErrExpired = errors.New("the rows were not sent: the time to do so has passed")

// receiveTimeout is how long ClickHouse waits for the rows of an insert after it has
// taken the statement. It bounds how late a program that is stopped between the two can
// still store them, and how long Settle waits for such a one.
const receiveTimeout = 10 * time.Second

// Insert is InsertGuarded without a guard.
func (i *Inserter) Insert(ctx context.Context, shard int, table, token string, input proto.Input, rows int) error {
	return i.InsertGuarded(ctx, Guard{}, shard, table, token, input, rows)
}

// InsertGuarded stores input, which has the given number of rows, in table of the
// configured database, as one block under the deduplication token: the same
// rows under the same token are stored once while the table remembers the token.
//
// It blocks until ClickHouse has answered, ctx ends or query_timeout passes.
// It reads input and never changes its rows, so that after an error the same
// input can be sent again; but it fills caches inside the columns, so no two
// goroutines may insert the same input at the same time.
//
// After any error but ErrExpired the block may be stored, or a part of it: an error that
// ClickHouse reports may have come after the rows were in the table, from a view that
// depends on it. Class Rejected means that ClickHouse refused values; look up which rows
// are stored before taking the block apart. Any other error is Retryable under the same
// token. A table may also remember a token whose rows it has lost (a crash between the
// two), so a retry that succeeds proves nothing either: look the rows up.
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

// Settle returns when no insert runs at the shard whose Guard.Query was query: it ends
// those that do. After it, what such an insert has stored can be looked up, and nothing
// more will come of it. A replica that cannot be reached is not asked, as long as another
// one can; an insert there is still known by its token.
func (i *Inserter) Settle(ctx context.Context, shard int, query string) error {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	err := i.shards.runAll(ctx, shard, func(ctx context.Context, c *conn) error { return settle(ctx, c.client, i.owner(query)) })
	if err != nil {
		return fmt.Errorf("end inserts of %s: %w", query, err)
	}
	return nil
}

// owner tells the inserts of a Guard.Query from those of other installations on the same servers.
func (i *Inserter) owner(query string) string {
	if query == "" {
		return ""
	}
	return i.database + "/" + query
}

// settlePause is between two looks at whether a query has ended. One that ClickHouse is
// working on ends within milliseconds; one that waits for rows, with receiveTimeout.
const settlePause = 50 * time.Millisecond

// settle ends the queries of a prefix at one server and waits for their end. KILL QUERY ...
// SYNC is of no use for it: it does not come back while an insert waits for its rows.
func settle(ctx context.Context, client *ch.Client, prefix string) error {
	ours := "startsWith(query_id, " + quote(prefix+queryIDSeparator) + ")"
	for first := true; ; first = false {
		var running proto.ColUInt64
		err := client.Do(ctx, ch.Query{
			Body:   "SELECT count() AS n FROM system.processes WHERE " + ours,
			Result: proto.Results{{Name: "n", Data: &running}},
		})
		if err != nil || running.Rows() == 0 || running.Row(0) == 0 {
			return err
		}
		if first {
			err := client.Do(ctx, ch.Query{Body: "KILL QUERY WHERE " + ours + " ASYNC", Result: new(proto.Results).Auto()})
			if err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of them still run: %w", running.Row(0), context.Cause(ctx))
		case <-time.After(settlePause):
		}
	}
}

// queryIDSeparator stands between Guard.Query and what makes the id unique: ClickHouse
// refuses a second query of an id that still runs.
const queryIDSeparator = "#"

func queryID(prefix string) string {
	if prefix == "" {
		return ""
	}
	return prefix + queryIDSeparator + rand.Text()
}

// quote makes s a string literal.
func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

func seconds(d time.Duration) int { return max(int((d+time.Second-1)/time.Second), 1) }

// checkRows finds a programming error before ClickHouse would.
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
		// A block is never cut below this many rows.
		setting("max_insert_block_size", strconv.Itoa(max(rows, 1<<20))),
	)
	if guard.Until != nil {
		settings = append(settings, setting("receive_timeout", strconv.Itoa(seconds(receiveTimeout))))
	}
	return insertion{
		guard: guard, id: queryID(i.owner(guard.Query)), sql: insertSQL(i.database, table, input), settings: settings, input: input, rows: rows,
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
		// The answer must come after the rows are in a part.
		setting("async_insert", "0"),
		setting("insert_deduplicate", "1"),
		setting("deduplicate_blocks_in_dependent_materialized_views", "1"),
		// ClickHouse gives up when we have: what it still did after that would be of an
		// insert that is being tried again.
		setting("max_execution_time", strconv.Itoa(seconds(cfg.QueryTimeout))),
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
