package columns_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// A joined block has the same content as one block of all requests.
func TestJoin(t *testing.T) {
	joined := columns.NewSpans()
	rapid.Check(t, func(t *rapid.T) {
		joined.Reset()
		var want []row
		for range rapid.IntRange(1, 4).Draw(t, "blocks") {
			block := columns.NewSpans()
			for i := range rapid.IntRange(0, 3).Draw(t, "requests") {
				wire, err := proto.Marshal(drawRequest(t))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := block.Append(wire, columns.Source{Agent: fmt.Sprint("agent-", i), Window: everything}); err != nil {
					t.Fatal(err)
				}
			}
			if block.Rows() > 0 {
				rows, err := read(block)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, rows...)
			}
			joined.Join(block)
		}
		if joined.Rows() != len(want) {
			t.Fatalf("%d rows, want %d", joined.Rows(), len(want))
		}
		if len(want) == 0 {
			return
		}
		got, err := read(joined)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("rows (-want +got):\n%s", diff)
		}
	})
}

func TestJoinFlows(t *testing.T) {
	g := otlptest.NewFlows(1, time.Time{})
	joined, one, other := columns.NewFlows(nil), columns.NewFlows(nil), columns.NewFlows(nil)
	for _, f := range []*columns.Flows{one, other} {
		if refused, err := f.Append(g.RequestBytes(20), columns.Source{Window: everything}); err != nil || len(refused) > 0 {
			t.Fatal(refused, err)
		}
		joined.Join(f)
	}
	want := append(readFlows(t, one), readFlows(t, other)...)
	if diff := cmp.Diff(want, readFlows(t, joined)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

// BenchmarkJoin joins the blocks of 48 partitions.
func BenchmarkJoin(b *testing.B) {
	for _, rows := range []int{20, 400} {
		b.Run(fmt.Sprint("rows=", rows), func(b *testing.B) {
			g := otlptest.New(1, otlptest.Options{})
			var blocks []*columns.Spans
			for range 48 {
				s := columns.NewSpans()
				if _, err := s.Append(g.RequestBytes(rows), columns.Source{Window: everything}); err != nil {
					b.Fatal(err)
				}
				blocks = append(blocks, s)
			}
			joined := columns.NewSpans()
			b.ReportAllocs()
			for b.Loop() {
				joined.Reset()
				for _, s := range blocks {
					joined.Join(s)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*joined.Rows()), "ns/span")
		})
	}
}
