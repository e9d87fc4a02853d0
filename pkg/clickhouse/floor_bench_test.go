package clickhouse

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/klauspost/compress/s2"
	"golang.org/x/sys/unix"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/cputime"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// BenchmarkFloor measures what no server can do without that takes spans by OTLP, keeps
// them in Kafka and stores them in this table: to copy the bytes of a request, hash and
// compress the records, decompress them, compress the columns, and for ClickHouse to read
// the block and write it once, without merges and views. It reports CPU a span, ClickHouse's
// for the steps that are its own; for comparison, decoding as the writer does it and a table
// with its views.
func BenchmarkFloor(b *testing.B) {
	cfg := testConfig(b)
	cfg.Database = "benchmark_floor"
	d := migrated(b, cfg)
	ins := newInserter(b, cfg)
	mustExec(b, d, "CREATE TABLE "+cfg.Database+".parsed ENGINE = Null AS SELECT * FROM "+cfg.Database+".spans_local WHERE false")
	mustExec(b, d, "CREATE TABLE "+cfg.Database+".written AS "+cfg.Database+".spans_local")
	mustExec(b, d, "SYSTEM STOP MERGES "+cfg.Database+".written")
	for _, rows := range []int{1_000, 20_000} {
		request := otlptest.New(1, otlptest.Options{Start: day(1)}).RequestBytes(rows)
		packed := s2.EncodeSnappy(nil, request)
		src := columns.Source{Agent: "agent-1", Window: signal.Anytime}
		block := columns.NewSpans()
		if _, err := block.Append(request, src); err != nil {
			b.Fatal(err)
		}
		var wire proto.Buffer
		head := proto.Block{Rows: block.Rows(), Columns: len(block.Input())}
		if err := head.EncodeRawBlock(&wire, proto.Version, block.Input()); err != nil {
			b.Fatal(err)
		}
		own, sent := columns.NewSpans(), 0
		scratch := make([]byte, 0, s2.MaxEncodedLen(len(request)))
		compressed := newFrames(io.Discard, compress.LZ4)
		insert := func(table string) func() error {
			return func() error {
				sent++ // another token: the table would drop the rows of one that it knows
				return ins.Insert(b.Context(), 0, table, fmt.Sprint(rows, "-", sent), block.Input(), block.Rows())
			}
		}
		for _, step := range []struct {
			name   string
			engine bool // the CPU is ClickHouse's
			do     func() error
		}{
			{"copy", false, func() error { scratch = append(scratch[:0], request...); return nil }},
			{"hash", false, func() error { _ = delivery.HashOf(request); return nil }},
			{"compress", false, func() error { _ = s2.EncodeSnappy(scratch[:cap(scratch)], request); return nil }},
			{"decompress", false, func() error { _, err := s2.Decode(scratch[:cap(scratch)], packed); return err }},
			{"compress columns", false, func() error {
				if _, err := compressed.Write(wire.Buf); err != nil {
					return err
				}
				return compressed.flush()
			}},
			{"ClickHouse reads", true, insert("parsed")},
			{"ClickHouse reads and writes", true, insert("written")},
			{"present/decode", false, func() error {
				own.Reset()
				_, err := own.Append(request, src)
				return err
			}},
			{"present/ClickHouse with views and merges", true, insert(columns.TableSpans)},
		} {
			b.Run(fmt.Sprintf("%s/rows=%d", step.name, rows), func(b *testing.B) {
				pid := 0 // this process
				if step.engine {
					pid = engine.PID()
				}
				if err := step.do(); err != nil { // connects, and grows the reused buffers
					b.Fatal(err)
				}
				begun := processCPU(b, pid)
				for b.Loop() {
					if err := step.do(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64((processCPU(b, pid)-begun).Nanoseconds())/float64(b.N*rows), "cpu-ns/span")
			})
		}
	}
}

// processCPU returns the CPU time that a process has used; 0 means this one.
func processCPU(b *testing.B, pid int) time.Duration {
	b.Helper()
	if pid == 0 {
		return cputime.Used(b)
	}
	const sched = 2 // the CPU clock of another process: CPUCLOCK_SCHED with the complemented PID
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}
