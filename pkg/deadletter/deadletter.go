// Package deadletter lists and replays what the writer could not store.
//
// Replaying sends items through the topic that they came from again, marked as
// resent: the writer looks them up by their ids and stores only the missing
// ones. So replaying is safe to repeat, and needs no record of what was replayed
// before.
package deadletter

import (
	"context"
	"fmt"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// Log reads the dead-letter topic. *kafka.Client is one.
type Log interface {
	Partitions(ctx context.Context, topic string) (int, error)
	Bounds(ctx context.Context, topic string, partition int) (start, end int64, err error)
	Fetch(ctx context.Context, topic string, partition int, offset int64, maxBytes int, maxWait time.Duration) (kafka.Batch, error)
}

// Producer writes one topic.
type Producer interface {
	Produce(ctx context.Context, batch []kafka.Outgoing) error
}

// Entry is one dead letter.
type Entry struct {
	delivery.DeadLetter
	At    Position
	Time  time.Time // when it was diverted
	Items int       // 0 if the value is not a request of its topic
	Value []byte    // valid during the call that it is given to
}

// Position is where an entry stands in the dead-letter topic.
type Position struct {
	Partition int
	Offset    int64
}

const (
	fetchBytes = 1 << 20
	fetchWait  = 5 * time.Second
)

// Each calls f for every dead letter that the topic held when Each was called,
// oldest first within a partition. It counts the items of these signals.
func Each(ctx context.Context, log Log, topic string, signals []*signal.Signal, f func(Entry) error) error {
	partitions, err := log.Partitions(ctx, topic)
	if err != nil {
		return err
	}
	type bounds struct{ start, end int64 }
	all := make([]bounds, partitions) // of all before any is read: what f causes to be diverted is not read
	for p := range all {
		if all[p].start, all[p].end, err = log.Bounds(ctx, topic, p); err != nil {
			return err
		}
	}
	for p, b := range all {
		for offset, end := b.start, b.end; offset < end; {
			batch, err := log.Fetch(ctx, topic, p, offset, fetchBytes, fetchWait)
			if err != nil {
				return err
			}
			for i := range batch.Records {
				if err := f(entry(p, &batch, i, signals)); err != nil {
					return err
				}
			}
			if batch.Next == offset {
				return fmt.Errorf("read %s/%d at offset %d of %d: nothing came", topic, p, offset, end)
			}
			offset = batch.Next
		}
	}
	return nil
}

func entry(partition int, batch *kafka.Batch, i int, signals []*signal.Signal) Entry {
	r := &batch.Records[i]
	e := Entry{DeadLetter: delivery.DeadLetter{Meta: r.Meta}, At: Position{partition, r.Offset}, Time: r.Time, Value: r.Value}
	for _, h := range batch.Headers(i) {
		e.Set(h.Key, h.Value)
	}
	for _, sig := range signals {
		if sig.Topic == e.Topic && sig.Check(r.Value) == nil {
			e.Items = sig.Count(r.Value)
		}
	}
	return e
}

// Report counts what a replay did.
type Report struct {
	Letters int            // read
	Items   map[string]int // items sent, by topic
	Copies  int            // letters left out because a letter with the same value was sent
	Skipped int            // letters that cannot be replayed: their value is missing, or is not a request of their topic
	Refused int            // items that no writer would take
}

// Target is where a replay sends the letters of one signal.
type Target struct {
	Signal         *signal.Signal
	Producer       Producer
	Partitions     int
	MaxRecordBytes int
}

// Replay sends the items of every dead letter for which keep is true to the
// topic that they come from, if that is the topic of a target. Of letters with
// the same value it sends one, so that the letters do not double each time while
// ClickHouse still refuses them. When it fails, letters that it has sent stay sent.
func Replay(ctx context.Context, log Log, topic string, to []Target, keep func(Entry) bool) (Report, error) {
	report := Report{Items: make(map[string]int)}
	var signals []*signal.Signal
	splitters := make(map[string]*splitter)
	for i := range to {
		signals = append(signals, to[i].Signal)
		splitters[to[i].Signal.Topic] = &splitter{Splitter: to[i].Signal.NewSplitter(), to: &to[i]}
	}
	seen := make(map[delivery.Hash]struct{})
	err := Each(ctx, log, topic, signals, func(e Entry) error {
		if !keep(e) {
			return nil
		}
		report.Letters++
		s, ok := splitters[e.Topic]
		if !ok || e.Truncated > 0 {
			report.Skipped++
			return nil
		}
		value := delivery.HashOf(e.Value)
		if _, ok := seen[value]; ok {
			report.Copies++
			return nil
		}
		refused, err := s.split(&e)
		if err != nil {
			report.Skipped++
			return nil //nolint:nilerr // the letter stays where it is, and is counted
		}
		report.Refused += int(refused)
		if len(s.batch) == 0 {
			return nil
		}
		if err := s.to.Producer.Produce(ctx, s.batch); err != nil {
			return fmt.Errorf("replay dead letter %d/%d: %w", e.At.Partition, e.At.Offset, err)
		}
		seen[value] = struct{}{}
		report.Items[e.Topic] += s.items
		return nil
	})
	return report, err
}

// splitter makes records of letters of one signal again.
type splitter struct {
	*signal.Splitter
	to    *Target
	batch []kafka.Outgoing
	items int // in batch
}

// split makes batch of a letter.
func (s *splitter) split(e *Entry) (refused int64, err error) {
	s.batch, s.items = s.batch[:0], 0
	records, rejected, err := s.Split(e.Value, signal.Options{
		Partitions: s.to.Partitions, MaxRecordBytes: s.to.MaxRecordBytes, Window: signal.Anytime,
	})
	for _, r := range records {
		s.add(e, r.Partition, r.Value, r.Items)
	}
	return rejected.Total(), err
}

// add appends a record that carries on the time of first receipt: writers judge
// by it, however late the replay. A letter that does not say it was received
// when it was diverted, or before.
func (s *splitter) add(e *Entry, partition int, value []byte, items int) {
	received := e.Meta.Received
	if received.IsZero() {
		received = e.Time
	}
	meta := delivery.Meta{Agent: e.Meta.Agent, Received: received, Hash: delivery.HashOf(value), HasHash: true, Resend: true}
	s.batch = append(s.batch, kafka.Outgoing{Partition: partition, Value: value, Headers: meta.Headers()})
	s.items += items
}
