package traces_test

import (
	"slices"
	"testing"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

const benchSpans = 512

func benchRequests() [][]byte {
	g := otlptest.New(1, otlptest.Options{})
	var requests [][]byte
	for range 32 {
		requests = append(requests, g.RequestBytes(benchSpans))
	}
	return requests
}

// BenchmarkSplit is the gateway's work on the bytes of a request.
func BenchmarkSplit(b *testing.B) {
	requests := benchRequests()
	opts := signal.Options{Partitions: 12, Window: signal.Window{Latest: 1<<63 - 1}, MaxRecordBytes: 900 << 10}
	s := traces.Signal.NewSplitter()
	b.SetBytes(int64(len(requests[0])))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, _, err := s.Split(requests[i%len(requests)], opts); err != nil {
			b.Fatal(err)
		}
		i++
	}
	b.ReportMetric(float64(b.N*benchSpans)/b.Elapsed().Seconds(), "spans/s")
}

// BenchmarkUnmarshal is what it would cost to build messages first.
func BenchmarkUnmarshal(b *testing.B) {
	requests := benchRequests()
	b.SetBytes(int64(len(requests[0])))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		var req coltracepb.ExportTraceServiceRequest
		if err := proto.Unmarshal(requests[i%len(requests)], &req); err != nil {
			b.Fatal(err)
		}
		i++
	}
	b.ReportMetric(float64(b.N*benchSpans)/b.Elapsed().Seconds(), "spans/s")
}

// BenchmarkAddHostAddress is an agent's work on the bytes of a request: from a
// collector that knows the pods, and with the address to be added to all.
func BenchmarkAddHostAddress(b *testing.B) {
	untold := benchRequests()
	for i, req := range untold {
		untold[i] = withoutAddresses(b, req)
	}
	for name, requests := range map[string][][]byte{"told": benchRequests(), "added": untold} {
		b.Run(name, func(b *testing.B) {
			var buffer []byte
			b.SetBytes(int64(len(requests[0])))
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				out, added, err := traces.AddHostAddress(buffer[:0], requests[i%len(requests)], "10.1.2.3")
				if err != nil || (added > 0) != (name == "added") {
					b.Fatalf("added %d, %v", added, err)
				}
				if added > 0 {
					buffer = out
				}
				i++
			}
			b.ReportMetric(float64(b.N*benchSpans)/b.Elapsed().Seconds(), "spans/s")
		})
	}
}

func withoutAddresses(b *testing.B, req []byte) []byte {
	msg := unmarshal(b, req)
	for _, rs := range msg.GetResourceSpans() {
		rs.Resource.Attributes = slices.DeleteFunc(rs.Resource.Attributes, func(kv *commonpb.KeyValue) bool {
			return tellsAddress(&resourcepb.Resource{Attributes: []*commonpb.KeyValue{kv}})
		})
	}
	return marshal(b, msg)
}
