package clickhouse

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	driver "github.com/ClickHouse/clickhouse-go/v2"

	"github.com/metaflowys/metaflow-server/migrations"
	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// DB queries ClickHouse and changes its tables.
type DB struct {
	cfg    Config
	log    *slog.Logger
	conn   driver.Conn
	shards *shards
	// topology is how tables come to be on the nodes; tests without Keeper run
	// the statements on each node.
	topology migrations.Topology
	// ddlTimeout is ddlTimeout; tests do not wait that long for a dead node.
	ddlTimeout time.Duration
}

// queryConns bounds the pool for queries: probes, migrations, retention.
const queryConns = 4

// Open checks cfg and reads its TLS files. It does not connect. A nil log discards. The
// caller must close the DB.
func Open(cfg Config, log *slog.Logger) (*DB, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("clickhouse config: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s, err := newShards(cfg, queryConns, log)
	if err != nil {
		return nil, err
	}
	conn, err := driver.Open(&driver.Options{
		Addr: cfg.Addresses,
		// No database: it may not exist yet, so every statement names it.
		Auth: driver.Auth{Username: cfg.Username, Password: cfg.Password},
		DialContext: func(ctx context.Context, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
			defer cancel()
			return dialWire(ctx, addr, s.dialer.tls)
		},
		DialTimeout:  cfg.DialTimeout,
		ReadTimeout:  cfg.QueryTimeout,
		MaxOpenConns: queryConns,
		MaxIdleConns: 1,
		ClientInfo: driver.ClientInfo{
			Products: []struct{ Name, Version string }{{Name: "metaflow-server"}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("open clickhouse: %w", err)
	}
	return &DB{cfg: cfg, log: log, conn: conn, shards: s, ddlTimeout: ddlTimeout}, nil
}

// Close closes every connection.
func (d *DB) Close() error {
	d.shards.close()
	return d.conn.Close()
}

// Ping pings the first reachable address.
func (d *DB) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.DialTimeout)
	defer cancel()
	if err := d.conn.Ping(ctx); err != nil {
		return fmt.Errorf("ping clickhouse at %s: %w", d.addresses(), readable(explain(ctx, d.cfg.Addresses, err)))
	}
	return nil
}

// pings paces Wait: often enough not to delay a start.
var pings = retry.Policy{First: 300 * time.Millisecond, Max: 300 * time.Millisecond}

// waitBetweenLines is how often Wait logs: often enough not to look hung.
const waitBetweenLines = 3 * time.Second

// Wait returns when ClickHouse responds, or with the last error when ctx ends. Every few
// seconds it logs what it waits for and why.
func (d *DB) Wait(ctx context.Context) error {
	start := time.Now()
	var logged time.Time
	err := retry.Do(ctx, pings, d.Ping, func(f retry.Failure) {
		if time.Since(logged) >= waitBetweenLines {
			logged = time.Now()
			d.log.Warn("waiting for ClickHouse", slog.String("addresses", d.addresses()), slog.Duration("for", time.Since(start).Round(time.Second)), slog.Any("error", f.Err))
		}
	})
	if err != nil {
		return fmt.Errorf("wait for clickhouse: %w", err)
	}
	return nil
}

func (d *DB) addresses() string { return strings.Join(d.cfg.Addresses, ", ") }
