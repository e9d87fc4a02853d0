package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

const (
	// lookInterval is how often a Producer refreshes its topic. A refresh is one request
	// of some hundred bytes.
	lookInterval = 2 * time.Second
	// failurePatience allows for a leader election or a broker restart: a Producer is not
	// ready only after a failure has lasted longer. Failures that need an operator count
	// at once.
	failurePatience = 5 * time.Second
	// failureMemory is how long a failure counts after its last occurrence. Clients retry
	// within that time.
	failureMemory = time.Minute
	// failureReminder is how often a lasting failure is logged.
	failureReminder = time.Minute
)

// failure is why a partition or the topic takes no records. The zero value means none.
type failure struct {
	err         error
	first, last time.Time
}

// note records the outcome of one attempt. A success does not clear a size failure: the
// topic still refuses the records that were too large.
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

// lasts reports whether f should be reported.
func (f *failure) lasts(now time.Time) bool {
	return f.err != nil && (permanent(f.err) || now.Sub(f.first) > failurePatience)
}

// Unstorable reports a record of a partition that is too large for the topic and that the
// caller cannot split. Ready, the log and the metrics then show it.
func (p *Producer) Unstorable(partition int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue(partition).failing.note(err, time.Now())
}

// complaint is one cause for which partitions take no records.
type complaint struct {
	err        error
	since      time.Time
	partitions []int // empty if the failure is the topic's
}

func (c *complaint) Unwrap() error { return c.err }

func (c *complaint) Error() string {
	since := c.since.UTC().Format(time.RFC3339)
	if len(c.partitions) == 0 {
		return fmt.Sprintf("%v, since %s", c.err, since)
	}
	return fmt.Sprintf("partitions %s: %v, since %s", strings.Trim(fmt.Sprint(c.partitions), "[]"), c.err, since)
}

// complaints returns the lasting failures by cause.
func (p *Producer) complaints(now time.Time) map[string]*complaint {
	p.mu.Lock()
	defer p.mu.Unlock()
	found := make(map[string]*complaint)
	if f := &p.lookup; f.lasts(now) {
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

// Ready returns nil, or the reasons why records of some partitions are not stored: errors
// from Kafka that need an operator, or failures that have lasted some seconds. Before Run
// it reports whether the topic is visible.
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

// watch refreshes the topic and reports failures until ctx ends.
func (p *Producer) watch(ctx context.Context) {
	logged := make(map[string]time.Time) // when each cause was last logged
	retry.Every(ctx, lookInterval, func() {
		_ = p.Look(ctx) // complaints returns the error
		p.report(logged, time.Now())
	})
}

// report logs each failure when it begins, every failureReminder while it lasts, and when
// it ends. Failed attempts are counted elsewhere.
func (p *Producer) report(logged map[string]time.Time, now time.Time) {
	found := p.complaints(now)
	for name, c := range found {
		p.metrics.failing.WithLabelValues(name).Set(float64(max(len(c.partitions), 1)))
		if now.Sub(logged[name]) < failureReminder {
			continue
		}
		logged[name] = now
		p.client.log.Error("kafka does not store records; clients have to retry",
			slog.String("topic", p.topic), slog.String("cause", name), slog.Any("error", c.err), slog.Any("partitions", c.partitions), slog.Time("since", c.since))
	}
	for name := range logged {
		if found[name] == nil {
			delete(logged, name)
			p.metrics.failing.DeleteLabelValues(name)
			p.client.log.Info("kafka stores records again", slog.String("topic", p.topic), slog.String("cause", name))
		}
	}
}
