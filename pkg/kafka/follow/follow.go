// Package follow reads one partition of a topic from its beginning and follows it
// forever, for callers that keep the records' state in memory.
//
// It owns the position: where to begin, how to continue after errors, and when the end
// was reached. The [Sink] interprets the records. A Follower commits nothing, so every
// replica reads the whole topic and a new one starts at the beginning.
//
// Run calls the Sink from its own goroutine and starts no others.
package follow

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/retry"
)

const (
	unknown = -1
	// fetchBytes and fetchWait bound one fetch. The broker responds as soon as there are
	// records, so waiting adds no delay.
	fetchBytes = 1 << 20
	fetchWait  = 2 * time.Second
)

var backoff = retry.Policy{First: 50 * time.Millisecond, Max: 2 * time.Second}

// Log reads partition 0 of a topic. kafka.Client implements it.
type Log interface {
	Bounds(ctx context.Context, topic string, partition int) (start, end int64, err error)
	Fetch(ctx context.Context, topic string, partition int, offset int64, maxBytes int, maxWait time.Duration) (kafka.Batch, error)
}

// Step is the result of one fetch.
type Step struct {
	// Records belong to the Sink. They are often empty.
	Records []delivery.Record
	// Next is the offset to read next.
	Next int64
	// AtEnd means that the log had nothing after the records when the broker responded.
	AtEnd bool
}

// Sink receives what was read. One goroutine calls its methods.
type Sink interface {
	// Take is called after every successful fetch.
	Take(s Step)
	// Unreadable reports a corrupt record that is skipped.
	Unreadable(offset int64, cause error)
	// Failed reports a failed fetch. It will be retried.
	Failed(err error)
	// Forget reports that the log is not the one that was read: earlier records no longer
	// count, and the new log is read from its beginning.
	Forget(err error)
}

// Follower reads one topic. Create it with New.
type Follower struct {
	topic string
	from  Log
	sink  Sink
	log   *slog.Logger
	next  int64         // offset of the next record; unknown before the first response
	id    kafka.TopicID // id of the log that was read; zero before the first records
}

// New returns a Follower that has read nothing. A nil logger discards.
func New(topic string, from Log, sink Sink, log *slog.Logger) *Follower {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Follower{topic: topic, from: from, sink: sink, log: log, next: unknown}
}

// Run reads until ctx ends, then returns nil. Call it once.
func (f *Follower) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		_ = retry.Do(ctx, backoff, f.advance, func(failure retry.Failure) {
			if failure.Count == 1 {
				f.log.Warn("cannot read topic, retrying", slog.String("topic", f.topic), slog.Any("error", failure.Err))
			}
		})
	}
	return nil
}

// advance performs one fetch.
func (f *Follower) advance(ctx context.Context) error {
	batch, err := f.fetch(ctx)
	if err == nil && !f.id.IsZero() && !batch.TopicID.IsZero() && batch.TopicID != f.id {
		err = kafka.ErrTopicChanged
	}
	var corrupt *kafka.CorruptError
	switch {
	case errors.Is(err, kafka.ErrOffsetOutOfRange), errors.Is(err, kafka.ErrTopicChanged):
		// This is not the log that was read before: the topic was deleted, or the brokers
		// lost its end. Only the current log counts.
		f.log.Error("topic is not the one that was read, reading the new one from its beginning", slog.String("topic", f.topic), slog.Any("error", err))
		f.next, f.id = unknown, kafka.TopicID{}
		f.sink.Forget(err)
		return err
	case errors.As(err, &corrupt):
		f.sink.Unreadable(corrupt.Offset, corrupt.Cause)
		f.next = corrupt.Next
		f.sink.Take(Step{Next: corrupt.Next})
		return nil
	case err != nil:
		f.sink.Failed(err)
		return err
	}
	f.next = batch.Next
	if !batch.TopicID.IsZero() {
		f.id = batch.TopicID
	}
	f.sink.Take(Step{Records: batch.Records, Next: batch.Next, AtEnd: batch.Next >= batch.HighWatermark})
	return nil
}

// fetch fetches the next records. The first time, it looks up where the log begins.
func (f *Follower) fetch(ctx context.Context) (kafka.Batch, error) {
	next := f.next
	if next == unknown {
		start, end, err := f.from.Bounds(ctx, f.topic, 0)
		if err != nil || start == end { // an empty log: there is nothing to wait for before the end
			return kafka.Batch{Next: start, HighWatermark: end}, err
		}
		next = start
	}
	return f.from.Fetch(ctx, f.topic, 0, next, fetchBytes, fetchWait)
}
