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

// clientName is what we call ourselves in ClickHouse's lists of queries.
const clientName = "metaflow-server"

// staleAfter is how long a connection may lie idle before it is tried with a
// ping: a server or a balancer may have closed it, and a block sent into a
// closed connection has an unknown outcome where a ping has none.
const staleAfter = 2 * time.Second

// dialer makes connections that speak the native protocol.
type dialer struct {
	options ch.Options // without an address
	tls     *tlsconfig.Source
	inserts string        // how inserted blocks are compressed
	timeout time.Duration // for all of connecting, encrypting and logging in
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
			// Answers take as long as a query takes: conn.run ends the wait, by
			// closing the connection under the client.
			ReadTimeout: ch.NoTimeout,
		},
		tls:     certificates,
		inserts: cfg.Compression,
		timeout: cfg.DialTimeout,
	}, nil
}

// conn is one connection in a state fit for a query. It belongs to one
// goroutine at a time.
type conn struct {
	client      *ch.Client // for everything but inserts
	compression string     // of inserts
	sender      *sender    // for inserts; nil before the first
	wire        net.Conn
	used        time.Time // when it was last put back
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
		_ = wire.Close() // the client leaves a failed login open
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

// run does f and ends it when ctx does, by closing the connection: the client
// notices a cancelled context only between packets, and a server that has
// stopped reading or writing sends none.
//
// After an error the connection is closed, whatever the error: there may be
// half a packet in a buffer or on the wire.
func (c *conn) run(ctx context.Context, f use) error {
	stop := context.AfterFunc(ctx, func() { _ = c.wire.Close() })
	err := f(ctx, c)
	if !stop() && err == nil {
		// The answer came and the connection was closed after it.
		c.close()
		return nil
	}
	if err == nil {
		return nil
	}
	c.close()
	if cause := context.Cause(ctx); cause != nil {
		if _, _, answered := exception(err); !answered {
			return fmt.Errorf("no answer in time: %w", cause)
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
	_ = c.client.Close() // it says only that it was closed before
}
