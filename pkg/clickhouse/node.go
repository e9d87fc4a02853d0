package clickhouse

import (
	"context"
	"sync"
	"time"
)

// holdOff is how long an address that failed is avoided while another replica of its
// shard responds: long enough not to pay a dial timeout for each insert, short enough to
// return soon after a restart.
const holdOff = 5 * time.Second

// node is one address with its connections, bounded in number, and its recent failure.
type node struct {
	addr   string
	dialer *dialer
	slots  chan struct{} // one token for each connection in use

	mu        sync.Mutex
	idle      []*conn // a stack: the last one returned is taken first
	closed    bool
	downUntil time.Time
}

func newNode(addr string, d *dialer, maxConns int) *node {
	return &node{addr: addr, dialer: d, slots: make(chan struct{}, maxConns)}
}

// acquire waits for a free connection or opens one. An error means that nothing was sent.
func (n *node) acquire(ctx context.Context) (*conn, error) {
	select {
	case n.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for {
		c := n.takeIdle()
		if c == nil {
			break
		}
		if c.alive(ctx) {
			return c, nil
		}
		c.close()
	}
	c, err := n.dialer.dial(ctx, n.addr)
	if err != nil {
		<-n.slots
		return nil, err
	}
	return c, nil
}

func (n *node) release(c *conn) {
	defer func() { <-n.slots }()
	if c.client.IsClosed() {
		return
	}
	c.used = time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		c.close()
		return
	}
	n.idle = append(n.idle, c)
}

func (n *node) takeIdle() *conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.idle) == 0 {
		return nil
	}
	last := len(n.idle) - 1
	c := n.idle[last]
	n.idle[last] = nil
	n.idle = n.idle[:last]
	return c
}

// run calls f with a connection from the pool. dialed is false if f was not called.
func (n *node) run(ctx context.Context, f use) (dialed bool, err error) {
	c, err := n.acquire(ctx)
	if err != nil {
		if ctx.Err() == nil {
			n.markDown()
		}
		return false, err
	}
	defer n.release(c)
	err = c.run(ctx, f)
	if err == nil {
		n.markUp()
		return true, nil
	}
	code, _, answered := exception(err)
	if _, bad := badReplica[code]; bad || !answered {
		n.markDown()
	}
	return true, err
}

func (n *node) markDown() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.downUntil = time.Now().Add(holdOff)
}

func (n *node) markUp() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.downUntil = time.Time{}
}

func (n *node) down(now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return now.Before(n.downUntil)
}

func (n *node) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	for _, c := range n.idle {
		c.close()
	}
	n.idle = nil
}
