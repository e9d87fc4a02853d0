package traces_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

var (
	now    = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	window = signal.WindowAt(now, 7*24*time.Hour, time.Hour)
)

func options() signal.Options {
	return signal.Options{Partitions: 8, Window: window, MaxRecordBytes: 900 << 10}
}

// newSpan is an acceptable span; edit changes it.
func newSpan(trace, id byte, edit ...func(*tracepb.Span)) *tracepb.Span {
	s := &tracepb.Span{
		TraceId:           bytes.Repeat([]byte{trace}, 16),
		SpanId:            bytes.Repeat([]byte{id}, 8),
		Name:              fmt.Sprintf("span %d/%d", trace, id),
		StartTimeUnixNano: uint64(now.UnixNano()),
		EndTimeUnixNano:   uint64(now.Add(time.Millisecond).UnixNano()),
		Attributes:        []*commonpb.KeyValue{otlptest.Text("http.request.method", "GET")},
	}
	for _, e := range edit {
		e(s)
	}
	return s
}

func newRequest(service string, spans ...*tracepb.Span) *coltracepb.ExportTraceServiceRequest {
	return &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: []*commonpb.KeyValue{otlptest.Text("service.name", service)}},
		SchemaUrl:  "resource schema",
		ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{Name: "lib"}, SchemaUrl: "scope schema", Spans: spans}},
	}}}
}

func marshal(t testing.TB, req *coltracepb.ExportTraceServiceRequest) []byte {
	t.Helper()
	b, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unmarshal(t testing.TB, b []byte) *coltracepb.ExportTraceServiceRequest {
	t.Helper()
	var req coltracepb.ExportTraceServiceRequest
	if err := proto.Unmarshal(b, &req); err != nil {
		t.Fatalf("a record is no request: %v", err)
	}
	return &req
}

// flat lists every span with its resource and scope, each as a request of
// its own in deterministic bytes: what must survive a split.
func flat(t fataler, req *coltracepb.ExportTraceServiceRequest, keep func(*tracepb.Span) bool) []string {
	t.Helper()
	var out []string
	for _, rs := range req.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			for _, sp := range ss.GetSpans() {
				if !keep(sp) {
					continue
				}
				one := &tracepb.ResourceSpans{Resource: rs.GetResource(), SchemaUrl: rs.GetSchemaUrl(), ScopeSpans: []*tracepb.ScopeSpans{{
					Scope: ss.GetScope(), SchemaUrl: ss.GetSchemaUrl(), Spans: []*tracepb.Span{sp},
				}}}
				one.ProtoReflect().SetUnknown(rs.ProtoReflect().GetUnknown())
				one.GetScopeSpans()[0].ProtoReflect().SetUnknown(ss.ProtoReflect().GetUnknown())
				b, err := proto.MarshalOptions{Deterministic: true}.Marshal(one)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, string(b))
			}
		}
	}
	return out
}

func judge(sp *tracepb.Span) signal.Reason {
	head := traces.Head{
		TraceID: sp.GetTraceId(), SpanID: sp.GetSpanId(), ParentSpanID: sp.GetParentSpanId(),
		Start: sp.GetStartTimeUnixNano(), End: sp.GetEndTimeUnixNano(),
	}
	return head.Judge(window)
}

func TestSplitKeepsWholeRequest(t *testing.T) {
	req := newRequest("shop", newSpan(1, 1), newSpan(1, 2), newSpan(1, 3))
	records, rejected, err := traces.Signal.NewSplitter().Split(marshal(t, req), options())
	if err != nil || rejected.Total() != 0 {
		t.Fatalf("Split: %v, rejected %v", err, rejected)
	}
	if len(records) != 1 || records[0].Items != 3 {
		t.Fatalf("one trace gave %d records: %+v", len(records), records)
	}
	if diff := cmp.Diff(req, unmarshal(t, records[0].Value), protocmp.Transform()); diff != "" {
		t.Errorf("the record differs from the request (-want +got):\n%s", diff)
	}
}

