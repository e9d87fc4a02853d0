package clickhouse

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

// lingerTimeout is how long a closed connection waits for the server to close its side. A
// live server does so in a millisecond or two.
const lingerTimeout = 250 * time.Millisecond

// wire is a TCP connection that always closes in order: it sends a FIN and drains what
// the server still sends.
//
// Closing a socket with unread bytes, or before bytes that are still to come, resets the
// connection, and aborting a query does just that. ClickHouse then fails to read where it
// expects at most another query. A server logs the error. The embedded engine is a
// clickhouse-local, which exits on an unhandled error: one canceled insert would stop
// ClickHouse for everyone.
type wire struct {
	*net.TCPConn
	once sync.Once
	err  error

	mu     sync.Mutex
	closed bool // deadlines stay as Close sets them
}

// dialWire connects, and encrypts unless certificates is nil. The returned connection
// closes like a wire.
func dialWire(ctx context.Context, addr string, certificates *tlsconfig.Source) (net.Conn, error) {
	plain, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	w := &wire{TCPConn: plain.(*net.TCPConn)} //nolint:forcetypeassert // a dialer of "tcp" makes no other
	return certificates.Encrypt(ctx, w, addr)
}

// Close may be called during reads and writes, which then fail at once with a timeout.
func (w *wire) Close() error {
	w.once.Do(func() {
		w.mu.Lock()
		w.closed = true
		w.mu.Unlock()
		_ = w.TCPConn.SetDeadline(time.Unix(1, 0)) // wakes them
		if w.CloseWrite() == nil {
			_ = w.TCPConn.SetReadDeadline(time.Now().Add(lingerTimeout))
			_, _ = io.Copy(io.Discard, w.TCPConn)
		}
		w.err = w.TCPConn.Close()
	})
	return w.err
}

// SetReadDeadline fails once Close has begun. The client removes its deadline after a read
// that failed; then Close would wait for ever for a server that hangs.
func (w *wire) SetReadDeadline(t time.Time) error {
	return w.unlessClosed(w.TCPConn.SetReadDeadline, t)
}

// SetWriteDeadline fails like SetReadDeadline.
func (w *wire) SetWriteDeadline(t time.Time) error {
	return w.unlessClosed(w.TCPConn.SetWriteDeadline, t)
}

// SetDeadline fails like SetReadDeadline.
func (w *wire) SetDeadline(t time.Time) error { return w.unlessClosed(w.TCPConn.SetDeadline, t) }

func (w *wire) unlessClosed(set func(time.Time) error, t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return net.ErrClosed
	}
	return set(t)
}
