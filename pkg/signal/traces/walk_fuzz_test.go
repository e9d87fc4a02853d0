package traces_test

import (
	"encoding/hex"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// The walk finds the spans that the official runtime finds, and that pdata, the
// collector's own decoder, finds in what both accept. pdata skips groups and fields of
// a wrong type differently, so it is asked about messages as the runtime writes them.
func FuzzWalk(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(otlptest.New(1, otlptest.Options{}).RequestBytes(3))
	for _, b := range otlptest.Hostile(20, 1_700_000_000_000_000_000) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var req coltracepb.ExportTraceServiceRequest
		err := proto.Unmarshal(in, &req)
		if got := traces.Signal.Check(in); (got != nil) != (err != nil) {
			t.Fatalf("Check = %v, the official runtime: %v", got, err)
		}
		if err != nil {
			return
		}
		var want []string
		for _, rs := range req.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					want = append(want, hex.EncodeToString(s.TraceId)+"/"+hex.EncodeToString(s.SpanId)+"/"+s.Name)
				}
			}
		}
		if got := traces.Signal.Count(in); got != len(want) {
			t.Fatalf("Count = %d, the official runtime: %d", got, len(want))
		}
		written, err := proto.Marshal(&req)
		if err != nil {
			t.Fatal(err)
		}
		if got := traces.Signal.Count(written); got != len(want) {
			t.Fatalf("Count = %d once written again, want %d", got, len(want))
		}
		other := ptraceotlp.NewExportRequest()
		if other.UnmarshalProto(written) != nil {
			return // it wants ids of the right length
		}
		var got []string
		for _, rs := range other.Traces().ResourceSpans().All() {
			for _, ss := range rs.ScopeSpans().All() {
				for _, s := range ss.Spans().All() {
					trace, span := s.TraceID(), s.SpanID()
					got = append(got, hex.EncodeToString(trace[:])+"/"+hex.EncodeToString(span[:])+"/"+s.Name())
				}
			}
		}
		for i := range want {
			if i < len(got) && len(want[i]) < len(got[i]) { // pdata reads no id as zeros
				got[i] = want[i]
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("spans of the official runtime and of pdata (-want +got):\n%s", diff)
		}
	})
}
