package otlphttp

import (
	"container/list"
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
	mu   sync.Mutex
	max  int
	all  map[net.Conn]*list.Element // nil while a request is served
	idle list.List                  // of net.Conn
}

func newConnections(most int) *connections {
	return &connections{max: most, all: map[net.Conn]*list.Element{}}
}

// changed takes what http.Server.ConnState says. It returns the connection that is
// to be closed, if any: conn itself when all others are being served.
func (c *connections) changed(conn net.Conn, state http.ConnState) (evict net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, known := c.all[conn]
	if !known && state != http.StateNew {
		return nil // it was evicted
	}
	if e != nil {
		c.idle.Remove(e)
	}
	switch state {
	case http.StateNew, http.StateIdle:
		c.all[conn] = c.idle.PushBack(conn)
	case http.StateActive:
		c.all[conn] = nil
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
	e := c.idle.Front()
	if e == nil {
		return nil
	}
	conn, _ := c.idle.Remove(e).(net.Conn)
	delete(c.all, conn)
	return conn
}

// drain closes all that serve no request, now and as soon as they have none.
func (c *connections) drain() {
	c.mu.Lock()
	c.max = 0
	c.mu.Unlock()
	for {
		c.mu.Lock()
		conn := c.takeIdle()
		c.mu.Unlock()
		if conn == nil {
			return
		}
		conn.Close()
	}
}

func (c *connections) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.all)
}
