package gateway_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/gateway"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// log is a producer that keeps what it is given, or fails.
type log struct {
	records    []kafka.Outgoing
	err        error
	limit      int          // of a record's bytes; 0 is none
	layout     kafka.Layout // 4 partitions when there are none
	unstorable int          // reports of records that could not be split
}

func (l *log) Produce(_ context.Context, batch []kafka.Outgoing) error {
	if l.err != nil {
		return l.err
	}
	large := &kafka.TooLargeError{Cause: errors.New("message too large")}
	for i, r := range batch {
		if l.limit > 0 && len(r.Value) > l.limit {
			large.Records = append(large.Records, i)
			continue
		}
		r.Value = append([]byte(nil), r.Value...)
		l.records = append(l.records, r)
	}
	if len(large.Records) > 0 {
		return large
	}
	return nil
}

func (l *log) Layout() kafka.Layout {
	return kafka.Layout{Partitions: cmp.Or(l.layout.Partitions, 4), Changed: l.layout.Changed}
}

func (l *log) Unstorable(int, error) { l.unstorable++ }

func request(t *testing.T, spans ...*tracepb.Span) []byte {
	t.Helper()
	b, err := proto.Marshal(&coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func span(trace, id byte) *tracepb.Span {
	return &tracepb.Span{
		TraceId: append(make([]byte, 15), trace), SpanId: append(make([]byte, 7), id),
		StartTimeUnixNano: uint64(now.UnixNano()), EndTimeUnixNano: uint64(now.UnixNano()),
	}
}

func newGateway(t *testing.T, l *log) (*gateway.Gateway, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewRegistry()
	g, err := gateway.New(gateway.DefaultConfig(), traces.Signal, l, gateway.Options{
		MaxRecordBytes: 1 << 20, Now: func() time.Time { return now }, Registerer: reg,
	})
	if err != nil {
		t.Fatal(err)
	}
	return g, reg
}

func TestConsumeProducesByPartition(t *testing.T) {
	l := &log{}
	g, _ := newGateway(t, l)
	var spans []*tracepb.Span
	for i := range byte(40) {
		spans = append(spans, span(i+1, i+1))
	}
	res, err := g.Consume(t.Context(), signal.Request{Body: request(t, spans...), Agent: "node-1", Resend: true})
	if err != nil || res.Rejected != 0 {
		t.Fatalf("Consume = %+v, %v", res, err)
	}
	seen := map[int]bool{}
	total := 0
	for _, r := range l.records {
		if seen[r.Partition] {
			t.Errorf("two records for partition %d", r.Partition)
		}
		seen[r.Partition] = true
		var meta delivery.Meta
		for _, h := range r.Headers {
			meta.Set(h.Key, h.Value)
		}
		if meta.Agent != "node-1" || !meta.Resend || !meta.Received.Equal(now) || meta.Hash != delivery.HashOf(r.Value) {
			t.Errorf("headers say %+v", meta)
		}
		var req coltracepb.ExportTraceServiceRequest
		if err := proto.Unmarshal(r.Value, &req); err != nil {
			t.Fatal(err)
		}
		for _, sp := range req.GetResourceSpans()[0].GetScopeSpans()[0].GetSpans() {
			if p := traces.Partition(sp.GetTraceId(), 4); p != r.Partition {
				t.Errorf("a span of partition %d in a record of %d", p, r.Partition)
			}
			total++
		}
	}
	if total != 40 {
		t.Errorf("%d spans produced, want 40", total)
	}
}

// One span of 500 has a byte that is not UTF-8: all are stored, and a request that is sent again gives equal records.
func TestOneBadByteCostsNoSpan(t *testing.T) {
	var spans []*tracepb.Span
	for i := range 500 {
		s := span(byte(i%9+1), byte(i%255+1))
		if i == 77 {
			s.Name = "caf~"
		}
		spans = append(spans, s)
	}
	body := bytes.Replace(request(t, spans...), []byte("caf~"), []byte("caf\xc3"), 1)
	var first []kafka.Outgoing
	for range 2 {
		l := &log{}
		g, reg := newGateway(t, l)
		res, err := g.Consume(t.Context(), signal.Request{Body: body})
		if err != nil || res.Rejected != 0 || res.Message != "" {
			t.Fatalf("Consume = %+v, %v", res, err)
		}
		kept, mended := 0, 0
		for _, r := range l.records {
			var req coltracepb.ExportTraceServiceRequest
			if err := proto.Unmarshal(r.Value, &req); err != nil {
				t.Fatal(err)
			}
			for _, sp := range req.GetResourceSpans()[0].GetScopeSpans()[0].GetSpans() {
				kept++
				if sp.GetName() == "caf\uFFFD" {
					mended++
				}
			}
		}
		if kept != 500 || mended != 1 {
			t.Errorf("%d spans kept, %d of them mended", kept, mended)
		}
		if n, err := testutil.GatherAndCount(reg, "metaflow_gateway_spans_repaired_texts_total"); err != nil || n != 1 {
			t.Errorf("the metric is there %d times, %v", n, err)
		}
		if first == nil {
			first = l.records
		}
		for i, r := range l.records {
			if !bytes.Equal(r.Value, first[i].Value) || delivery.HashOf(r.Value) != delivery.HashOf(first[i].Value) {
				t.Error("sent again, the records differ")
			}
		}
	}
}

func TestConsumeAnswers(t *testing.T) {
	away := errors.New("broker away")
	tests := map[string]struct {
		body     []byte
		produce  error
		rejected int64
		class    fault.Class
		wantErr  bool
	}{
		"all good":          {body: request(t, span(1, 1))},
		"nothing":           {body: nil},
		"one span of three": {body: request(t, span(1, 1), span(1, 0), span(2, 2)), rejected: 1},
		"only bad spans":    {body: request(t, span(0, 1)), rejected: 1},
		"garbage":           {body: []byte("garbage"), wantErr: true, class: fault.Rejected},
		"Kafka is away":     {body: request(t, span(1, 1)), produce: away, wantErr: true, class: fault.Retryable},
		"Kafka is full":     {body: request(t, span(1, 1)), produce: fault.As(fault.Overload, away), wantErr: true, class: fault.Overload},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			g, _ := newGateway(t, &log{err: tc.produce})
			res, err := g.Consume(t.Context(), signal.Request{Body: tc.body})
			if (err != nil) != tc.wantErr || err != nil && fault.ClassOf(err) != tc.class {
				t.Fatalf("error %v of class %v", err, fault.ClassOf(err))
			}
			if res.Rejected != tc.rejected || (res.Message != "") != (tc.rejected > 0) {
				t.Errorf("result %+v, want %d rejected", res, tc.rejected)
			}
		})
	}
}

