package ports

import (
	"net"
	"sync"
	"testing"
)

// Serve accepts connections on a loopback port until the test ends, and returns its address. serve
// has each on a goroutine of its own; it is closed when serve returns or the test ends.
func Serve(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served := make(chan struct{})
			running.Go(func() {
				defer close(served)
				serve(conn)
			})
			running.Go(func() {
				select {
				case <-served:
				case <-ended:
				}
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		close(ended)
		running.Wait()
	})
	return l.Addr().String()
}
