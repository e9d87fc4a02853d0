package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/fleet"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const (
	// statusesAtOnce keeps one request to Kafka at some hundred kilobytes.
	statusesAtOnce = 500
	maxPause       = 2 * time.Second
	// lastWords is how long Run writes after its context ended.
	lastWords = 3 * time.Second
	// forgetInterval and forgetAtOnce bound the work that nobody waits for.
	forgetInterval = time.Minute
	forgetAtOnce   = 1000
)

// enqueue has a status written; it takes the place of an older one of the same agent. The
// caller holds mu.
func (c *Control) enqueue(status *agentv1.AgentStatus) {
	c.statuses[status.Registration.AgentId] = status
	c.remind()
}

func (c *Control) remind() {
	select {
	case c.due <- struct{}{}:
	default:
	}
}

// writeStatuses writes what is enqueued until ctx ends, and then what is left.
func (c *Control) writeStatuses(ctx context.Context) error {
	failures := 0
	for {
		select {
		case <-c.due:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
			defer cancel()
			if err := c.writeAll(last); err != nil {
				c.log.Warn("what agents said last was not stored", slog.Any("error", err))
			}
			return nil
		}
		err := c.writeAll(ctx)
		switch {
		case err == nil:
			failures = 0
		case ctx.Err() == nil:
			if failures == 0 {
				c.log.Warn("what agents say cannot be stored, trying again", slog.Any("error", err))
			}
			pause(ctx, min(100*time.Millisecond<<min(failures, 10), maxPause))
			failures++
			c.remind()
		default:
			c.remind() // for the last attempt
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (c *Control) writeAll(ctx context.Context) error {
	for {
		taken := c.takeStatuses()
		if len(taken) == 0 {
			return nil
		}
		err := c.writeSome(ctx, taken)
		if err == nil {
			c.metrics.statuses.Add(float64(len(taken)))
			continue
		}
		c.metrics.statusFailures.Inc()
		if fault.ClassOf(err) != fault.Rejected && !errors.Is(err, kafka.ErrTooLarge) { // else the next heartbeats have other bytes
			c.putBack(taken)
		}
		return err
	}
}

func (c *Control) takeStatuses() []*agentv1.AgentStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := make([]*agentv1.AgentStatus, 0, min(len(c.statuses), statusesAtOnce))
	for id, status := range c.statuses {
		if len(taken) == statusesAtOnce {
			break
		}
		taken = append(taken, status)
		delete(c.statuses, id)
	}
	return taken
}

func (c *Control) putBack(taken []*agentv1.AgentStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, status := range taken {
		if id := status.Registration.AgentId; c.statuses[id] == nil {
			c.statuses[id] = status
		}
	}
}

func (c *Control) writeSome(ctx context.Context, statuses []*agentv1.AgentStatus) error {
	batch := make([]kafka.Outgoing, 0, len(statuses))
	for _, status := range statuses {
		value, err := proto.Marshal(status)
		if err != nil {
			return fault.As(fault.Rejected, fmt.Errorf("marshal the status of agent %s: %w", status.Registration.AgentId, err))
		}
		id := status.Registration.AgentId
		batch = append(batch, kafka.Outgoing{Key: fleet.AgentKey(id), Value: value})
		if binding := c.binding(id); binding != nil {
			batch = append(batch, kafka.Outgoing{Key: fleet.BindingKey(id), Value: binding})
		}
	}
	if err := c.opts.Resources.Produce(ctx, batch); err != nil {
		return err
	}
	c.bound(statuses)
	return nil
}

// binding returns what an id is bound to, while that is not yet written.
func (c *Control) binding(id string) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bindings[id]
}

// bound forgets the bindings that were written with statuses. One that is newer by now is written again by the
// agent's next registration.
func (c *Control) bound(statuses []*agentv1.AgentStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, status := range statuses {
		delete(c.bindings, status.Registration.AgentId)
	}
}

// forgetLost deletes agents that have been lost for long, now and then. Every replica does; doing it
// twice does no harm.
func (c *Control) forgetLost(ctx context.Context) error {
	tick := time.NewTicker(forgetInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		c.forgetOnce(ctx)
	}
}

func (c *Control) forgetOnce(ctx context.Context) {
	c.mu.Lock()
	var ids []string
	if c.resources.reached {
		if c.cfg.ForgetAfter > 0 {
			ids = c.state.LostSince(c.moment().Add(-c.cfg.ForgetAfter))
		}
		ids = append(ids, c.passersBy()...)
	}
	c.mu.Unlock()
	ids = ids[:min(len(ids), forgetAtOnce)]
	if len(ids) == 0 {
		return
	}
	if err := c.tombstones(ctx, ids...); err != nil {
		c.log.Warn("agents that are lost for long cannot be forgotten", slog.Int("agents", len(ids)), slog.Any("error", err))
		return
	}
	c.log.Info("agents forgotten that were lost for long, or soon after they had come", slog.Int("agents", len(ids)))
}

// tombstones deletes agents.
func (c *Control) tombstones(ctx context.Context, ids ...string) error {
	batch := make([]kafka.Outgoing, 0, len(ids))
	for _, id := range ids {
		batch = append(batch, kafka.Outgoing{Key: fleet.AgentKey(id)}, kafka.Outgoing{Key: fleet.BindingKey(id)})
	}
	return c.opts.Resources.Produce(ctx, batch)
}
