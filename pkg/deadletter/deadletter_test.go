package deadletter_test

import (
	"context"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/deadletter"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
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
				[]deadletter.Target{{Signal: untitled(), Producer: l, Partitions: 4, MaxRecordBytes: 1 << 20}}, func(deadletter.Entry) bool { return true })
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
	report, err := deadletter.Replay(t.Context(), l, schema.TopicDeadLetter, to, func(deadletter.Entry) bool { return true })
	if err != nil || report.Letters != 5 || report.Items[""] != 6 || report.Copies != 2 || report.Skipped != 1 {
		t.Errorf("Replay = %+v, %v", report, err)
	}
}
