package control

import (
	"context"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/control/api"
)

// AwaitAgents waits until done accepts the agents that this replica knows.
func (c *Control) AwaitAgents(ctx context.Context, done func([]api.Agent) bool) error {
	return c.await(ctx, func() bool {
		var list []api.Agent
		for _, a := range c.state.Agents(c.moment()) {
			list = append(list, view(a))
		}
		return done(list)
	})
}

// AwaitReady waits until both topics have been read to their end.
func (c *Control) AwaitReady(ctx context.Context) error {
	return c.await(ctx, func() bool { return c.commands.reached && c.resources.reached })
}

// ForgetOnce runs one round of what Run does every minute.
func (c *Control) ForgetOnce(ctx context.Context) { c.forgetOnce(ctx) }

// DeleteAtOnce deletes an agent without asking whether it is connected, as a replica does
// that does not know of its stream yet.
func (c *Control) DeleteAtOnce(ctx context.Context, id string) error { return c.tombstones(ctx, id) }

// AwaitRead waits until Kafka was read at or after the current time of the clock.
func (c *Control) AwaitRead(ctx context.Context) error {
	now := c.opts.Now()
	tick := time.NewTicker(10 * time.Millisecond) // a response without records broadcasts nothing
	defer tick.Stop()
	for {
		c.mu.Lock()
		read := c.resources.read
		c.mu.Unlock()
		if !read.Before(now) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
