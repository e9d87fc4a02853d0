package control

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka/follow"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const unknown = -1

// position is how far a topic was read. Control.mu guards it.
type position struct {
	topic   string
	next    int64     // offset of the next record; unknown before the first response
	reached bool      // the end was reached once
	read    time.Time // time of the last response
	err     error     // of the last fetch
}

// unread returns an error if the topic was never read to its end.
func (p *position) unread() error {
	switch {
	case p.reached:
		return nil
	case p.err != nil:
		return fmt.Errorf("%s has not been read yet: %w", p.topic, p.err)
	default:
		return fmt.Errorf("%s has not been read to its end yet", p.topic)
	}
}

// sink receives the records of one topic. apply applies records, and forget undoes
// everything applied. Both are called with mu held.
type sink struct {
	c      *Control
	p      *position
	apply  func([]delivery.Record)
	forget func()
}

// Take implements follow.Sink.
func (s *sink) Take(step follow.Step) {
	c, p := s.c, s.p
	c.mu.Lock()
	defer c.mu.Unlock()
	s.apply(step.Records)
	moved := step.Next != p.next
	p.next, p.read, p.err = step.Next, c.opts.Now(), nil
	if !p.reached && step.AtEnd {
		p.reached, moved = true, true
		c.wakeSessions()
	}
	if moved {
		c.broadcast()
	}
}

// Unreadable implements follow.Sink.
func (s *sink) Unreadable(offset int64, cause error) { s.c.unreadable(s.p, offset, cause) }

// Failed implements follow.Sink.
func (s *sink) Failed(err error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.p.err = err
}

// Forget implements follow.Sink.
func (s *sink) Forget(err error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.forget()
	s.p.next, s.p.reached, s.p.err = unknown, false, err
}

// follow reads the topic of p until ctx ends.
func (c *Control) follow(ctx context.Context, p *position, apply func([]delivery.Record), forget func()) error {
	return follow.New(p.topic, c.opts.Log, &sink{c, p, apply, forget}, c.log).Run(ctx)
}

// unreadable reports a malformed record that is skipped.
func (c *Control) unreadable(p *position, offset int64, cause error) {
	c.metrics.unreadable.WithLabelValues(p.topic).Inc()
	c.log.Error("cannot read record, skipping it",
		slog.String("topic", p.topic), slog.Int64("offset", offset), slog.Any("error", cause))
}

func (c *Control) applyCommands(records []delivery.Record) {
	changed := false
	for _, r := range records {
		command := new(agentv1.Command)
		if err := proto.Unmarshal(r.Value, command); err != nil {
			c.unreadable(&c.commands, r.Offset, err)
			continue
		}
		outcome := c.state.Apply(r.Offset, command)
		c.metrics.applied(outcome)
		changed = changed || outcome.Changed
		if outcome.Repeated {
			continue
		}
		if waiting, ok := c.waiting[command.RequestId]; ok {
			delete(c.waiting, command.RequestId)
			waiting <- outcome // buffered
		}
	}
	if changed {
		c.wakeSessions()
	}
}

// wakeSessions wakes the streams of agents whose configuration has changed. It does
// nothing while the log is first read. The caller holds mu.
func (c *Control) wakeSessions() {
	if !c.commands.reached {
		return
	}
	for id := range c.built {
		if _, ok := c.state.Group(id); !ok {
			delete(c.built, id)
		}
	}
	for id := range c.limits {
		if _, ok := c.state.Group(id); !ok {
			delete(c.limits, id)
		}
	}
	for _, s := range c.sessions {
		s.wake()
	}
}

func (c *Control) applyResources(records []delivery.Record) {
	for _, r := range records {
		var status *agentv1.AgentStatus
		if r.Value != nil {
			status = new(agentv1.AgentStatus)
			if !isAgent(r.Key) {
				continue
			}
			if err := proto.Unmarshal(r.Value, status); err != nil {
				c.unreadable(&c.resources, r.Offset, err)
				continue
			}
		}
		if id, ok := c.state.Observe(r.Key, status); ok {
			c.observed(id, status)
		}
	}
}
