package clickhouse

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// proxy forwards connections to a server and decides which bytes may pass.
type proxy struct {
	server string
	// toServer and toClient see what has passed on one connection and return false to
	// stop that direction without closing it.
	toServer, toClient func(s *passed) bool
	// swallow keeps reading in a stopped direction. Without it bytes pile up.
	swallow bool
}

// passed counts the traffic of one connection.
type passed struct {
	sent    atomic.Int64 // bytes to the server
	answers atomic.Int64 // reads from the server
}

// start listens until the test ends and returns the address.
func (p proxy) start(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(ctx, client) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// serve returns when either side closes or the test ends.
func (p proxy) serve(ctx context.Context, client net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server, err := dialWire(ctx, p.server, nil)
	if err != nil {
		_ = client.Close()
		return
	}
	context.AfterFunc(ctx, func() {
		_ = client.Close()
		_ = server.Close()
	})
	var s passed
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		p.pump(ctx, server, client, func(n int) bool { s.sent.Add(int64(n)); return p.toServer(&s) })
	})
	wg.Go(func() {
		defer cancel()
		p.pump(ctx, client, server, func(int) bool { s.answers.Add(1); return p.toClient(&s) })
	})
	wg.Wait()
}

// pump copies bytes from src to dst until either ends.
func (p proxy) pump(ctx context.Context, dst, src net.Conn, may func(n int) bool) {
	buf := make([]byte, 1<<16)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		if !may(n) {
			if p.swallow {
				continue
			}
			<-ctx.Done()
			return
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return
		}
	}
}

// silentAfter stops both directions after that many responses, like a host that lost its
// network.
func silentAfter(t *testing.T, server string, answers int64) string {
	t.Helper()
	may := func(s *passed) bool { return s.answers.Load() <= answers }
	return proxy{server: server, toServer: may, toClient: may}.start(t)
}

// muteAfter forwards everything to the server, but no responses once the client has sent
// that many bytes.
func muteAfter(t *testing.T, server string, sent int64) string {
	t.Helper()
	return proxy{
		server:   server,
		toServer: func(*passed) bool { return true },
		toClient: func(s *passed) bool { return s.sent.Load() < sent },
		swallow:  true,
	}.start(t)
}
