package clickhouse

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/ClickHouse/ch-go"

	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

// clientName identifies this program in ClickHouse's query lists.
const clientName = "metaflow-server"

// staleAfter is how long a connection may be idle before it is checked with a ping. A
// server or balancer may have closed it, and a block sent into a closed connection has an
// unknown outcome, while a ping has none.
const staleAfter = 2 * time.Second

// dialer opens connections of the native protocol.
type dialer struct {
	options ch.Options // without an address
	tls     *tlsconfig.Source
	inserts string        // how inserted blocks are compressed
	timeout time.Duration // for connecting, encrypting and logging in together
}

func newDialer(cfg Config, log *slog.Logger) (*dialer, error) {
	certificates, err := cfg.TLS.Source("tls", log)
	if err != nil {
		return nil, err
	}
	return &dialer{
		options: ch.Options{
			ClientName: clientName,
			User:       cfg.Username,
			Password:   cfg.Password,
			// A response takes as long as its query. conn.run ends the wait by closing
			// the connection under the client.
			ReadTimeout: ch.NoTimeout,
		},
		tls:     certificates,
		inserts: cfg.Compression,
		timeout: cfg.DialTimeout,
	}, nil
}

// conn is one connection, ready for a query. It belongs to one goroutine at a time.
type conn struct {
	client      *ch.Client // for everything but inserts
	compression string     // of inserts
	sender      *sender    // for inserts; nil before the first
	wire        net.Conn
	used        time.Time // when it was last returned to the pool
}

func (d *dialer) dial(ctx context.Context, addr string) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	wire, err := dialWire(ctx, addr, d.tls)
	if err != nil {
		return nil, err
	}
	client, err := ch.Connect(ctx, wire, d.options)
	if err != nil {
		_ = wire.Close() // the client does not close it after a failed login
		return nil, fmt.Errorf("log in: %w", err)
	}
	return &conn{client: client, compression: d.inserts, wire: wire}, nil
}

func (c *conn) insert(in insertion) error {
	if c.sender == nil {
		c.sender = newSender(c.wire, c.client.ServerInfo(), c.compression)
	}
	return c.sender.insert(in)
}

// use is one exchange with a server.
type use func(ctx context.Context, c *conn) error

// run calls f and aborts it when ctx ends, by closing the connection: the client checks
// its context only between packets, and a server that has stopped reading or writing
// sends none.
//
// run closes the connection after any error, because half a packet may be in a buffer or
// on the wire.
func (c *conn) run(ctx context.Context, f use) error {
	stop := context.AfterFunc(ctx, func() { _ = c.wire.Close() })
	err := f(ctx, c)
	if !stop() && err == nil {
		// The response arrived before the connection was closed.
		c.close()
		return nil
	}
	if err == nil {
		return nil
	}
	c.close()
	if cause := context.Cause(ctx); cause != nil {
		if _, _, answered := exception(err); !answered {
			return fmt.Errorf("no response in time: %w", cause)
		}
	}
	return err
}

func (c *conn) alive(ctx context.Context) bool {
	if c.client.IsClosed() {
		return false
	}
	if time.Since(c.used) < staleAfter {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, staleAfter)
	defer cancel()
	return c.run(ctx, func(ctx context.Context, c *conn) error { return c.client.Ping(ctx) }) == nil
}

func (c *conn) close() {
	_ = c.client.Close() // errors only if it was closed before
}
