package kafka

import (
	"context"
	"net"
	"time"
)

// MemberID returns the id by which the coordinator knows the owner of c.
func MemberID(c *Claim) string { return c.gen.member }

// Watch sets how often the leader of the group looks for new partitions.
func (g *Group) Watch(every time.Duration) { g.watch = every }

// Held counts the records that p keeps for callers.
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

// Intercept has wrap stand between the client and each of its connections. It is called
// before the first request.
func (c *Client) Intercept(wrap func(net.Conn) net.Conn) {
	c.transport.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := c.dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return wrap(conn), nil
	}
}
