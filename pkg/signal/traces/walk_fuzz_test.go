package traces_test

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"

	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// FuzzWalk holds the walk to what the official runtime and pdata read.
func FuzzWalk(f *testing.F) {
	for _, b := range walkSeeds() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if _, err := compareWalk(in); err != nil {
			t.Fatal(err)
		}
	})
}

// walkSeeds are what inputs are made of, always in the same order.
func walkSeeds() [][]byte {
	seeds := [][]byte{nil, otlptest.New(1, otlptest.Options{}).RequestBytes(3)}
	hostile := otlptest.Hostile(20, 1_700_000_000_000_000_000)
	for _, name := range slices.Sorted(maps.Keys(hostile)) {
		seeds = append(seeds, hostile[name])
	}
	return seeds
}

// readers is which decoders accepted an input, and how many spans it has.
type readers struct {
	runtime, pdata bool
	unknown        bool // pdata does so only without fields that the runtime does not know
	spans          int
}

// compareWalk returns an error unless the walk finds in the input the spans that the official
// runtime finds, and that pdata, the collector's own decoder, finds in what both accept. pdata skips
// groups and fields of a wrong type differently, so it is asked about messages as the runtime writes
// them.
func compareWalk(in []byte) (by readers, err error) {
	var req coltracepb.ExportTraceServiceRequest
	refused, got := proto.Unmarshal(in, &req), traces.Signal.Check(in)
	if by.runtime = refused == nil; by.runtime != (got == nil) {
		return by, fmt.Errorf("Check = %w, the official runtime: %w", got, refused)
	}
	if !by.runtime {
		return by, nil
	}
	var want []*tracepb.Span
	for _, rs := range req.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			want = append(want, ss.GetSpans()...)
		}
	}
	by.spans = len(want)
	if got := traces.Signal.Count(in); got != len(want) {
		return by, fmt.Errorf("Count = %d, the official runtime: %d", got, len(want))
	}
	written, err := proto.Marshal(&req)
	if err != nil {
		return by, err
	}
	if got := traces.Signal.Count(written); got != len(want) {
		return by, fmt.Errorf("Count = %d once written again, want %d", got, len(want))
	}
	if by.pdata, err = comparePdata(want, written); err == nil {
		return by, nil
	}
	// pdata still reads spans of instrumentation libraries, field 1000, which OTLP has removed.
	by.unknown = true
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(in, &req); err != nil {
		return by, err
	}
	if written, err = proto.Marshal(&req); err != nil {
		return by, err
	}
	by.pdata, err = comparePdata(want, written)
	return by, err
}

// comparePdata reports whether pdata reads the message, and returns an error unless it reads these spans.
func comparePdata(want []*tracepb.Span, written []byte) (reads bool, err error) {
	other := ptraceotlp.NewExportRequest()
	if reads = other.UnmarshalProto(written) == nil; reads { // it wants ids of the right length
		err = compareSpans(want, other.Traces())
	}
	return reads, err
}

func compareSpans(want []*tracepb.Span, got ptrace.Traces) error {
	if n := got.SpanCount(); n != len(want) {
		return fmt.Errorf("pdata reads %d spans, the official runtime %d", n, len(want))
	}
	i := 0
	for _, rs := range got.ResourceSpans().All() {
		for _, ss := range rs.ScopeSpans().All() {
			for _, s := range ss.Spans().All() {
				trace, span, w := s.TraceID(), s.SpanID(), want[i]
				if !sameID(w.GetTraceId(), trace[:]) || !sameID(w.GetSpanId(), span[:]) || w.GetName() != s.Name() {
					return fmt.Errorf("span %d of pdata is %s/%s %q, of the official runtime %x/%x %q", i, trace, span, s.Name(), w.GetTraceId(), w.GetSpanId(), w.GetName())
				}
				i++
			}
		}
	}
	return nil
}

// sameID takes no id for zeros, as pdata does.
func sameID(want, got []byte) bool {
	return bytes.Equal(want, got) || len(want) == 0 && bytes.Equal(got, make([]byte, len(got)))
}