func TestSplitEmptyRequest(t *testing.T) {
	for name, req := range map[string]*coltracepb.ExportTraceServiceRequest{
		"nothing": {}, "no scopes": {ResourceSpans: []*tracepb.ResourceSpans{{}}}, "no spans": newRequest("shop"),
	} {
		records, rejected, err := traces.Signal.NewSplitter().Split(marshal(t, req), options())
		if err != nil || len(records) != 0 || rejected.Total() != 0 {
			t.Errorf("%s: %d records, rejected %v, %v", name, len(records), rejected, err)
		}
	}
}

func TestSplitRejects(t *testing.T) {
	tests := map[string]struct {
		edit func(*tracepb.Span)
		want signal.Reason
	}{
		"trace id too short":       {func(s *tracepb.Span) { s.TraceId = s.TraceId[:15] }, traces.BadTraceID},
		"trace id all zero":        {func(s *tracepb.Span) { s.TraceId = make([]byte, 16) }, traces.BadTraceID},
		"no trace id":              {func(s *tracepb.Span) { s.TraceId = nil }, traces.BadTraceID},
		"span id too long":         {func(s *tracepb.Span) { s.SpanId = make([]byte, 9) }, traces.BadSpanID},
		"span id all zero":         {func(s *tracepb.Span) { s.SpanId = make([]byte, 8) }, traces.BadSpanID},
		"parent id of odd length":  {func(s *tracepb.Span) { s.ParentSpanId = []byte{1, 2} }, traces.BadParentSpanID},
		"parent id all zero is ok": {func(s *tracepb.Span) { s.ParentSpanId = make([]byte, 8) }, signal.Accepted},
		"never started":            {func(s *tracepb.Span) { s.StartTimeUnixNano = 0 }, traces.BadStartTime},
		"started long ago":         {func(s *tracepb.Span) { s.StartTimeUnixNano -= uint64(8 * 24 * time.Hour) }, traces.BadStartTime},
		"starts in the future":     {func(s *tracepb.Span) { s.StartTimeUnixNano += uint64(2 * time.Hour) }, traces.BadStartTime},
		"never ended":              {func(s *tracepb.Span) { s.EndTimeUnixNano = 0 }, traces.BadEndTime},
		"ends before it starts":    {func(s *tracepb.Span) { s.EndTimeUnixNano = s.StartTimeUnixNano - 5 }, signal.Accepted},
		"ends at the latest":       {func(s *tracepb.Span) { s.EndTimeUnixNano = window.Latest }, signal.Accepted},
		"ends too late":            {func(s *tracepb.Span) { s.EndTimeUnixNano = window.Latest + 1 }, traces.BadEndTime},
		"larger than a record":     {func(s *tracepb.Span) { s.Name = strings.Repeat("x", 900<<10) }, signal.TooLarge},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			good, odd := newSpan(1, 1), newSpan(1, 2, tc.edit)
			records, rejected, err := traces.Signal.NewSplitter().Split(marshal(t, newRequest("shop", good, odd)), options())
			if err != nil {
				t.Fatal(err)
			}
			var want signal.Rejected
			stored := 2
			if tc.want != signal.Accepted {
				want.Count[tc.want], stored = 1, 1
			}
			if diff := cmp.Diff(want.Count, rejected.Count); diff != "" {
				t.Errorf("rejected (-want +got):\n%s", diff)
			}
			spans := 0
			for _, r := range records {
				spans += r.Items
			}
			if spans != stored {
				t.Errorf("%d spans kept, want %d", spans, stored)
			}
			if msg := traces.Signal.Explain(&rejected, window, 900<<10); (msg == "") != (tc.want == signal.Accepted) {
				t.Errorf("message %q for reason %v", msg, tc.want)
			}
		})
	}
}

func TestSplitMalformed(t *testing.T) {
	whole := marshal(t, newRequest("shop", newSpan(1, 1)))
	for cut := 1; cut < len(whole); cut++ {
		var req coltracepb.ExportTraceServiceRequest
		wantErr := proto.Unmarshal(whole[:cut], &req) != nil
		_, _, err := traces.Signal.NewSplitter().Split(whole[:cut], options())
		if errors.Is(err, signal.ErrMalformed) != wantErr {
			t.Errorf("cut at %d: %v, the official runtime refuses: %v", cut, err, wantErr)
		}
	}
}

