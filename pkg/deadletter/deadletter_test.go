package deadletter_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/deadletter"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/kafkatest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/schema"
)

// untitled is the signal of letters that name no topic.
func untitled() *signal.Signal {
	sig := *traces.Signal
	sig.Topic = ""
	return &sig
}

// letters is a dead-letter topic of one partition, and takes what is replayed.
type letters struct {
	records []delivery.Record
	sent    []kafka.Outgoing
}

func (l *letters) Partitions(context.Context, string) (int, error) { return 1, nil }

func (l *letters) Bounds(context.Context, string, int) (start, end int64, err error) {
	return 0, int64(len(l.records)), nil
}

func (l *letters) Fetch(_ context.Context, _ string, _ int, offset int64, _ int, _ time.Duration) (kafka.Batch, error) {
	return kafka.Batch{Records: l.records[offset:], Next: int64(len(l.records))}, nil
}

func (l *letters) Produce(_ context.Context, batch []kafka.Outgoing) error {
	l.sent = append(l.sent, batch...)
	return nil
}

// A letter that is replayed after days is judged by the time at which its spans were first received, or
// when nobody has noted that, by the time at which it was diverted.
func TestReplayKeepsTheFirstReceipt(t *testing.T) {
	now := time.Now()
	ago := now.Add(-10 * 24 * time.Hour)
	for name, received := range map[string]time.Time{"noted": ago.Add(-time.Hour), "not noted": {}} {
		t.Run(name, func(t *testing.T) {
			value := otlptest.New(1, otlptest.Options{Start: ago}).RequestBytes(20)
			l := &letters{records: []delivery.Record{{Time: ago, Value: value, Meta: delivery.Meta{Received: received}}}}
			report, err := deadletter.Replay(t.Context(), l, schema.TopicDeadLetter,
				[]deadletter.Target{{Signal: untitled(), Producer: l, Partitions: 4, MaxRecordBytes: 1 << 20}}, nil, func(deadletter.Entry) bool { return true })
			if err != nil || report.Items[""] != 20 || report.Refused != 0 {
				t.Fatalf("Replay = %+v, %v", report, err)
			}
			want := received
			if want.IsZero() {
				want = ago
			}
			spans := 0
			for _, o := range l.sent {
				r := delivery.Record{Time: now, Value: o.Value}
				for _, h := range o.Headers {
					r.Meta.Set(h.Key, h.Value)
				}
				if got, ok := r.FirstReceipt(); !ok || !got.Equal(want) || !r.Meta.Resend {
					t.Errorf("replayed as received at %v, resend %v; want %v", got, r.Meta.Resend, want)
				}
				spans += traces.Signal.Count(o.Value)
			}
			if spans != 20 {
				t.Errorf("%d spans sent, want 20", spans)
			}
		})
	}
}

// What ClickHouse refuses again is diverted again. The next replay sends it once, or the letters would double
// with each; and what is diverted while a replay runs is not read by it.
func TestReplaySendsEqualLettersOnce(t *testing.T) {
	now := time.Now()
	gen := otlptest.New(1, otlptest.Options{Start: now})
	one, two := gen.RequestBytes(3), gen.RequestBytes(3)
	l := &letters{}
	for _, value := range [][]byte{one, two, one, []byte("garbage"), one} {
		l.records = append(l.records, delivery.Record{Time: now, Value: value})
	}
	to := []deadletter.Target{{Signal: untitled(), Producer: l, Partitions: 1, MaxRecordBytes: 1 << 20}}
	report, err := deadletter.Replay(t.Context(), l, schema.TopicDeadLetter, to, nil, func(deadletter.Entry) bool { return true })
	if err != nil || report.Letters != 5 || report.Items[""] != 6 || report.Copies != 2 || report.Skipped != 1 {
		t.Errorf("Replay = %+v, %v", report, err)
	}
}

// spoilt is a log in which the records of [1, 3) are damaged.
type spoilt struct{ *kafka.Client }

func (s spoilt) Fetch(ctx context.Context, topic string, partition int, offset int64, maxBytes int, maxWait time.Duration) (kafka.Batch, error) {
	if offset == 1 || offset == 2 {
		return kafka.Batch{}, &kafka.CorruptError{Offset: offset, Next: 3, Cause: errors.New("bad checksum")}
	}
	batch, err := s.Client.Fetch(ctx, topic, partition, offset, maxBytes, maxWait)
	if offset == 0 && err == nil {
		batch.Records, batch.Next = batch.Records[:1], 1
	}
	return batch, err
}

