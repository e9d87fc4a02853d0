package columns_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/cputime"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// everything accepts spans of any time.
var everything = signal.Window{Latest: 1<<63 - 1}

// BenchmarkAppend decodes requests of 512 spans into a block of 50,000.
func BenchmarkAppend(b *testing.B) {
	const spans, blockRows = 512, 50_000
	g := otlptest.New(1, otlptest.Options{})
	var requests [][]byte
	for range 32 {
		requests = append(requests, g.RequestBytes(spans))
	}
	s := columns.NewSpans()
	b.SetBytes(int64(len(requests[0])))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := s.Append(requests[i%len(requests)], columns.Source{Window: everything}); err != nil {
			b.Fatal(err)
		}
		if i++; s.Rows() >= blockRows {
			s.Reset()
		}
	}
	b.ReportMetric(float64(b.N*spans)/b.Elapsed().Seconds(), "spans/s")
}

// BenchmarkAppendTick decodes one request into each of 48 blocks and empties them, as the
// partitions of a writer do once a second.
func BenchmarkAppendTick(b *testing.B) {
	for _, rows := range []int{20, 100, 400} {
		b.Run(fmt.Sprint("rows=", rows), func(b *testing.B) {
			g := otlptest.New(1, otlptest.Options{})
			blocks, requests := make([]*columns.Spans, 48), make([][]byte, 3*48)
			for i := range blocks {
				blocks[i] = columns.NewSpans()
			}
			for i := range requests {
				requests[i] = g.RequestBytes(rows)
			}
			b.ReportAllocs()
			i, begun := 0, cputime.Used(b)
			for b.Loop() {
				for _, s := range blocks {
					if _, err := s.Append(requests[i%len(requests)], columns.Source{Window: everything}); err != nil {
						b.Fatal(err)
					}
					i++
				}
				for _, s := range blocks {
					s.Reset()
				}
			}
			b.ReportMetric(float64((cputime.Used(b)-begun).Nanoseconds())/float64(b.N*len(blocks)*rows), "cpu-ns/span")
		})
	}
}

// BenchmarkAppendFlows decodes requests of 512 flows.
func BenchmarkAppendFlows(b *testing.B) {
	const flows, blockRows = 512, 50_000
	g := otlptest.NewFlows(1, time.Time{})
	var requests [][]byte
	for range 32 {
		requests = append(requests, g.RequestBytes(flows))
	}
	f := columns.NewFlows(nil)
	b.SetBytes(int64(len(requests[0])))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if refused, err := f.Append(requests[i%len(requests)], columns.Source{Window: everything}); err != nil || len(refused) > 0 {
			b.Fatal(refused, err)
		}
		if i++; f.Rows() >= blockRows {
			f.Reset()
		}
	}
	b.ReportMetric(float64(b.N*flows)/b.Elapsed().Seconds(), "flows/s")
}

// BenchmarkEncode encodes a block of 50,000 spans as it is sent.
func BenchmarkEncode(b *testing.B) {
	const blockRows = 50_000
	g := otlptest.New(1, otlptest.Options{})
	s := columns.NewSpans()
	for s.Rows() < blockRows {
		if _, err := s.Append(g.RequestBytes(512), columns.Source{Window: everything}); err != nil {
			b.Fatal(err)
		}
	}
	var buf proto.Buffer
	block := proto.Block{Rows: s.Rows(), Columns: len(s.Input())}
	b.ReportAllocs()
	for b.Loop() {
		buf.Reset()
		if err := block.EncodeRawBlock(&buf, proto.Version, s.Input()); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(buf.Buf)))
	b.ReportMetric(float64(b.N*s.Rows())/b.Elapsed().Seconds(), "spans/s")
	b.ReportMetric(float64(len(buf.Buf))/float64(s.Rows()), "bytes/span")
}