// The depth to which values nest is limited as in the official runtime, which
// spares the decoder's stack.
func TestSplitDepth(t *testing.T) {
	for _, depth := range []int{1, 100, 4990, 4995, 4996, 4997, 4998, 4999, 5000, 5010} {
		v := &commonpb.AnyValue{}
		for range depth {
			v = &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: &commonpb.ArrayValue{Values: []*commonpb.AnyValue{v}}}}
		}
		b := marshal(t, newRequest("shop", newSpan(1, 1, func(s *tracepb.Span) { s.Attributes[0].Value = v })))
		wantErr := proto.Unmarshal(b, &coltracepb.ExportTraceServiceRequest{}) != nil
		if _, _, err := traces.Signal.NewSplitter().Split(b, options()); (err != nil) != wantErr {
			t.Errorf("depth %d: %v, the official runtime refuses: %v", depth, err, wantErr)
		}
	}
}

// Whatever the request: each record is a request within the size, holds only
// traces of its partition, and together they hold every acceptable span once,
// with its own resource and scope; and a second split gives the same bytes.
func TestSplitProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		req := drawRequest(t)
		opts := options()
		opts.Partitions = rapid.IntRange(1, 20).Draw(t, "partitions")
		opts.MaxRecordBytes = rapid.IntRange(600, 5000).Draw(t, "max")
		b, err := proto.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		s := traces.Signal.NewSplitter()
		records, rejected, err := s.Split(b, opts)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range records {
			if len(r.Value) > opts.MaxRecordBytes {
				t.Fatalf("a record of %d bytes, the limit is %d", len(r.Value), opts.MaxRecordBytes)
			}
			part := new(coltracepb.ExportTraceServiceRequest)
			if err := proto.Unmarshal(r.Value, part); err != nil {
				t.Fatal(err)
			}
			spans := flat(t, part, func(sp *tracepb.Span) bool {
				if p := traces.Partition(sp.GetTraceId(), opts.Partitions); p != r.Partition {
					t.Fatalf("a span of partition %d in a record of %d", p, r.Partition)
				}
				return true
			})
			if len(spans) != r.Items {
				t.Fatalf("record says %d spans, holds %d", r.Items, len(spans))
			}
			got = append(got, spans...)
		}
		want := flat(t, req, func(sp *tracepb.Span) bool { return judge(sp) == signal.Accepted })
		if int64(len(want)) != int64(len(got))+rejected.Count[signal.TooLarge] {
			t.Fatalf("%d spans acceptable, %d kept, %d too large", len(want), len(got), rejected.Count[signal.TooLarge])
		}
		count := map[string]int{}
		for _, sp := range want {
			count[sp]++
		}
		for _, sp := range got {
			if count[sp]--; count[sp] < 0 {
				t.Fatalf("a span that was not sent, or was kept twice")
			}
		}
		again, _, err := traces.Signal.NewSplitter().Split(b, opts)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(records, again); diff != "" {
			t.Fatalf("the second split differs:\n%s", diff)
		}
	})
}

// fataler is what helpers need of a testing.TB or a rapid.T.
type fataler interface {
	Helper()
	Fatal(args ...any)
}

func drawRequest(t *rapid.T) *coltracepb.ExportTraceServiceRequest {
	req := &coltracepb.ExportTraceServiceRequest{}
	id := byte(0)
	for r := range rapid.IntRange(0, 3).Draw(t, "resources") {
		rs := &tracepb.ResourceSpans{}
		if rapid.Bool().Draw(t, "resource") {
			rs.Resource = &resourcepb.Resource{Attributes: []*commonpb.KeyValue{otlptest.Text("service.name", fmt.Sprint("service ", r))}}
			rs.SchemaUrl = rapid.StringN(0, 10, 40).Draw(t, "schema")
		}
		for c := range rapid.IntRange(0, 3).Draw(t, "scopes") {
			ss := &tracepb.ScopeSpans{}
			if rapid.Bool().Draw(t, "scope") {
				ss.Scope = &commonpb.InstrumentationScope{Name: fmt.Sprint("scope ", c)}
			}
			for range rapid.IntRange(0, 12).Draw(t, "spans") {
				id++
				ss.Spans = append(ss.Spans, newSpan(byte(rapid.IntRange(0, 9).Draw(t, "trace")), id, func(s *tracepb.Span) {
					s.Name = strings.Repeat("n", rapid.IntRange(0, 700).Draw(t, "name"))
				}))
			}
			rs.ScopeSpans = append(rs.ScopeSpans, ss)
		}
		req.ResourceSpans = append(req.ResourceSpans, rs)
	}
	return req
}

