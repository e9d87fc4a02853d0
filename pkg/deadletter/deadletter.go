// Package deadletter lists and replays what the writer could not store.
//
// Replaying sends the spans through the spans topic again, marked as resent:
// the writer looks them up by their ids and stores only those that are missing. So
// replaying is safe to repeat, and needs no record of what was replayed before.
package deadletter

import (
	"context"
	"fmt"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/otlp"
	"github.com/metaflowys/metaflow-server/pkg/record"
)

// Log reads the dead-letter topic. *kafka.Client is one.
type Log interface {
	Partitions(ctx context.Context, topic string) (int, error)
	Bounds(ctx context.Context, topic string, partition int) (start, end int64, err error)
	Fetch(ctx context.Context, topic string, partition int, offset int64, maxBytes int, maxWait time.Duration) (kafka.Batch, error)
}

// Producer writes the spans topic.
type Producer interface {
	Produce(ctx context.Context, batch []kafka.Outgoing) error
}

// Entry is one dead letter.
type Entry struct {
	record.DeadLetter
	At    Position
	Time  time.Time // when it was diverted
	Spans int       // 0 when the value is no OTLP request
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
// oldest first within a partition.
func Each(ctx context.Context, log Log, topic string, f func(Entry) error) error {
	partitions, err := log.Partitions(ctx, topic)
	if err != nil {
		return err
	}
	for p := range partitions {
		offset, end, err := log.Bounds(ctx, topic, p)
		if err != nil {
			return err
		}
		for offset < end {
			batch, err := log.Fetch(ctx, topic, p, offset, fetchBytes, fetchWait)
			if err != nil {
				return err
			}
			for i := range batch.Records {
				if err := f(entry(p, &batch, i)); err != nil {
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

func entry(partition int, batch *kafka.Batch, i int) Entry {
	r := &batch.Records[i]
	e := Entry{At: Position{partition, r.Offset}, Time: r.Time, Value: r.Value}
	for _, h := range batch.Headers(i) {
		e.Set(h.Key, h.Value)
	}
	if otlp.Check(r.Value) == nil {
		e.Spans = otlp.Spans(r.Value)
	}
	return e
}

// Report says what a replay did.
type Report struct {
	Letters int // read
	Spans   int // sent to the spans topic
	Skipped int // letters that cannot be replayed: their value is no OTLP request, or is left out
	Refused int // spans that no writer would take: ids of a wrong length
}

// Target is where a replay goes.
type Target struct {
	Producer       Producer
	Partitions     int
	MaxRecordBytes int
}

// Replay sends the spans of every dead letter for which keep is true to the
// spans topic. What it has sent when it fails stays sent.
func Replay(ctx context.Context, log Log, topic string, to Target, keep func(Entry) bool) (Report, error) {
	var report Report
	var splitter otlp.Splitter
	opts := otlp.Options{
		Partitions: to.Partitions, MaxRecordBytes: to.MaxRecordBytes,
		Window: otlp.Window{Latest: 1<<63 - 1}, // the writer judges the times again
	}
	err := Each(ctx, log, topic, func(e Entry) error {
		if !keep(e) {
			return nil
		}
		report.Letters++
		if e.Truncated > 0 {
			report.Skipped++
			return nil
		}
		records, rejected, err := splitter.Split(e.Value, opts)
		if err != nil {
			report.Skipped++
			return nil //nolint:nilerr // the letter stays where it is, and is counted
		}
		report.Refused += int(rejected.Total())
		var batch []kafka.Outgoing
		for _, r := range records {
			report.Spans += r.Spans
			meta := record.Meta{Agent: e.Meta.Agent, Received: e.Meta.Received, Hash: record.HashOf(r.Value), HasHash: true, Resend: true}
			batch = append(batch, kafka.Outgoing{Partition: r.Partition, Value: r.Value, Headers: meta.Headers()})
		}
		if len(batch) == 0 {
			return nil
		}
		if err := to.Producer.Produce(ctx, batch); err != nil {
			return fmt.Errorf("replay dead letter %d/%d: %w", e.At.Partition, e.At.Offset, err)
		}
		return nil
	})
	return report, err
}
