package gateway

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// anyTime accepts items that were judged before.
var anyTime = signal.Window{Latest: math.MaxUint64}

// sender hands the records of requests to Kafka. It splits records that are too
// large for the topic, down to one item.
type sender struct {
	producer       Producer
	metrics        *metrics
	now            func() time.Time
	window         time.Duration // in which the writer recognizes equal records
	signal         *signal.Signal
	maxRecordBytes int

	mu       sync.Mutex
	oversize int       // bytes of the smallest record split of late
	until    time.Time // when that is forgotten
}

// request is what the records of one request have in common.
type request struct {
	*signal.Request
	received time.Time // first, perhaps by an agent
	marked   bool      // the writer must look the items up, whether the sender said so or not
}

// outgoing is one part of a request as a record. Its hash is that of content.
func (r *request) outgoing(partition int, value, content []byte, marked bool) kafka.Outgoing {
	meta := delivery.Meta{
		Agent: r.Agent, Received: r.received, Hash: delivery.HashOf(content), HasHash: true,
		Resend: r.Resend || r.marked || marked,
	}
	return kafka.Outgoing{Partition: partition, Value: value, Headers: meta.Headers()}
}

// marks reports whether the topic has changed a while ago. Then a copy of a request that came before goes to
// other partitions, whose writers have not seen it: they must look its items up.
func (s *sender) marks(layout kafka.Layout, now time.Time) bool {
	return !layout.Changed.IsZero() && now.Sub(layout.Changed) < s.window
}

// send stores batch, with n items, which are the records of r.
//
// A copy of a request is recognized by the hashes of its records. Parts of a record have
// other hashes, so the writer looks their items up, and also those of records that would have been
// split a while ago, when the topic took less.
func (s *sender) send(ctx context.Context, r *request, batch []kafka.Outgoing, n int) error {
	if len(batch) == 0 {
		return nil
	}
	if err := s.sendAll(ctx, r, batch); err != nil {
		s.metrics.failed.Add(float64(n))
		return fmt.Errorf("produce %d %s: %w", n, s.signal.Items, err)
	}
	s.metrics.produced.Add(float64(n))
	if r.marked {
		s.metrics.marked.Add(float64(n))
	}
	return nil
}

func (s *sender) sendAll(ctx context.Context, r *request, batch []kafka.Outgoing) error {
	var unstorable error
	for again := false; len(batch) > 0; again = true {
		err := s.producer.Produce(ctx, batch)
		var large *kafka.TooLargeError
		if !errors.As(err, &large) {
			if again && err != nil {
				err = errors.New(err.Error()) // whatever it says of batch, other records are stored
			}
			return errors.Join(err, unstorable)
		}
		var parts []kafka.Outgoing
		for _, i := range large.Records {
			of, err := s.parts(r, &batch[i], large)
			if err != nil {
				unstorable = err
				s.producer.Unstorable(batch[i].Partition, err)
			}
			parts = append(parts, of...)
		}
		batch = parts
	}
	return unstorable
}

// split returns the parts of a record, none larger than size unless it holds a
// single item.
func (s *sender) split(value []byte, size int) ([][]byte, error) {
	records, rejected, err := s.signal.NewSplitter().Split(value, signal.Options{
		Partitions: 1, Window: anyTime, MaxRecordBytes: s.maxRecordBytes, SplitBytes: size,
	})
	if err == nil && rejected.Total() > 0 {
		err = errors.New(s.signal.Explain(&rejected, anyTime, s.maxRecordBytes))
	}
	values := make([][]byte, len(records))
	for i := range records {
		values[i] = records[i].Value
	}
	return values, err
}

// parts splits a record that the topic refused. It returns an error if the record cannot be split.
func (s *sender) parts(r *request, whole *kafka.Outgoing, refused error) ([]kafka.Outgoing, error) {
	size := len(whole.Value)
	values, err := s.split(whole.Value, size/2)
	if err != nil {
		return nil, fmt.Errorf("split a record of %d bytes: %w, because: %w", size, err, refused)
	}
	if len(values) < 2 {
		return nil, fmt.Errorf("a record of %d bytes holds no more than one of the %s, raise the topic's max.message.bytes: %w", size, s.signal.Items, refused)
	}
	s.metrics.split.Inc()
	s.noteOversize(size)
	parts := make([]kafka.Outgoing, len(values))
	for i, value := range values {
		parts[i] = r.outgoing(whole.Partition, value, value, true)
	}
	return parts, nil
}

func (s *sender) noteOversize(size int) {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.After(s.until) || size < s.oversize {
		s.oversize = size
	}
	s.until = now.Add(s.window)
}

// oversizeAt is the size of records that may have been split within the window before now.
func (s *sender) oversizeAt(now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.After(s.until) {
		return math.MaxInt
	}
	return s.oversize
}
