package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const (
	// statusesAtOnce keeps one request to Kafka at some hundred kilobytes.
	statusesAtOnce = 500
	// flushTimeout is how long Run writes after its context ended.
	flushTimeout = 3 * time.Second
	// forgetInterval and forgetAtOnce bound this background work.
	forgetInterval = time.Minute
	forgetAtOnce   = 1000
)

var backoff = retry.Policy{First: 100 * time.Millisecond, Max: 2 * time.Second}

// enqueue schedules a status to be written. It replaces an older one of the same agent.
// The caller holds mu.
func (c *Control) enqueue(status *agentv1.AgentStatus) {
	c.statuses[status.Registration.AgentId] = status
	c.signalWriter()
}

func (c *Control) signalWriter() {
	select {
	case c.due <- struct{}{}:
	default:
	}
}

// writeStatuses writes enqueued statuses until ctx ends, then writes the remaining ones.
func (c *Control) writeStatuses(ctx context.Context) error {
	for {
		select {
		case <-c.due:
			// Do fails only when ctx has ended.
			_ = retry.Do(ctx, backoff, c.writeAll, func(f retry.Failure) {
				if f.Count == 1 {
					c.log.Warn("cannot store agent statuses, retrying", slog.Any("error", f.Err))
				}
			})
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
			defer cancel()
			if err := c.writeAll(last); err != nil {
				c.log.Warn("last agent statuses were not stored", slog.Any("error", err))
			}
			return nil
		}
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
			c.metrics.statuses.Add(float64(statusesIn(taken)))
			continue
		}
		c.metrics.statusFailures.Inc()
		// After a refusal, wait for the next heartbeats, which have other bytes.
		c.requeue(taken, fault.ClassOf(err) != fault.Rejected && !errors.Is(err, kafka.ErrTooLarge))
		return err
	}
}

// outgoing is what is to be written of one agent.
type outgoing struct {
	id      string
	status  *agentv1.AgentStatus // nil for none
	binding []byte               // nil for none
}

func (c *Control) takeStatuses() []outgoing {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := make([]outgoing, 0, min(len(c.statuses)+len(c.bindings), statusesAtOnce))
	take := func(id string) {
		if len(taken) < statusesAtOnce {
			taken = append(taken, outgoing{id, c.statuses[id], c.bindings[id]})
			delete(c.statuses, id)
			delete(c.bindings, id)
		}
	}
	for id := range c.statuses {
		take(id)
	}
	for id := range c.bindings {
		take(id)
	}
	return taken
}

func statusesIn(taken []outgoing) (n int) {
	for _, o := range taken {
		if o.status != nil {
			n++
		}
	}
	return n
}

// requeue enqueues what was not written again, unless something newer is enqueued.
// Without again it requeues only bindings.
func (c *Control) requeue(taken []outgoing, again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range taken {
		if again && o.status != nil && c.statuses[o.id] == nil {
			c.statuses[o.id] = o.status
		}
		if o.binding != nil && c.bindings[o.id] == nil {
			c.bindings[o.id] = o.binding
		}
	}
}

func (c *Control) writeSome(ctx context.Context, taken []outgoing) error {
	batch := make([]kafka.Outgoing, 0, len(taken))
	for _, o := range taken {
		if o.status != nil {
			value, err := proto.Marshal(o.status)
			if err != nil {
				return fault.As(fault.Rejected, fmt.Errorf("marshal the status of agent %s: %w", o.id, err))
			}
			batch = append(batch, kafka.Outgoing{Key: fleet.AgentKey(o.id), Value: value})
		}
		if o.binding != nil {
			batch = append(batch, kafka.Outgoing{Key: fleet.BindingKey(o.id), Value: o.binding})
		}
	}
	return c.opts.Resources.Produce(ctx, batch)
}

// forgetLost periodically deletes agents that have been lost for long. Every replica does
// so; deleting twice does no harm.
func (c *Control) forgetLost(ctx context.Context) error {
	retry.Every(ctx, forgetInterval, func() { c.forgetOnce(ctx) })
	return nil
}

func (c *Control) forgetOnce(ctx context.Context) {
	c.mu.Lock()
	var ids []string
	if c.resources.reached {
		if c.cfg.ForgetAfter > 0 {
			ids = c.state.LostSince(c.moment().Add(-c.cfg.ForgetAfter))
		}
		ids = append(ids, c.shortLived()...)
	}
	c.mu.Unlock()
	ids = ids[:min(len(ids), forgetAtOnce)]
	if len(ids) == 0 {
		return
	}
	if err := c.tombstones(ctx, ids...); err != nil {
		c.log.Warn("cannot forget lost agents", slog.Int("agents", len(ids)), slog.Any("error", err))
		return
	}
	c.log.Info("forgot agents that were lost for long or left soon after they registered", slog.Int("agents", len(ids)))
}

// tombstones writes records that delete agents.
func (c *Control) tombstones(ctx context.Context, ids ...string) error {
	batch := make([]kafka.Outgoing, 0, len(ids))
	for _, id := range ids {
		batch = append(batch, kafka.Outgoing{Key: fleet.AgentKey(id)}, kafka.Outgoing{Key: fleet.BindingKey(id)})
	}
	return c.opts.Resources.Produce(ctx, batch)
}
