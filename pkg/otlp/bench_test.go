package otlp_test

import (
	"testing"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/otlp"
	"github.com/metaflowys/metaflow-server/pkg/otlptest"
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
	opts := otlp.Options{Partitions: 12, Window: otlp.Window{Latest: 1<<63 - 1}, MaxRecordBytes: 900 << 10}
	var s otlp.Splitter
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
