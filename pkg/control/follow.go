package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/record"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const (
	unknown = -1
	// fetchBytes and fetchWait are of one request. The broker answers as soon as there is
	// anything, so waiting costs no delay.
	fetchBytes = 1 << 20
	fetchWait  = 2 * time.Second
	maxPause   = 2 * time.Second
)

// position is how far a topic was read. Control.mu guards it.
type position struct {
	topic   string
	next    int64     // offset of the next record; unknown before the first answer
	reached bool      // the end has been reached once
	read    time.Time // of the last answer
	err     error     // of the last request
}

// unread says that the topic was never read to its end, and why; nil when it was.
func (p *position) unread() error {
	switch {
	case p.reached:
		return nil
	case p.err != nil:
		return fmt.Errorf("%s was not read yet: %w", p.topic, p.err)
	default:
		return fmt.Errorf("%s was not read to its end yet", p.topic)
	}
}

// follow reads the topic of p for ever: apply takes the records, and forget makes all
// that was applied undone; both are called with mu held.
func (c *Control) follow(ctx context.Context, p *position, apply func([]record.Record), forget func()) error {
	pause := time.NewTimer(0)
	defer pause.Stop()
	failures := 0
	for {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return nil
		}
		err := c.advance(ctx, p, apply, forget)
		switch {
		case ctx.Err() != nil:
			return nil // a stop that was asked for
		case err == nil:
			failures = 0
			pause.Reset(0)
		default:
			if failures == 0 {
				c.log.Warn("topic cannot be read, trying again", slog.String("topic", p.topic), slog.Any("error", err))
			}
			pause.Reset(min(50*time.Millisecond<<min(failures, 10), maxPause))
			failures++
		}
	}
}

// advance reads once.
func (c *Control) advance(ctx context.Context, p *position, apply func([]record.Record), forget func()) error {
	batch, err := c.fetch(ctx, p)
	var corrupt *kafka.CorruptError
	switch {
	case errors.Is(err, kafka.ErrOffsetOutOfRange):
		// This is not the log that was read before: somebody has deleted the topic, or the
		// brokers lost its end. What counts is what the log says now.
		c.log.Error("topic is not the one that was read, reading it anew", slog.String("topic", p.topic))
		c.mu.Lock()
		defer c.mu.Unlock()
		forget()
		p.next, p.reached, p.err = unknown, false, err
		return err
	case errors.As(err, &corrupt):
		c.unreadable(p, corrupt.Offset, corrupt.Cause)
		batch = kafka.Batch{Next: corrupt.Next, HighWatermark: corrupt.Next}
	case err != nil:
		c.mu.Lock()
		defer c.mu.Unlock()
		p.err = err
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	apply(batch.Records)
	moved := batch.Next != p.next
	p.next, p.read, p.err = batch.Next, c.opts.Now(), nil
	if !p.reached && batch.Next >= batch.HighWatermark && corrupt == nil {
		p.reached, moved = true, true
		c.wakeSessions()
	}
	if moved {
		c.broadcast()
	}
	return nil
}

// fetch gets the next records; the first time, it finds out where the log begins.
func (c *Control) fetch(ctx context.Context, p *position) (kafka.Batch, error) {
	c.mu.Lock()
	next := p.next
	c.mu.Unlock()
	if next == unknown {
		start, end, err := c.opts.Log.Bounds(ctx, p.topic, 0)
		if err != nil || start == end { // nothing to wait for before the end is reached
			return kafka.Batch{Next: start, HighWatermark: end}, err
		}
		next = start
	}
	return c.opts.Log.Fetch(ctx, p.topic, 0, next, fetchBytes, fetchWait)
}

// unreadable passes a record over that makes no sense.
func (c *Control) unreadable(p *position, offset int64, cause error) {
	c.metrics.unreadable.WithLabelValues(p.topic).Inc()
	c.log.Error("record cannot be read, passing over it",
		slog.String("topic", p.topic), slog.Int64("offset", offset), slog.Any("error", cause))
}

func (c *Control) applyCommands(records []record.Record) {
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
			waiting <- outcome // has room
		}
	}
	if changed {
		c.wakeSessions()
	}
}

// wakeSessions wakes the streams of agents that are to have another configuration. While the
// log is read from its beginning there is none to have yet. The caller holds mu.
func (c *Control) wakeSessions() {
	if !c.commands.reached {
		return
	}
	for id := range c.built {
		if _, ok := c.state.Group(id); !ok {
			delete(c.built, id)
		}
	}
	for _, s := range c.sessions {
		s.wake()
	}
}

func (c *Control) applyResources(records []record.Record) {
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
