package kafka

import (
	"context"
	"net"
	"time"
)

// MemberID returns the coordinator's member id for the owner of c.
func MemberID(c *Claim) string { return c.gen.member }

// Watch sets the interval of the group's topic checks.
func (g *Group) Watch(every time.Duration) { g.watch = every }

// Held counts the records that p holds for callers.
func (p *Producer) Held() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	held := 0
	for _, q := range p.queues {
		if q != nil {
			held += len(q.waiting)
			if q.flight != nil && !q.busy {
				held += len(q.flight.entries)
			}
		}
	}
	return held
}

// Intercept wraps each of the client's connections. Call it before the first request.
func (c *Client) Intercept(wrap func(net.Conn) net.Conn) {
	c.transport.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := c.dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return wrap(conn), nil
	}
}

// QueuedCommits counts the commits of c's generation that wait for a request under way.
func QueuedCommits(c *Claim) int {
	c.gen.commits.mu.Lock()
	defer c.gen.commits.mu.Unlock()
	return len(c.gen.commits.queue)
}