// The partition of a trace is stored data: this golden value may never change.
func TestPartitionIsForever(t *testing.T) {
	id := []byte{0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36}
	for partitions, want := range map[int]int{1: 0, 12: 2, 64: 54, 1000: 582} {
		if got := traces.Partition(id, partitions); got != want {
			t.Errorf("of %d partitions: %d, want %d", partitions, got, want)
		}
	}
}

// How deep messages may be nested is the official runtime's rule too; no fuzzer
// gets that far.
func TestNestingEndsWhereTheOfficialRuntimeEndsIt(t *testing.T) {
	field := func(num protowire.Number, value []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), value)
	}
	accepted, refused := 0, 0
	for innermost, kv := range map[string][]byte{
		"text":   append(field(1, []byte("k")), field(2, field(1, []byte("v")))...),
		"number": append(field(1, []byte("k")), field(2, []byte{0x18, 1})...),
		"empty":  nil,
	} {
		b := kv
		for depth := 1; depth < 3335; depth++ {
			b = field(2, field(6, field(1, b))) // a KeyValue with a list of KeyValues as its value
			if depth < 3325 {
				continue
			}
			req := field(1, field(1, field(1, b)))
			want := proto.Unmarshal(req, &coltracepb.ExportTraceServiceRequest{})
			if want == nil {
				accepted++
			} else {
				refused++
			}
			if got := traces.Signal.Check(req); (got == nil) != (want == nil) {
				t.Errorf("%s below %d lists: Check = %v, the official runtime: %v", innermost, depth, got, want)
			}
			if _, _, got := traces.AddHostAddress(nil, req, "10.1.2.3"); (got == nil) != (want == nil) {
				t.Errorf("%s below %d lists: AddHostAddress = %v, the official runtime: %v", innermost, depth, got, want)
			}
		}
	}
	if accepted == 0 || refused == 0 {
		t.Errorf("%d accepted and %d refused: the limit is elsewhere", accepted, refused)
	}
}

