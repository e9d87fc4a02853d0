package clickhouse

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

// farewell is how long a connection that is ended early waits for the server
// to end its side. A server that is alive does so in a millisecond or two.
const farewell = 250 * time.Millisecond

// wire is a TCP connection that ends in order, whenever it is closed: it tells
// the server that no more comes and reads what the server still says.
//
// Closing a socket with bytes unread, or before bytes that are still to come,
// resets the connection, and that is what ending a query early does. ClickHouse
// then fails to read where it expects a next query at most. A server logs that.
// The embedded engine is a clickhouse-local, which ends itself on an error that
// nobody handles: one cancelled insert would end ClickHouse for everyone.
type wire struct {
	*net.TCPConn
	once sync.Once
	err  error
}

// dialWire connects, and encrypts unless certificates is nil. Closing what it
// returns closes a wire.
func dialWire(ctx context.Context, addr string, certificates *tlsconfig.Source) (net.Conn, error) {
	plain, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	w := &wire{TCPConn: plain.(*net.TCPConn)} //nolint:forcetypeassert // a dialer of "tcp" makes no other
	return certificates.Encrypt(ctx, w, addr)
}

// Close may be called while others read and write: they end at once, with a
// timeout.
func (w *wire) Close() error {
	w.once.Do(func() {
		_ = w.SetDeadline(time.Unix(1, 0)) // wakes them
		if w.CloseWrite() == nil {
			_ = w.SetReadDeadline(time.Now().Add(farewell))
			_, _ = io.Copy(io.Discard, w.TCPConn)
		}
		w.err = w.TCPConn.Close()
	})
	return w.err
}
