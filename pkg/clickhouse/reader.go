package clickhouse

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"golang.org/x/sync/semaphore"

	"github.com/metaflowys/metaflow-server/pkg/fault"
)

// ReadLimits bound the queries of a Reader. ClickHouse enforces all but the last.
type ReadLimits struct {
	// Time is how long a query may run.
	Time time.Duration
	// MemoryBytes is the memory of one query.
	MemoryBytes int64
	// Rows is how many rows a query may return; more are an error.
	Rows int64
	// Bytes is how many bytes a result may have, uncompressed; more are an error.
	Bytes int64
	// AtOnce is how many queries run at a time; others wait.
	AtOnce int
}

// Reader runs read-only queries within limits: ClickHouse refuses statements that change
// anything and settings that lift a limit, but not SETTINGS max_memory_usage = DEFAULT:
// callers must refuse that. It is safe for concurrent use.
type Reader struct {
	conn   driver.Conn
	limits ReadLimits
	slots  *semaphore.Weighted
	dial   time.Duration
}

// OpenReader checks cfg, whose user reads, and its TLS files. It does not connect. The
// caller must close the Reader. A nil log discards.
func OpenReader(cfg Config, limits ReadLimits, log *slog.Logger) (*Reader, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("clickhouse config: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	certificates, err := cfg.TLS.Source("tls", log)
	if err != nil {
		return nil, err
	}
	conn, err := clickhouse.Open(&clickhouse.Options{
		Addr: cfg.Addresses,
		Auth: clickhouse.Auth{Username: cfg.Username, Password: cfg.Password},
		DialContext: func(ctx context.Context, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
			defer cancel()
			return dialWire(ctx, addr, certificates)
		},
		DialTimeout:     cfg.DialTimeout,
		ReadTimeout:     limits.Time + answerTimeout,
		MaxOpenConns:    limits.AtOnce + 1, // one for Ping: a busy Reader is healthy
		MaxIdleConns:    limits.AtOnce,
		ConnMaxLifetime: time.Hour,
		Settings:        limits.settings(),
		ClientInfo: clickhouse.ClientInfo{
			Products: []struct{ Name, Version string }{{Name: "metaflow-query"}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("open clickhouse: %w", err)
	}
	return &Reader{conn: conn, limits: limits, slots: semaphore.NewWeighted(int64(limits.AtOnce)), dial: cfg.DialTimeout}, nil
}

// answerTimeout is how long after ReadLimits.Time ClickHouse may take to say that the time
// is over.
const answerTimeout = 5 * time.Second

func (l ReadLimits) settings() clickhouse.Settings {
	return clickhouse.Settings{
		// 1 forbids to change settings as well.
		"readonly":             1,
		"allow_ddl":            0,
		"max_execution_time":   l.Time.Seconds(),
		"max_memory_usage":     l.MemoryBytes,
		"max_result_rows":      l.Rows,
		"max_result_bytes":     l.Bytes,
		"result_overflow_mode": "throw",
		// A client that leaves ends its query, also while ClickHouse computes.
		"cancel_http_readonly_queries_on_client_close": 1,
		// Otherwise a filter on a map's value does not use the index on values.
		"optimize_functions_to_subcolumns": 0,
	}
}

// Close closes every connection.
func (r *Reader) Close() error { return r.conn.Close() }

// Ping pings the first reachable address. It does not wait for queries.
func (r *Reader) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.dial)
	defer cancel()
	if err := r.conn.Ping(ctx); err != nil {
		return fmt.Errorf("ping clickhouse: %w", readable(err))
	}
	return nil
}

// Query runs a query with $1, $2 and so on for args, and calls row for each row of the
// result. scan is valid during that call. An error of row ends the query. When ctx ends,
// ClickHouse is told to stop.
func (r *Reader) Query(ctx context.Context, query string, row func(scan func(...any) error) error, args ...any) error {
	return r.run(ctx, query, args, func(rows driver.Rows) error {
		for rows.Next() {
			if err := row(rows.Scan); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// TooLarge reports whether an error of Query or Table says that the result had more than
// ReadLimits.Rows or ReadLimits.Bytes.
func (r *Reader) TooLarge(err error) bool {
	code, _, ok := exception(err)
	return ok && code == proto.ErrTooManyRowsOrBytes
}

// Table is the result of a query whose columns the caller does not know. Its values are
// JSON; those that JSON does not have, such as NaN, are strings.
type Table struct {
	Columns []string
	Types   []string
	Rows    [][]json.RawMessage
	// More is true if there were more rows than the caller wanted.
	More bool
}

// Table runs a query and returns at most the given number of rows, whose values take at most
// the given number of bytes. A first row that takes more is an error.
func (r *Reader) Table(ctx context.Context, query string, most, bytes int) (t Table, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // of the rows that nobody reads
	err = r.run(ctx, query, nil, func(rows driver.Rows) error {
		t.Columns = rows.Columns()
		types := rows.ColumnTypes()
		for _, c := range types {
			t.Types = append(t.Types, c.DatabaseTypeName())
		}
		for rows.Next() {
			if len(t.Rows) == most {
				t.More = true
				return errEnough
			}
			targets := make([]any, len(types))
			for i, c := range types {
				targets[i] = reflect.New(c.ScanType()).Interface()
			}
			if err := rows.Scan(targets...); err != nil {
				return err
			}
			row, size, err := encoded(targets)
			if err != nil {
				return err
			}
			left := bytes - size
			if left < 0 && len(t.Rows) == 0 {
				return fault.As(fault.Rejected, fmt.Errorf("a row takes more than %d bytes: select fewer columns, or parts of them with substring()", bytes))
			}
			if left < 0 {
				t.More = true
				return errEnough
			}
			bytes = left
			t.Rows = append(t.Rows, row)
		}
		return rows.Err()
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return t, err
}

// encoded returns scanned values as JSON, and the bytes that they take.
func encoded(targets []any) (row []json.RawMessage, size int, err error) {
	row = make([]json.RawMessage, len(targets))
	for i, target := range targets {
		v := scanned(target)
		text, err := json.Marshal(v)
		if err != nil { // NaN for example
			if text, err = json.Marshal(fmt.Sprint(reflect.Indirect(reflect.ValueOf(v)))); err != nil {
				return nil, 0, err
			}
		}
		row[i] = text
		size += len(text)
	}
	return row, size, nil
}

// scanned returns what target points to, or target where only the pointer can be encoded as
// JSON: a column of the type JSON.
func scanned(target any) any {
	value := reflect.ValueOf(target).Elem().Interface()
	if _, ok := target.(json.Marshaler); ok {
		if _, ok := value.(json.Marshaler); !ok {
			return target
		}
	}
	return value
}

var errEnough = errors.New("the caller wants no more rows")

func (r *Reader) run(ctx context.Context, query string, args []any, read func(driver.Rows) error) error {
	if err := r.slots.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("wait for another query to end: %w", err)
	}
	defer r.slots.Release(1)
	// The driver would make a limit of its own of a deadline, in place of ReadLimits.Time.
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	late := time.AfterFunc(r.limits.Time+answerTimeout, cancel)
	defer late.Stop()
	rows, err := r.conn.Query(running, query, args...)
	if err != nil {
		return r.explain(ctx, running, err)
	}
	defer func() { _ = rows.Close() }()
	err = read(rows)
	if rows.Err() != nil {
		return r.explain(ctx, running, rows.Err())
	}
	if err != nil {
		cancel() // Close reads the rest of the result unless the query has ended
	}
	return err
}

// explain classifies an error: [fault.Rejected] if ClickHouse answered, because the same
// query would fail again, otherwise [fault.Retryable].
func (r *Reader) explain(ctx, running context.Context, err error) error {
	switch code, _, answered := exception(err); {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case answered && !busy(code):
		return fault.As(fault.Rejected, readable(err))
	case running.Err() != nil:
		return fault.As(fault.Retryable, fmt.Errorf("no answer of clickhouse within %s", r.limits.Time+answerTimeout))
	default:
		return fault.As(fault.Retryable, fmt.Errorf("ask clickhouse: %w", readable(err)))
	}
}

// busy reports whether a replica refused the query for its own state or for the number of
// queries before. A query that takes more memory than it may is at fault itself.
func busy(code proto.Error) bool {
	_, bad := badReplica[code]
	return bad && code != proto.ErrMemoryLimitExceeded || code == proto.ErrQuotaExceeded
}
