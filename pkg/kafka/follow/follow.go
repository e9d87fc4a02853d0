// Package follow reads one partition of a topic from its beginning and for ever, for those who
// keep what the records amount to in memory.
//
// It owns the position: where to begin, how to go on after trouble, when the end has been
// reached. What the records mean is its [Sink]'s business. Nothing is committed, so every
// replica reads everything, and a new one starts from the beginning.
//
// A [Follower] belongs to the goroutine of Run, which calls the Sink; nothing else is started.
package follow

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

const (
	unknown = -1
	// fetchBytes and fetchWait are of one request. The broker answers as soon as there is
	// anything, so waiting costs no delay.
	fetchBytes = 1 << 20
	fetchWait  = 2 * time.Second
	maxPause   = 2 * time.Second
)

// Log reads partition 0 of a topic. kafka.Client satisfies it.
type Log interface {
	Bounds(ctx context.Context, topic string, partition int) (start, end int64, err error)
	Fetch(ctx context.Context, topic string, partition int, offset int64, maxBytes int, maxWait time.Duration) (kafka.Batch, error)
}

// Step is what one request to Kafka brought.
type Step struct {
	// Records are the Sink's to keep. Often there are none.
	Records []delivery.Record
	// Next is the offset to read next.
	Next int64
	// AtEnd says that the log has nothing after the records, as far as the broker knew.
	AtEnd bool
}

// Sink takes what was read. Its methods are called by one goroutine.
type Sink interface {
	// Take is called after every request that was answered.
	Take(s Step)
	// Unreadable says that a record makes no sense and is passed over.
	Unreadable(offset int64, cause error)
	// Failed says that a request failed, which is tried again.
	Failed(err error)
	// Forget says that the log is not the one that was read: what was taken counts no more, and
	// the log is read from its beginning.
	Forget(err error)
}

// Follower reads one topic. Make it with New.
type Follower struct {
	topic string
	from  Log
	sink  Sink
	log   *slog.Logger
	next  int64         // offset of the next record; unknown before the first answer
	id    kafka.TopicID // of the log that was read; zero before the first records
}

// New returns a Follower that has read nothing. A nil logger logs nothing.
func New(topic string, from Log, sink Sink, log *slog.Logger) *Follower {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Follower{topic: topic, from: from, sink: sink, log: log, next: unknown}
}

// Run reads until ctx ends, and returns nil then. It is called once.
func (f *Follower) Run(ctx context.Context) error {
	pause := time.NewTimer(0)
	defer pause.Stop()
	failures := 0
	for {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return nil
		}
		err := f.advance(ctx)
		switch {
		case ctx.Err() != nil:
			return nil // a stop that was asked for
		case err == nil:
			failures = 0
			pause.Reset(0)
		default:
			if failures == 0 {
				f.log.Warn("topic cannot be read, trying again", slog.String("topic", f.topic), slog.Any("error", err))
			}
			pause.Reset(min(50*time.Millisecond<<min(failures, 10), maxPause))
			failures++
		}
	}
}

// advance reads once.
func (f *Follower) advance(ctx context.Context) error {
	batch, err := f.fetch(ctx)
	if err == nil && !f.id.IsZero() && !batch.TopicID.IsZero() && batch.TopicID != f.id {
		err = kafka.ErrTopicChanged
	}
	var corrupt *kafka.CorruptError
	switch {
	case errors.Is(err, kafka.ErrOffsetOutOfRange), errors.Is(err, kafka.ErrTopicChanged):
		// This is not the log that was read before: somebody has deleted the topic, or the
		// brokers lost its end. What counts is what the log says now.
		f.log.Error("topic is not the one that was read, reading it anew", slog.String("topic", f.topic), slog.Any("error", err))
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

// fetch gets the next records; the first time, it finds out where the log begins.
func (f *Follower) fetch(ctx context.Context) (kafka.Batch, error) {
	next := f.next
	if next == unknown {
		start, end, err := f.from.Bounds(ctx, f.topic, 0)
		if err != nil || start == end { // nothing to wait for before the end is reached
			return kafka.Batch{Next: start, HighWatermark: end}, err
		}
		next = start
	}
	return f.from.Fetch(ctx, f.topic, 0, next, fetchBytes, fetchWait)
}