// FuzzSplit holds the walker to the official protobuf runtime: it accepts the
// same byte strings, repairs those whose texts alone the runtime refuses, and keeps the same spans.
func FuzzSplit(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(marshal(f, newRequest("shop", newSpan(1, 1), newSpan(2, 2))))
	f.Add(marshal(f, newRequest("\xc3\xa9", newSpan(1, 1, func(s *tracepb.Span) {
		s.Links = []*tracepb.Span_Link{{TraceId: s.TraceId, SpanId: s.SpanId, TraceState: "a=b"}}
		s.Events = []*tracepb.Span_Event{{Name: "exception", Attributes: s.Attributes}}
		s.Status = &tracepb.Status{Message: "m", Code: 2}
		s.Flags = 257
	}))))
	f.Add([]byte{0x0b, 0x0c})                                           // an empty group
	f.Add([]byte{0x0a, 0x02, 0x0a, 0x00, 0x0a, 0x04, 0x12, 0x02, 1, 1}) // merged messages
	f.Add(spoiled(marshal(f, newRequest("a~b~~", newSpan(1, 1), newSpan(2, 2, func(s *tracepb.Span) { s.Name = "~" })))))
	lenient, err := otlptest.NewLenient(new(coltracepb.ExportTraceServiceRequest))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		strict := proto.Unmarshal(in, new(coltracepb.ExportTraceServiceRequest))
		if err := traces.Signal.Check(in); (err != nil) != (strict != nil) {
			t.Fatalf("Check = %v, the official runtime: %v", err, strict)
		}
		want, wantErr := lenient.Repaired(in)
		repaired, texts, err := traces.Signal.Repair([]byte("x"), in)
		if (err != nil) != (wantErr != nil) || err == nil && (texts == 0) != (strict == nil) {
			t.Fatalf("Repair = %d texts, %v, the official runtime: %v", texts, err, wantErr)
		}
		records, rejected, err := traces.Signal.NewSplitter().Split(in, options())
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("Split = %v, the official runtime: %v", err, wantErr)
		}
		if err != nil {
			return
		}
		if texts > 0 {
			repaired = repaired[1:]
		}
		if got, err := lenient.Repaired(repaired); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("repaired %q, want %q, %v", got, want, err)
		}
		req := unmarshal(t, repaired)
		var count signal.Rejected
		flat(t, req, func(sp *tracepb.Span) bool { count.Count[judge(sp)]++; return false })
		var got []string
		for _, r := range records {
			got = append(got, flat(t, unmarshal(t, r.Value), func(*tracepb.Span) bool { return true })...)
		}
		if kept := count.Count[signal.Accepted] - rejected.Count[signal.TooLarge]; int64(len(got)) != kept {
			t.Fatalf("%d spans kept, want %d", len(got), kept)
		}
		expect := map[string]int{}
		for _, sp := range flat(t, req, func(sp *tracepb.Span) bool { return judge(sp) == signal.Accepted }) {
			expect[sp]++
		}
		for _, sp := range got {
			if expect[sp]--; expect[sp] < 0 {
				t.Fatal("a span changed on the way")
			}
		}
	})
}

// A request that is sent again is judged at another time, and other spans of it may be too old
// by then. What the content hash is of is the same, so the copies are recognized.
func TestContentDoesNotDependOnTheTime(t *testing.T) {
	ago := func(d time.Duration) func(*tracepb.Span) {
		return func(s *tracepb.Span) {
			s.StartTimeUnixNano -= uint64(d)
			s.EndTimeUnixNano -= uint64(d)
		}
	}
	const week = 7 * 24 * time.Hour
	req := newRequest("shop", newSpan(1, 1), newSpan(1, 2, ago(week-time.Minute)), newSpan(1, 3), newSpan(2, 4, ago(week-time.Minute)))
	req.ResourceSpans = append(req.ResourceSpans, newRequest("cart", newSpan(1, 5, ago(week-time.Minute)), newSpan(3, 6)).ResourceSpans...)
	body := marshal(t, req)
	for _, limit := range []int{900 << 10, 400} { // whole records, and ones cut after a span or two
		opts := options()
		opts.MaxRecordBytes = limit
		first, rejected, err := traces.Signal.NewSplitter().Split(body, opts)
		if err != nil || rejected.Total() != 0 {
			t.Fatalf("first: %v, rejected %v", err, rejected)
		}
		known := map[string]bool{}
		for _, r := range first {
			if !bytes.Equal(r.Content, r.Value) {
				t.Error("nothing was rejected, and the content is not the value")
			}
			known[string(r.Content)] = true
		}
		opts.Window = signal.WindowAt(now.Add(time.Hour), week, time.Hour)
		again, rejected, err := traces.Signal.NewSplitter().Split(body, opts)
		if err != nil || rejected.Count[traces.BadStartTime] != 3 || rejected.Total() != 3 {
			t.Fatalf("again: %v, rejected %v", err, rejected)
		}
		spans := 0
		for _, r := range again {
			spans += r.Items
			if !known[string(r.Content)] {
				t.Errorf("limit %d: a record of partition %d has another content than the first time", limit, r.Partition)
			}
			for _, text := range flat(t, unmarshal(t, r.Value), func(sp *tracepb.Span) bool { return window.Earliest+uint64(time.Hour) > sp.GetStartTimeUnixNano() }) {
				t.Errorf("a span that is too old is in the record: %q", text)
			}
		}
		if spans != 3 {
			t.Errorf("limit %d: %d spans are in the records, want 3", limit, spans)
		}
	}
}

