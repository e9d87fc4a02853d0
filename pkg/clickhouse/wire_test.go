package clickhouse

import (
	"net"
	"testing"
	"time"
)

// A server hangs: it neither answers nor closes. Closing the connection does not wait for it,
// even when the client removes the deadline of its reads meanwhile.
func TestCloseDoesNotWaitForAServerThatHangs(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // returns at once
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	conn, err := dialWire(t.Context(), l.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	removing := make(chan struct{})
	closed := make(chan struct{})
	go func() {
		defer close(removing)
		for {
			_ = conn.SetReadDeadline(time.Time{})
			select {
			case <-closed:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	go func() {
		defer close(closed)
		_ = conn.Close()
	}()
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Fatal("Close waits for the server")
	}
	<-removing
}