// An operator finds a missing span by adding up the counters.
func TestCountersAddUp(t *testing.T) {
	l := &log{}
	g, reg := newGateway(t, l)
	_, _ = g.Consume(t.Context(), signal.Request{Body: request(t, span(1, 1), span(2, 0), span(3, 3))})
	l.err = errors.New("broker away")
	_, _ = g.Consume(t.Context(), signal.Request{Body: request(t, span(1, 1))})
	_, _ = g.Consume(t.Context(), signal.Request{Body: []byte("garbage")})
	for name, want := range map[string]float64{
		"metaflow_gateway_spans_received_total":     4,
		"metaflow_gateway_spans_produced_total":     2,
		"metaflow_gateway_spans_rejected_total":     1,
		"metaflow_gateway_spans_failed_total":       1,
		"metaflow_gateway_requests_malformed_total": 1,
	} {
		if got := prom.Value(t, reg, name); got != want {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("metrics lint: %v %v", problems, err)
	}
}

// A request is judged by the time of its first receipt, which its record carries on: what waited in
// an agent's spool is stored. An agent's word is taken within bounds, that of others not at all.
func TestFirstReceiptIsJudgedBy(t *testing.T) {
	const day = 24 * time.Hour
	tests := map[string]struct {
		agent    string
		received time.Time
		age      time.Duration // of the span
		stored   bool
		header   time.Time
	}{
		"eight days in a spool":         {"node-1", now.Add(-8 * day), 8 * day, true, now.Add(-8 * day)},
		"too old when the agent got it": {"node-1", now.Add(-8 * day), 16 * day, false, time.Time{}},
		"the agent does not say":        {"node-1", time.Time{}, 8 * day, false, time.Time{}},
		"no agent":                      {"", now.Add(-8 * day), 8 * day, false, time.Time{}},
		"longer than is believed":       {"node-1", now.Add(-60 * day), 36 * day, true, now.Add(-30 * day)},
		"much longer than is believed":  {"node-1", now.Add(-60 * day), 60 * day, false, time.Time{}},
		"the agent's clock is ahead":    {"node-1", now.Add(2 * day), 0, true, now},
		"a span of the future":          {"node-1", now.Add(2 * day), -2 * day, false, time.Time{}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			l := &log{}
			g, _ := newGateway(t, l)
			sp := span(1, 1)
			sp.StartTimeUnixNano = uint64(now.Add(-tc.age).UnixNano())
			sp.EndTimeUnixNano = sp.StartTimeUnixNano
			res, err := g.Consume(t.Context(), signal.Request{Body: request(t, sp), Agent: tc.agent, Received: tc.received})
			if err != nil || (res.Rejected == 0) != tc.stored || (len(l.records) == 1) != tc.stored {
				t.Fatalf("Consume = %+v, %v; %d records", res, err, len(l.records))
			}
			if !tc.stored {
				return
			}
			var meta delivery.Meta
			for _, h := range l.records[0].Headers {
				meta.Set(h.Key, h.Value)
			}
			if !meta.Received.Equal(tc.header) {
				t.Errorf("the record says it was received at %v, want %v", meta.Received, tc.header)
			}
		})
	}
}

// The second try of a client falls later, and one of its spans is too old by then: the records of
// both have one hash, so the writer drops the second.
func TestTheHashIsOfWhatCame(t *testing.T) {
	l := &log{}
	at := now
	g, err := gateway.New(gateway.DefaultConfig(), traces.Signal, l, gateway.Options{MaxRecordBytes: 1 << 20, Now: func() time.Time { return at }})
	if err != nil {
		t.Fatal(err)
	}
	old := span(1, 2)
	old.StartTimeUnixNano = uint64(now.Add(-7 * 24 * time.Hour).UnixNano())
	body := request(t, span(1, 1), old)
	var hashes []delivery.Hash
	for _, rejected := range []int64{0, 1} {
		res, err := g.Consume(t.Context(), signal.Request{Body: body})
		if err != nil || res.Rejected != rejected {
			t.Fatalf("Consume = %+v, %v; want %d rejected", res, err, rejected)
		}
		var meta delivery.Meta
		for _, h := range l.records[len(l.records)-1].Headers {
			meta.Set(h.Key, h.Value)
		}
		hashes = append(hashes, meta.Hash)
		at = at.Add(time.Second)
	}
	if hashes[0] != hashes[1] || hashes[0] != delivery.HashOf(l.records[0].Value) {
		t.Errorf("hashes %x", hashes)
	}
}