// What is damaged is reported and passed over. What was replayed or dropped is
// marked, and a mark is no letter.
func TestHandledAndDamaged(t *testing.T) {
	gen := otlptest.New(1, otlptest.Options{Start: time.Now()})
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{kafkatest.Start(t, broker.Options{}).Addr()}
	client, err := kafka.New(cfg, kafka.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.EnsureTopics(t.Context(), kafka.Topic{Name: schema.TopicDeadLetter, Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	topic := client.NewProducer(schema.TopicDeadLetter, kafka.ProducerOptions{})
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = topic.Run(ctx) })
	defer running.Wait()
	defer stop()
	for range 6 {
		if err := topic.Produce(t.Context(), []kafka.Outgoing{{Value: gen.RequestBytes(2)}}); err != nil {
			t.Fatal(err)
		}
	}
	l, sent := spoilt{client}, &letters{}
	keep := func(offsets ...int64) func(deadletter.Entry) bool {
		return func(e deadletter.Entry) bool {
			return e.State == deadletter.Open && (len(offsets) == 0 || slices.Contains(offsets, e.At.Offset))
		}
	}
	marker := func() *deadletter.Marker { return &deadletter.Marker{Producer: topic} }
	if n, err := deadletter.Drop(t.Context(), l, schema.TopicDeadLetter, nil, marker(), keep(3)); n != 1 || err != nil {
		t.Fatalf("Drop = %d, %v", n, err)
	}
	to := []deadletter.Target{{Signal: untitled(), Producer: sent, Partitions: 1, MaxRecordBytes: 1 << 20}}
	for turn, want := range []int{6, 0} { // letters 0, 4 and 5
		report, err := deadletter.Replay(t.Context(), l, schema.TopicDeadLetter, to, marker(), keep())
		if err != nil || report.Items[""] != want || report.Damaged != 1 {
			t.Errorf("replay %d = %+v, %v", turn, report, err)
		}
	}
	var states []string
	err = deadletter.Each(t.Context(), l, schema.TopicDeadLetter, nil, func(e deadletter.Entry) error {
		text := fmt.Sprintf("%d %s", e.At.Offset, e.State)
		if e.Damaged != nil {
			text = fmt.Sprintf("%d-%d damaged", e.At.Offset, e.Next-1)
		}
		states = append(states, text)
		return nil
	})
	want := []string{"0 replayed", "1-2 damaged", "3 dropped", "4 replayed", "5 replayed"}
	if diff := cmp.Diff(want, states); err != nil || diff != "" {
		t.Errorf("%v, letters (-want +got):\n%s", err, diff)
	}
}

// Who may not be alone any more sends nothing.
func TestReplayEndsWithItsTurn(t *testing.T) {
	l := &letters{records: []delivery.Record{{Time: time.Now(), Value: otlptest.New(1, otlptest.Options{}).RequestBytes(2)}}}
	to := []deadletter.Target{{Signal: untitled(), Producer: l, Partitions: 1, MaxRecordBytes: 1 << 20}}
	marker := &deadletter.Marker{Producer: l, Until: func() time.Time { return time.Now().Add(-time.Millisecond) }}
	_, err := deadletter.Replay(t.Context(), l, schema.TopicDeadLetter, to, marker, func(deadletter.Entry) bool { return true })
	if !errors.Is(err, deadletter.ErrNotOwned) || len(l.sent) != 0 {
		t.Errorf("Replay sent %d records, %v", len(l.sent), err)
	}
}

// Whatever a mark holds, it gives few letters, and what it was made of.
func FuzzMark(f *testing.F) {
	f.Add([]byte("0/1\n0/3-9\n"))
	f.Add([]byte("0/0-9223372036854775807\n"))
	f.Fuzz(func(t *testing.T, value []byte) {
		read := deadletter.ReadMark(value)
		if len(read) > 1000 {
			t.Fatalf("%d letters", len(read))
		}
		if again := deadletter.ReadMark(deadletter.Mark(read, deadletter.Dropped).Value); !slices.Equal(again, read) {
			t.Errorf("read %v, written and read again %v", read, again)
		}
	})
}
