package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Layout is the division of a topic as its Producer last saw it.
type Layout struct {
	Partitions int       // 0 before the first look
	Changed    time.Time // when the topic grew, shrank or was recreated; zero if it has not
}

// Layout returns the topic's layout. It does no I/O: a running Producer refreshes the
// topic every two seconds and keeps the last layout on errors.
func (p *Producer) Layout() Layout {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Layout{Partitions: len(p.state.partitions), Changed: p.changed}
}

// Look asks Kafka for the topic's layout now.
func (p *Producer) Look(ctx context.Context) error {
	state, err := p.client.describe(ctx, p.topic)
	now := time.Now()
	p.mu.Lock()
	p.lookup.note(err, now)
	change := ""
	before := p.state
	if err == nil {
		change = p.adopt(state, now)
	}
	p.mu.Unlock()
	if change != "" {
		p.metrics.changes.WithLabelValues(change).Inc()
		p.client.log.Warn("topic changed; retried requests may reach other partitions, so the writers look up all new records",
			slog.String("topic", p.topic), slog.String("change", change), slog.Int("partitions", len(state.partitions)), slog.Int("before", len(before.partitions)))
		p.client.refresh() // the library routes requests by its own cache
	}
	return err
}

var errNoPartition = errors.New("the topic has no such partition")

// adopt stores the topic state and returns the name of a change, if any. The caller holds
// mu.
func (p *Producer) adopt(seen topicState, now time.Time) (change string) {
	known := len(p.state.partitions) > 0
	switch {
	case len(seen.partitions) == 0:
		return ""
	case known && seen.id != (TopicID{}) && seen.id == p.state.id && len(seen.partitions) < len(p.state.partitions):
		return "" // topics never shrink: this broker has not learned of the growth
	case known && !p.state.sameAs(seen):
		change = p.state.changeTo(seen)
		p.changed, p.leaders = now, nil
	}
	p.state = seen
	for i, partition := range seen.partitions {
		p.noteLeader(i, partition.leader, now)
	}
	for _, q := range p.queues {
		if q != nil && q.partition >= len(seen.partitions) {
			q.drop(fmt.Errorf("partition %d: %w", q.partition, errNoPartition))
			q.failing = failure{} // nothing more is produced for it
		}
	}
	return change
}

// noteLeader records whether a partition has a leader, even if nothing is produced for
// it. The caller holds mu.
func (p *Producer) noteLeader(partition int, leader int32, now time.Time) {
	if leader < 0 {
		p.queue(partition).failing.note(errNoLeader, now)
		return
	}
	if partition < len(p.queues) && p.queues[partition] != nil {
		if f := &p.queues[partition].failing; errors.Is(f.err, errNoLeader) {
			*f = failure{}
		}
	}
}

// drop fails everything that waits for a partition that is gone. A flight owned by a
// sender ends as usual. The caller holds mu.
func (q *queue) drop(err error) {
	waiting := q.waiting
	q.waiting = nil
	for _, e := range waiting {
		e.settle(err)
	}
	if q.flight != nil && !q.busy {
		q.end(q.flight, err)
	}
}
