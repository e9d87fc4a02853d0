package columns_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	chproto "github.com/ClickHouse/ch-go/proto"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/testkit/cputime"
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

// What a block had before Reset does not show: it is sent as the same bytes as a new block.
func TestUsedBlock(t *testing.T) {
	used := columns.NewSpans()
	rapid.Check(t, func(t *rapid.T) {
		used.Reset()
		fresh := columns.NewSpans()
		for i := range rapid.IntRange(1, 3).Draw(t, "requests") {
			wire, err := proto.Marshal(drawRequest(t))
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range []*columns.Spans{used, fresh} {
				if _, err := s.Append(wire, columns.Source{Agent: fmt.Sprint("agent-", i), Window: everything}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if !bytes.Equal(encode(t, used), encode(t, fresh)) {
			t.Error("a used block differs from a new one")
		}
	})
}

// A block that has had more distinct values than it remembers is right all the same.
func TestResetOfManyValues(t *testing.T) {
	used := columns.NewSpans()
	for i := range 20 {
		fresh := columns.NewSpans()
		for _, s := range []*columns.Spans{used, fresh} {
			g := otlptest.New(uint64(i), otlptest.Options{})
			for j := range 200 {
				src := columns.Source{Agent: fmt.Sprint("agent-", i, "-", j), Window: everything}
				if _, err := s.Append(g.RequestBytes(4), src); err != nil {
					t.Fatal(err)
				}
			}
		}
		if !bytes.Equal(encode(t, used), encode(t, fresh)) {
			t.Fatalf("block %d differs from a new one", i)
		}
		used.Reset()
	}
}

// A block that was large once keeps its memory when it is small, and says so.
func TestKept(t *testing.T) {
	s, g := columns.NewSpans(), otlptest.New(1, otlptest.Options{})
	fill := func(requests int) (bytes, kept int) {
		for range requests {
			if _, err := s.Append(g.RequestBytes(50), columns.Source{Window: everything}); err != nil {
				t.Fatal(err)
			}
		}
		bytes = s.Bytes()
		s.Reset()
		return bytes, s.Kept()
	}
	if bytes, kept := fill(2); kept < bytes || kept > 8*bytes {
		t.Errorf("%d bytes are kept of a block of %d", kept, bytes)
	}
	large, _ := fill(200)
	if small, kept := fill(2); kept < large {
		t.Errorf("%d bytes are kept after blocks of %d and %d", kept, large, small)
	}
}

func encode(t interface{ Fatal(...any) }, s *columns.Spans) []byte {
	var buf chproto.Buffer
	block := chproto.Block{Rows: s.Rows(), Columns: len(s.Input())}
	if err := block.EncodeRawBlock(&buf, chproto.Version, s.Input()); err != nil {
		t.Fatal(err)
	}
	return buf.Buf
}

// The two ways to send a joined block, with and without a copy, send the same.
func TestJoinedWritten(t *testing.T) {
	g := otlptest.New(1, otlptest.Options{})
	joined := columns.NewSpans()
	for range 3 {
		s := columns.NewSpans()
		if _, err := s.Append(g.RequestBytes(30), columns.Source{Window: everything}); err != nil {
			t.Fatal(err)
		}
		joined.Join(s)
	}
	var written bytes.Buffer
	w := chproto.NewWriter(&written, new(chproto.Buffer))
	block := chproto.Block{Rows: joined.Rows(), Columns: len(joined.Input())}
	if err := block.WriteBlock(w, chproto.Version, joined.Input()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if want := encode(t, joined); !bytes.HasSuffix(written.Bytes(), want) || len(want) == 0 {
		t.Errorf("%d bytes written, which do not end with the %d encoded", written.Len(), len(want))
	}
}

// BenchmarkJoin joins the blocks of 48 partitions and writes the result.
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
			w := chproto.NewWriter(io.Discard, new(chproto.Buffer))
			b.ReportAllocs()
			begun := cputime.Used(b)
			for b.Loop() {
				joined.Reset()
				for _, s := range blocks {
					joined.Join(s)
				}
				for _, c := range joined.Input() {
					c.Data.WriteColumn(w)
					if _, err := w.Flush(); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64((cputime.Used(b)-begun).Nanoseconds())/float64(b.N*joined.Rows()), "cpu-ns/span")
		})
	}
}