// A request that is too large for a server goes there in pieces, whatever the spans' times and sizes.
func TestCut(t *testing.T) {
	large := func(n int) func(*tracepb.Span) { return func(s *tracepb.Span) { s.Name = strings.Repeat("x", n) } }
	never := func(s *tracepb.Span) { s.StartTimeUnixNano, s.EndTimeUnixNano = 0, 1<<64-1 }
	req := newRequest("shop", newSpan(1, 1, large(3000)), newSpan(2, 2, never), newSpan(0, 3))
	req.ResourceSpans = append(req.ResourceSpans, newRequest("cart", newSpan(3, 4, large(700)), newSpan(4, 5, large(700))).ResourceSpans...)
	pieces, rejected, err := traces.Signal.NewSplitter().Cut(marshal(t, req), 1500)
	if err != nil || rejected.Total() != 1 || rejected.Count[traces.BadTraceID] != 1 {
		t.Fatalf("Cut: %v, rejected %v", err, rejected)
	}
	keep := func(sp *tracepb.Span) bool { return sp.GetTraceId()[0] != 0 }
	var got []string
	for i, p := range pieces {
		if len(p.Value) > 1500 && p.Items > 1 {
			t.Errorf("piece %d has %d bytes and %d spans", i, len(p.Value), p.Items)
		}
		got = append(got, flat(t, unmarshal(t, p.Value), keep)...)
	}
	if diff := cmp.Diff(flat(t, req, keep), got); diff != "" {
		t.Errorf("spans (-want +got):\n%s", diff)
	}
	if _, _, err := traces.Signal.NewSplitter().Cut([]byte("garbage"), 1500); !errors.Is(err, signal.ErrMalformed) {
		t.Errorf("garbage: %v", err)
	}
}

// Split asks for memory once, and the records fit into it: a request that waits holds no more than that.
func TestRecordsFitTheirBuffer(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	requests := otlptest.New(1, otlptest.Options{Start: start, SpansPerSecond: 1000})
	splitter := traces.Signal.NewSplitter()
	asked, used, late := 0, 0, 0
	for i := range 500 {
		in := requests.RequestBytes(1 + i%70)
		opts := options()
		opts.Window = signal.Window{Earliest: uint64(start.UnixNano()), Latest: uint64(start.Add(time.Hour).UnixNano())}
		opts.Partitions = 1 + i%7
		opts.SplitBytes = []int{0, 100, 5000}[i%3]
		if i%2 == 0 {
			opts.Window.Latest = medianEnd(t, in)
		}
		var buffer []byte
		opts.Buffer = func(size int) []byte {
			if buffer != nil {
				t.Fatal("memory was asked for twice")
			}
			buffer = make([]byte, size)
			asked += size
			return buffer
		}
		records, _, err := splitter.Split(in, opts)
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		for _, r := range records {
			if &r.Content[0] != &buffer[at] {
				t.Fatalf("request %x: a record is not at %d of the memory of %d bytes", in, at, len(buffer))
			}
			if at += len(r.Content); &r.Value[0] == &r.Content[0] {
				continue
			}
			late++
			if &r.Value[0] != &buffer[at] {
				t.Fatalf("request %x: a value is not at %d of the memory of %d bytes", in, at, len(buffer))
			}
			at += len(r.Value)
		}
		used += at
	}
	t.Logf("%d bytes asked for, %d used, %d records with late spans", asked, used, late)
	if used < asked*9/10 || late < 100 {
		t.Errorf("%d bytes asked for, %d used, %d records with late spans", asked, used, late)
	}
}

// medianEnd returns a time before which half of the spans end.
func medianEnd(t *testing.T, in []byte) uint64 {
	t.Helper()
	var ends []uint64
	for _, rs := range unmarshal(t, in).GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			for _, sp := range ss.GetSpans() {
				ends = append(ends, sp.GetEndTimeUnixNano())
			}
		}
	}
	slices.Sort(ends)
	return ends[len(ends)/2]
}
