package otlphttp

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// connections bounds how many there are. A connection is idle until the headers of
// a request have come, and between requests; the idle ones stand in the order in
// which they became so, and of too many the first is closed.
//
// Closing a connection may meet a request that is just arriving on it. HTTP
// clients know this race from every server's idle timeout.
type connections struct {
	mu       sync.Mutex
	max      int
	draining bool
	all      map[net.Conn]*connection
	idle     list.List // of net.Conn
}

type connection struct {
	idle *list.Element // nil while a request is served
	// multiplexes says that it speaks HTTP/2. Such a connection becomes idle before its
	// last answer is flushed, so it is not for us to close it then.
	multiplexes bool
}

func newConnections(most int) *connections {
	return &connections{max: most, all: map[net.Conn]*connection{}}
}

// multiplexes notes that conn speaks HTTP/2.
func (c *connections) multiplexes(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.all[conn]; known != nil {
		known.multiplexes = true
	}
}

// changed takes what http.Server.ConnState says. It returns the connection that is
// to be closed, if any: conn itself when all others are being served.
func (c *connections) changed(conn net.Conn, state http.ConnState) (evict net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.all[conn]
	switch {
	case state == http.StateNew:
		known = new(connection)
		c.all[conn] = known
	case known == nil:
		return nil // it was evicted
	case known.idle != nil:
		c.idle.Remove(known.idle)
		known.idle = nil
	}
	switch state {
	case http.StateNew, http.StateIdle:
		known.idle = c.idle.PushBack(conn)
	case http.StateActive:
	case http.StateClosed, http.StateHijacked:
		delete(c.all, conn)
	}
	if len(c.all) <= c.max {
		return nil
	}
	return c.takeIdle()
}

// takeIdle forgets the connection that has been idle the longest and returns it. It
// needs c.mu.
func (c *connections) takeIdle() net.Conn {
	for e := c.idle.Front(); e != nil; e = e.Next() {
		conn, _ := e.Value.(net.Conn)
		if c.draining && c.all[conn].multiplexes {
			continue
		}
		c.idle.Remove(e)
		delete(c.all, conn)
		return conn
	}
	return nil
}

// drain closes all that serve no request, now and as soon as they have none. Those of
// HTTP/2 it leaves to http.Server.Shutdown, which tells their clients to send no more.
func (c *connections) drain() {
	c.mu.Lock()
	c.max, c.draining = 0, true
	c.mu.Unlock()
	for {
		c.mu.Lock()
		conn := c.takeIdle()
		c.mu.Unlock()
		if conn == nil {
			return
		}
		closeNow(conn)
	}
}

// closeNow closes conn without the farewell of TLS, which waits for a client that does not
// read.
func closeNow(conn net.Conn) {
	if encrypted, ok := conn.(*tls.Conn); ok {
		conn = encrypted.NetConn()
	}
	_ = conn.Close()
}

func (c *connections) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.all)
}
