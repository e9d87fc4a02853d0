package writer_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/go-cmp/cmp"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	pb "google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/writer"
)

// sized is a request of spans numbered from 0 whose names have so many bytes, and whose resource has
// an attribute of so many.
func sized(shared int, names ...int) []byte {
	var spans []*tracepb.Span
	for i, n := range names {
		spans = append(spans, &tracepb.Span{
			TraceId: []byte("0123456789abcdef"), SpanId: fmt.Appendf(nil, "%08d", i), Name: strings.Repeat("n", n),
			StartTimeUnixNano: uint64(time.Now().UnixNano()), EndTimeUnixNano: uint64(time.Now().UnixNano()),
		})
	}
	b, err := pb.Marshal(&coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource: &resourcepb.Resource{Attributes: []*commonpb.KeyValue{{
			Key: "k", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: strings.Repeat("r", shared)}},
		}}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans}},
	}}})
	if err != nil {
		panic(err) // what is built here can be marshalled
	}
	return b
}

// divert has a writer divert all items of a record, and returns how many of them letters hold and how
// many letters are without a value.
func divert(t *testing.T, dead writer.DeadLetters, all *letters, value []byte, items int) (held, truncated int) {
	t.Helper()
	log, store := newLog(), newTable()
	log.append(time.Now(), value, false)
	log.append(time.Now(), request(time.Now(), items), false)
	for i := range items {
		store.poison[spanID(i)] = true
	}
	w, counter := counted(t, store, dead)
	follow(w, log, 10*time.Minute)
	if diff := cmp.Diff(stored(items), store.spans); diff != "" || !log.finished() {
		t.Errorf("committed %d; spans (-want +got):\n%s", log.offset, diff)
	}
	for i, l := range all.all {
		if l.Truncated > 0 {
			truncated++
			continue
		}
		held += len(traces.numbers(all.values[i]))
	}
	if n := counter("metaflow_writer_dead_letters_total"); n != float64(len(all.all)) {
		t.Errorf("%v dead letters were counted of %d", n, len(all.all))
	}
	if n := counter("metaflow_writer_dead_letters_truncated_total"); n != float64(truncated) {
		t.Errorf("%v letters were counted as truncated of %d", n, truncated)
	}
	if n := counter("metaflow_writer_spans_diverted_total"); n != float64(items) {
		t.Errorf("%v spans were counted as diverted of %d", n, items)
	}
	return held, truncated
}

// A letter that is larger than the topic takes is divided by its items. Only an item that is
// too large alone loses its value, and what is too large in all its parts is not tried for ever.
func TestLargeLetterIsDivided(t *testing.T) {
	tests := map[string]struct {
		value           []byte
		items           int
		held, truncated int
	}{
		"fits":                         {sized(10, 500, 500, 500), 3, 3, 0},
		"twice too large":              {sized(10, 500, 500, 500, 500, 500, 500, 500), 7, 7, 0},
		"a large resource":             {sized(1000, 100, 100, 100, 100, 100), 5, 5, 0},
		"one of them is too large":     {sized(10, 100, 100, 100, 5000, 100, 100), 6, 5, 1},
		"all of them are too large":    {sized(10, 5000, 5000, 5000), 3, 0, 3},
		"one, and it is too large":     {sized(10, 5000), 1, 0, 1},
		"the resource alone is enough": {sized(5000, make([]int, 60)...), 60, 0, 20},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dead := &letters{max: 2000}
				held, truncated := divert(t, dead, dead, tc.value, tc.items)
				if held != tc.held || truncated != tc.truncated {
					t.Errorf("letters hold %d items and %d are truncated, want %d and %d", held, truncated, tc.held, tc.truncated)
				}
			})
		})
	}
}

// unsteady is a dead-letter topic that is away at every third request.
type unsteady struct {
	*letters
	n int
}

func (d *unsteady) Produce(ctx context.Context, batch []kafka.Outgoing) error {
	if d.n++; d.n%3 == 0 {
		return errors.New("connection refused")
	}
	return d.letters.Produce(ctx, batch)
}

// Kafka goes away while a letter is handed over in parts.
func TestLargeLetterWhileKafkaIsUnsteady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store, dead := newLog(), newTable(), &letters{max: 1500}
		log.append(time.Now(), sized(10, 500, 500, 500, 500, 500), false)
		log.append(time.Now(), request(time.Now(), 5), false)
		for i := range 5 {
			store.poison[spanID(i)] = true
		}
		follow(newWriter(t, store, &unsteady{letters: dead}), log, time.Hour)
		held := map[int]bool{}
		for i, l := range dead.all {
			for _, n := range traces.numbers(dead.values[i]) {
				held[n] = true
			}
			if l.Truncated > 0 {
				t.Errorf("letter %d lost %d bytes", i, l.Truncated)
			}
		}
		if len(held) != 5 || !log.finished() {
			t.Errorf("letters hold the items %v, committed %d", held, log.offset)
		}
		if len(dead.all) > 5 {
			t.Errorf("%d letters for 5 items", len(dead.all))
		}
	})
}

// talkative refuses a block with a text that quotes a value.
type talkative struct {
	*table
	quoted string
}

func (s *talkative) InsertGuarded(ctx context.Context, guard clickhouse.Guard, shard int, name, token string, input proto.Input, rows int) error {
	err := s.table.InsertGuarded(ctx, guard, shard, name, token, input, rows)
	if fault.ClassOf(err) == fault.Rejected {
		return fault.As(fault.Rejected, errors.New("Cannot parse string '"+s.quoted+"' as UInt16: while converting column port"))
	}
	return err
}

// ClickHouse quotes the value in its refusal, so value and cause together would be larger than the topic takes. The
// cause is shortened and the value kept.
func TestCauseIsLargerThanTheValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, store, dead := newLog(), newTable(), &letters{max: 1 << 20}
		log.append(time.Now(), request(time.Now(), 1), false)
		log.append(time.Now(), request(time.Now(), 2), false)
		store.poison[spanID(1)] = true
		quotes := &talkative{store, strings.Repeat("\u65e5", 1<<20)}
		w, err := writer.New(config(), columns.TracesTable(), store, quotes, dead, writer.Options{AcceptPast: 24 * time.Hour, AcceptFuture: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		follow(w, log, 10*time.Minute)
		if len(dead.all) != 1 || dead.all[0].Truncated > 0 {
			t.Fatalf("%d dead letters", len(dead.all))
		}
		cause := dead.all[0].Cause
		if len(cause) > 1000 || !utf8.ValidString(cause) || !strings.Contains(cause, "Cannot parse string") || !strings.HasSuffix(cause, "converting column port") {
			t.Errorf("cause of %d bytes: %q", len(cause), cause)
		}
		if diff := cmp.Diff([]int{1}, traces.numbers(dead.values[0])); diff != "" {
			t.Errorf("items of the letter (-want +got):\n%s", diff)
		}
	})
}
