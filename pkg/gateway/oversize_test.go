package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/gateway"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/apachekafka"
)

// trace is n spans of one trace, each with size bytes that do not compress.
func trace(n, size int) []*tracepb.Span {
	random := rand.New(rand.NewPCG(1, 2))
	spans := make([]*tracepb.Span, n)
	for i := range spans {
		s := span(1, 1)
		s.SpanId = []byte{1, 0, 0, 0, 0, 0, byte(i >> 8), byte(i)}
		text := make([]byte, size)
		for j := range text {
			text[j] = byte('!' + random.IntN(90))
		}
		s.Name = string(text)
		spans[i] = s
	}
	return spans
}

// spanIDs counts the spans that records hold.
func spanIDs(t *testing.T, values [][]byte) map[string]int {
	t.Helper()
	ids := make(map[string]int)
	for _, value := range values {
		var req coltracepb.ExportTraceServiceRequest
		if err := proto.Unmarshal(value, &req); err != nil {
			t.Fatal(err)
		}
		for _, rs := range req.GetResourceSpans() {
			for _, ss := range rs.GetScopeSpans() {
				for _, s := range ss.GetSpans() {
					ids[string(s.GetSpanId())]++
				}
			}
		}
	}
	return ids
}

// brokers are both kinds.
var brokers = map[string]func(*testing.T) string{
	"embedded": func(t *testing.T) string {
		b, err := broker.Start(broker.Options{Listen: "127.0.0.1:0"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		return b.Addr()
	},
	"apache": func(t *testing.T) string { return apachekafka.Start(t).Addr() },
}

// A topic that takes less than a record has is an operator's mistake: nothing is lost by it, on either broker.
func TestTopicTakesLessThanATrace(t *testing.T) {
	for name, start := range brokers {
		t.Run(name, func(t *testing.T) {
			const topic = "metaflow.test"
			client, producer := connect(t, start(t), kafka.Topic{Name: topic, Partitions: 3, MaxMessageBytes: 100_000})
			g, err := gateway.New(gateway.DefaultConfig(), traces.Signal, producer, gateway.Options{
				MaxRecordBytes: 900 << 10, Now: func() time.Time { return now },
			})
			if err != nil {
				t.Fatal(err)
			}
			res, err := g.Consume(t.Context(), signal.Request{Body: request(t, trace(400, 1000)...)})
			if err != nil || res.Rejected != 0 {
				t.Fatalf("Consume of 400 spans = %+v, %v", res, err)
			}
			if err := producer.Ready(t.Context()); err != nil {
				t.Errorf("Ready after all is stored = %v", err)
			}
			ids := spanIDs(t, readValues(t, client, topic, 3))
			if len(ids) != 400 {
				t.Errorf("%d spans are stored, want 400", len(ids))
			}
			for id, n := range ids {
				if n != 1 {
					t.Errorf("span %x is stored %d times", id, n)
				}
			}

			// One span that the topic does not take waits for the topic; its neighbours do not.
			spans := append(trace(1, 200_000), span(1, 2))
			res, err = g.Consume(t.Context(), signal.Request{Body: request(t, spans...)})
			if !errors.Is(err, kafka.ErrTooLarge) || fault.ClassOf(err) != fault.Retryable {
				t.Errorf("Consume of a span of 200 kB = %+v, %v, class %v", res, err, fault.ClassOf(err))
			}
			if err := producer.Ready(t.Context()); !errors.Is(err, kafka.ErrTooLarge) {
				t.Errorf("Ready = %v", err)
			}
			if ids := spanIDs(t, readValues(t, client, topic, 3)); ids[string(spans[1].GetSpanId())] != 1 {
				t.Error("the small span of the same trace is not stored")
			}
		})
	}
}

// connect returns a client, and a running producer for topic.
func connect(t *testing.T, addr string, topic kafka.Topic) (*kafka.Client, *kafka.Producer) {
	t.Helper()
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{addr}
	client, err := kafka.New(cfg, kafka.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	if err := client.EnsureTopics(t.Context(), topic); err != nil {
		t.Fatal(err)
	}
	producer := client.NewProducer(topic.Name, kafka.ProducerOptions{})
	if err := producer.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- producer.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return client, producer
}

// readValues returns the values of a topic's records.
func readValues(t *testing.T, client *kafka.Client, topic string, partitions int) [][]byte {
	t.Helper()
	var values [][]byte
	for p := range partitions {
		for _, r := range records(t, client, topic, p) {
			values = append(values, r.Value)
		}
	}
	return values
}

// records returns what a partition holds.
func records(t *testing.T, client *kafka.Client, topic string, partition int) []delivery.Record {
	t.Helper()
	var all []delivery.Record
	for next := int64(0); ; {
		b, err := client.Fetch(t.Context(), topic, partition, next, 1<<20, 10*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if b.Next == next {
			return all
		}
		next = b.Next
		for _, r := range b.Records {
			r.Value = bytes.Clone(r.Value)
			all = append(all, r)
		}
	}
}

// resent reports whether the writer is told to look a record up.
func resent(r kafka.Outgoing) bool {
	var meta delivery.Meta
	for _, h := range r.Headers {
		meta.Set(h.Key, h.Value)
	}
	return meta.Resend
}

// Parts have other hashes than the whole. Whichever comes first, the second is looked up.
func TestPartsAreLookedUp(t *testing.T) {
	l := &log{limit: 100_000, layout: kafka.Layout{Partitions: 1}}
	clock := now
	g, err := gateway.New(gateway.DefaultConfig(), traces.Signal, l, gateway.Options{
		MaxRecordBytes: 1 << 20, DedupWindow: time.Minute, Now: func() time.Time { return clock },
	})
	if err != nil {
		t.Fatal(err)
	}
	consume := func(spans int) (records []kafka.Outgoing) {
		t.Helper()
		l.records = nil
		if _, err := g.Consume(t.Context(), signal.Request{Body: request(t, trace(spans, 1000)...)}); err != nil {
			t.Fatal(err)
		}
		return l.records
	}
	first := consume(400)
	second := consume(400)
	if len(first) < 5 || len(second) != len(first) {
		t.Fatalf("%d parts, and then %d", len(first), len(second))
	}
	for i, again := range second {
		if !bytes.Equal(again.Value, first[i].Value) || !resent(again) {
			t.Errorf("part %d: equal %v, marked %v", i, bytes.Equal(again.Value, first[i].Value), resent(again))
		}
	}
	if records := consume(10); resent(records[0]) {
		t.Error("a record that is never split is looked up")
	}
	l.limit = 0 // mended
	if records := consume(400); len(records) != 1 || !resent(records[0]) {
		t.Error("the whole is not looked up, though parts may be stored")
	}
	clock = clock.Add(2 * time.Minute)
	if records := consume(400); resent(records[0]) {
		t.Error("the whole is looked up for ever")
	}
}

// Flows are split as spans are.
func TestFlowsAreSplit(t *testing.T) {
	l := &log{limit: 2000}
	f, _ := newFlows(t, l, nil)
	connections := make([]uint64, 400)
	for i := range connections {
		connections[i] = uint64(i + 1)
	}
	res, err := f.Consume(t.Context(), signal.Request{Agent: "agent-1", Body: flowRequest(t, connections...)})
	if err != nil || res.Rejected != 0 {
		t.Fatalf("Consume = %+v, %v", res, err)
	}
	stored := 0
	for _, r := range l.records {
		s := flows.Signal.NewSplitter()
		records, _, err := s.Split(r.Value, signal.Options{Partitions: 1, MaxRecordBytes: 1 << 20, Window: signal.WindowAt(now, time.Hour, time.Hour)})
		if err != nil || len(records) != 1 {
			t.Fatalf("Split = %d records, %v", len(records), err)
		}
		stored += records[0].Items
	}
	if stored != 400 {
		t.Errorf("%d flows are stored, want 400", stored)
	}
}
