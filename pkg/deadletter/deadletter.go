// Package deadletter lists and replays what the writer could not store.
//
// Replaying sends items through the topic that they came from again, marked as
// resent: the writer looks them up by their ids and stores only the missing
// ones. So replaying is safe to repeat.
//
// A letter that was replayed or dropped is handled. A mark says so: a record of the
// dead-letter topic that lists offsets of letters before it ([Mark]). It is younger
// than those letters, so retention removes it after them. Programs that know no
// marks take one for a letter without a topic.
//
// What cannot be read (a damaged batch, or one of an unknown version) is reported
// and passed over.
package deadletter

import (
	"context"
	"errors"
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

// Entry is one dead letter, or records of the topic that cannot be read.
type Entry struct {
	delivery.DeadLetter
	At      Position
	Time    time.Time         // when it was diverted
	Items   int               // 0 if the value is not a request of its topic
	Value   []byte            // valid during the call that it is given to
	Headers []delivery.Header // all of them; as Value
	State   State
	// Damaged is why the records from At on and before offset Next cannot be read. All other
	// fields but At are zero then.
	Damaged error
	Next    int64
}

// Readable reports whether e is a letter, and not a damaged part of the topic.
func (e *Entry) Readable() bool { return e.Damaged == nil }

// Position is where an entry stands in the dead-letter topic.
type Position struct {
	Partition int
	Offset    int64
}

const (
	fetchBytes = 1 << 20
	fetchWait  = 5 * time.Second
	// emptyEnough is how many fetches in a row may bring nothing where the log has more.
	emptyEnough = 3
)

// Each calls f for every dead letter that the topic held when Each was called,
// oldest first within a partition, and once for every damaged stretch. It counts
// the items of these signals.
func Each(ctx context.Context, log Log, topic string, signals []*signal.Signal, f func(Entry) error) error {
	all, err := boundsOf(ctx, log, topic) // before any is read: what f causes to be diverted is not read
	if err != nil {
		return err
	}
	handled := make(map[Position]State)
	ignore := func(Entry) error { return nil }
	err = scan(ctx, log, topic, all, ignore, func(p int, batch *kafka.Batch, i int) error {
		if state := stateIn(batch.Headers(i)); state != Open {
			readMark(batch.Records[i].Value, func(at Position) { handled[at] = state })
		}
		return nil
	})
	if err != nil {
		return err
	}
	return scan(ctx, log, topic, all, f, func(p int, batch *kafka.Batch, i int) error {
		if stateIn(batch.Headers(i)) != Open {
			return nil // a mark
		}
		e := entry(p, batch, i, signals)
		e.State = handled[e.At]
		return f(e)
	})
}

type bounds struct{ start, end int64 }

func boundsOf(ctx context.Context, log Log, topic string) ([]bounds, error) {
	partitions, err := log.Partitions(ctx, topic)
	if err != nil {
		return nil, err
	}
	all := make([]bounds, partitions)
	for p := range all {
		if all[p].start, all[p].end, err = log.Bounds(ctx, topic, p); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// scan calls record for every record within bounds, and damaged for what cannot be read.
func scan(ctx context.Context, log Log, topic string, all []bounds, damaged func(Entry) error, record func(partition int, batch *kafka.Batch, i int) error) error {
	for p, b := range all {
		empty := 0
		for offset, end := b.start, b.end; offset < end; {
			batch, err := log.Fetch(ctx, topic, p, offset, fetchBytes, fetchWait)
			var corrupt *kafka.CorruptError
			switch {
			case errors.As(err, &corrupt):
				if err := damaged(Entry{At: Position{p, corrupt.Offset}, Next: min(corrupt.Next, end), Damaged: corrupt.Cause}); err != nil {
					return err
				}
				offset = corrupt.Next
				continue
			case errors.Is(err, kafka.ErrOffsetOutOfRange):
				start, _, err := log.Bounds(ctx, topic, p)
				if err != nil {
					return err
				}
				if start <= offset {
					return fmt.Errorf("read %s/%d at offset %d of %d: the log has lost its end", topic, p, offset, end)
				}
				offset = start // retention removes letters meanwhile
				continue
			case err != nil:
				return err
			}
			for i := range batch.Records {
				if batch.Records[i].Offset >= end {
					break
				}
				if err := record(p, &batch, i); err != nil {
					return err
				}
			}
			if batch.Next > offset {
				offset, empty = batch.Next, 0
				continue
			}
			if empty++; !batch.Throttled && empty >= emptyEnough {
				return fmt.Errorf("read %s/%d at offset %d of %d: nothing came", topic, p, offset, end)
			}
		}
	}
	return nil
}

func entry(partition int, batch *kafka.Batch, i int, signals []*signal.Signal) Entry {
	r := &batch.Records[i]
	e := Entry{
		DeadLetter: delivery.DeadLetter{Meta: r.Meta}, At: Position{partition, r.Offset}, Next: r.Offset + 1,
		Time: r.Time, Value: r.Value, Headers: batch.Headers(i),
	}
	for _, h := range e.Headers {
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
	Damaged int            // stretches of the topic that cannot be read
}

// Add adds what another replay did.
func (r *Report) Add(other Report) {
	r.Letters += other.Letters
	r.Copies += other.Copies
	r.Skipped += other.Skipped
	r.Refused += other.Refused
	r.Damaged += other.Damaged
	for topic, n := range other.Items {
		r.Items[topic] += n
	}
}

// Target is where a replay sends the letters of one signal.
type Target struct {
	Signal         *signal.Signal
	Producer       Producer
	Partitions     int
	MaxRecordBytes int
}

// Replay sends the items of every dead letter for which keep is true to the
// topic that they come from, if that is the topic of a target, and marks the letter
// as replayed. Of letters with the same value it sends one, so that the letters do
// not double each time while ClickHouse still refuses them. When it fails, letters
// that it has sent stay sent. A letter that was sent and could not be marked is sent
// again by the next replay; the writer stores its items once.
func Replay(ctx context.Context, log Log, topic string, to []Target, marker *Marker, keep func(Entry) bool) (Report, error) {
	report := Report{Items: make(map[string]int)}
	var signals []*signal.Signal
	splitters := make(map[string]*splitter)
	for i := range to {
		signals = append(signals, to[i].Signal)
		splitters[to[i].Signal.Topic] = &splitter{Splitter: to[i].Signal.NewSplitter(), to: &to[i]}
	}
	seen := make(map[delivery.Hash]struct{})
	err := Each(ctx, log, topic, signals, func(e Entry) error {
		if !e.Readable() {
			report.Damaged++
			return nil
		}
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
			return marker.Add(ctx, e.At, Replayed)
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
		if err := marker.owned(); err != nil {
			return err
		}
		if err := s.to.Producer.Produce(ctx, s.batch); err != nil {
			return fmt.Errorf("replay dead letter %d/%d: %w", e.At.Partition, e.At.Offset, err)
		}
		seen[value] = struct{}{}
		report.Items[e.Topic] += s.items
		return marker.Add(ctx, e.At, Replayed)
	})
	return report, errors.Join(err, marker.Flush(context.WithoutCancel(ctx)))
}

// Drop marks every letter for which keep is true as dropped, and returns how many.
func Drop(ctx context.Context, log Log, topic string, signals []*signal.Signal, marker *Marker, keep func(Entry) bool) (dropped int, err error) {
	err = Each(ctx, log, topic, signals, func(e Entry) error {
		if !e.Readable() || !keep(e) {
			return nil
		}
		dropped++
		return marker.Add(ctx, e.At, Dropped)
	})
	return dropped, errors.Join(err, marker.Flush(context.WithoutCancel(ctx)))
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
