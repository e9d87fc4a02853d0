package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

const (
	// lookInterval is how often a Producer looks at its topic. It costs a request of some hundred bytes.
	lookInterval = 2 * time.Second
	// failurePatience is for a new leader to be elected, or a broker to restart: only a
	// failure that lasts longer makes a Producer not ready. What needs an operator does so at once.
	failurePatience = 5 * time.Second
	// failureMemory is how long a failure counts after its last occurrence: clients that were
	// told to send again do so within that.
	failureMemory = time.Minute
	// failureReminder is how often a failure that lasts is logged.
	failureReminder = time.Minute
)

// failure is why one partition, or the topic, takes no records. The zero value is none.
type failure struct {
	err         error
	first, last time.Time
}

// note takes the outcome of one attempt. A success does not end a failure of size: the
// topic still refuses the records that were too large for it.
func (f *failure) note(err error, now time.Time) {
	switch {
	case err == nil && !tooLarge(f.err):
		*f = failure{}
	case err == nil:
	default:
		if f.err == nil || cause(f.err) != cause(err) {
			f.first = now
		}
		f.err, f.last = err, now
	}
}

func (f *failure) expire(now time.Time) {
	if f.err != nil && now.Sub(f.last) > failureMemory {
		*f = failure{}
	}
}

// lasts reports whether somebody should hear of f.
func (f *failure) lasts(now time.Time) bool {
	return f.err != nil && (hopeless(f.err) || now.Sub(f.first) > failurePatience)
}

// Unstorable makes Ready, the log and the metrics tell of a record of a partition that the topic does
// not take for its size, and that the caller cannot split.
func (p *Producer) Unstorable(partition int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue(partition).failing.note(err, time.Now())
}

// complaint is one cause for which partitions take no records.
type complaint struct {
	err        error
	since      time.Time
	partitions []int // none when it is the topic's
}

func (c *complaint) Unwrap() error { return c.err }

func (c *complaint) Error() string {
	since := c.since.UTC().Format(time.RFC3339)
	if len(c.partitions) == 0 {
		return fmt.Sprintf("%v, since %s", c.err, since)
	}
	return fmt.Sprintf("partitions %s: %v, since %s", strings.Trim(fmt.Sprint(c.partitions), "[]"), c.err, since)
}

// complaints returns what lasts, by cause.
func (p *Producer) complaints(now time.Time) map[string]*complaint {
	p.mu.Lock()
	defer p.mu.Unlock()
	found := make(map[string]*complaint)
	if f := &p.unseen; f.lasts(now) {
		found[cause(f.err)] = &complaint{err: f.err, since: f.first}
	}
	for _, q := range p.queues {
		if q == nil {
			continue
		}
		q.failing.expire(now)
		if !q.failing.lasts(now) {
			continue
		}
		name := cause(q.failing.err)
		c := found[name]
		if c == nil {
			c = &complaint{err: q.failing.err, since: q.failing.first}
			found[name] = c
		}
		c.partitions = append(c.partitions, q.partition)
		if q.failing.first.Before(c.since) {
			c.since = q.failing.first
		}
	}
	return found
}

// Ready returns nil, or why records of some partitions are not stored: what Kafka
// refuses, or what has kept it from answering for some seconds. Before Run it
// says whether the topic can be seen.
func (p *Producer) Ready(ctx context.Context) error {
	p.mu.Lock()
	running := p.running
	p.mu.Unlock()
	if !running {
		_, err := p.client.describe(ctx, p.topic)
		return err
	}
	found := p.complaints(time.Now())
	errs := make([]error, 0, len(found))
	for _, name := range slices.Sorted(maps.Keys(found)) {
		errs = append(errs, fmt.Errorf("topic %s: %w", p.topic, found[name]))
	}
	return errors.Join(errs...)
}

// watch looks at the topic, and at what it takes, until ctx ends.
func (p *Producer) watch(ctx context.Context) {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	said := make(map[string]time.Time) // when each cause was logged last
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		_ = p.Look(ctx) // the error is among the complaints
		p.report(said, time.Now())
	}
}

// report logs what fails when it begins, from time to time while it lasts, and when it has
// ended. It is counted by attempt elsewhere.
func (p *Producer) report(said map[string]time.Time, now time.Time) {
	found := p.complaints(now)
	for name, c := range found {
		p.metrics.failing.WithLabelValues(name).Set(float64(max(len(c.partitions), 1)))
		if now.Sub(said[name]) < failureReminder {
			continue
		}
		said[name] = now
		p.client.log.Error("kafka does not store records; clients are told to send them again",
			"topic", p.topic, "cause", name, "error", c.err, "partitions", c.partitions, "since", c.since)
	}
	for name := range said {
		if found[name] == nil {
			delete(said, name)
			p.metrics.failing.DeleteLabelValues(name)
			p.client.log.Info("kafka stores records again", "topic", p.topic, "cause", name)
		}
	}
}
