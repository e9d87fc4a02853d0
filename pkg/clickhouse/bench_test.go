package clickhouse

import (
	"fmt"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	driver "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	batch "github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/metaflowys/metaflow-server/pkg/testkit/cputime"
)

const (
	benchRows       = 20_000
	benchAttributes = 16
)

// benchSpan is a row before it is laid out in columns, like a decoded span.
type benchSpan struct {
	traceID, spanID string
	start           time.Time
	duration        int64
	labels          [6]string
	attributes      attributeList
}

// attributeList is the cheapest map that clickhouse-go accepts.
type attributeList []proto.KV[string, string]

func (attributeList) Put(_, _ any) {}

func (a *attributeList) Iterator() column.MapIterator { return &attributeIterator{list: *a, at: -1} }

type attributeIterator struct {
	list attributeList
	at   int
}

func (i *attributeIterator) Next() bool { i.at++; return i.at < len(i.list) }
func (i *attributeIterator) Key() any   { return i.list[i.at].Key }
func (i *attributeIterator) Value() any { return i.list[i.at].Value }

func benchSpans() []benchSpan {
	spans := make([]benchSpan, benchRows)
	for i := range spans {
		s := &spans[i]
		s.traceID, s.spanID = fmt.Sprintf("%032x", i/8+1), fmt.Sprintf("%016x", i+1)
		s.start, s.duration = time.Unix(1_800_000_000, int64(i)).UTC(), int64(i)
		for l := range s.labels {
			s.labels[l] = "label-" + strconv.Itoa(l) + "-" + strconv.Itoa(i%(10*(l+1)))
		}
		for a := range benchAttributes {
			s.attributes = append(s.attributes, proto.KV[string, string]{
				Key: "attribute.key." + strconv.Itoa(a), Value: "value of some length " + strconv.Itoa(i*a%1000),
			})
		}
	}
	return spans
}

const benchTable = ` (trace_id FixedString(32), span_id FixedString(16), start_time DateTime64(9, 'UTC'), duration_ns Int64,
	l0 LowCardinality(String), l1 LowCardinality(String), l2 LowCardinality(String),
	l3 LowCardinality(String), l4 LowCardinality(String), l5 LowCardinality(String),
	attributes Map(LowCardinality(String), String)) ENGINE = Null`

// typedColumns are the table's columns in ch-go, reused for every block.
type typedColumns struct {
	traceID, spanID proto.ColFixedStr
	start           *proto.ColDateTime64
	duration        proto.ColInt64
	labels          [6]*proto.ColLowCardinality[string]
	attributes      *proto.ColMap[string, string]
	input           proto.Input
}

func newTypedColumns() *typedColumns {
	c := &typedColumns{
		traceID:    proto.ColFixedStr{Size: 32},
		spanID:     proto.ColFixedStr{Size: 16},
		start:      new(proto.ColDateTime64).WithPrecision(proto.PrecisionNano).WithLocation(time.UTC),
		attributes: proto.NewMap(new(proto.ColStr).LowCardinality(), new(proto.ColStr)),
	}
	c.input = proto.Input{
		{Name: "trace_id", Data: &c.traceID},
		{Name: "span_id", Data: &c.spanID},
		{Name: "start_time", Data: c.start},
		{Name: "duration_ns", Data: &c.duration},
		{Name: "attributes", Data: c.attributes},
	}
	for i := range c.labels {
		c.labels[i] = new(proto.ColStr).LowCardinality()
		c.input = append(c.input, proto.InputColumn{Name: "l" + strconv.Itoa(i), Data: c.labels[i]})
	}
	return c
}

func (c *typedColumns) fill(spans []benchSpan) {
	c.input.Reset()
	for i := range spans {
		s := &spans[i]
		c.traceID.Buf = append(c.traceID.Buf, s.traceID...)
		c.spanID.Buf = append(c.spanID.Buf, s.spanID...)
		c.start.Append(s.start)
		c.duration.Append(s.duration)
		for l := range s.labels {
			c.labels[l].Append(s.labels[l])
		}
		c.attributes.AppendKV(s.attributes)
	}
}

// BenchmarkInsert compares ways to lay out and send a block whose rows are mostly a map,
// into a Null table. It measures the CPU of this process; the server is another one.
func BenchmarkInsert(b *testing.B) {
	spans := benchSpans()
	cfg := testConfig(b)
	cfg.Database = "benchmark_insert"
	d := migrated(b, cfg)
	mustExec(b, d, "CREATE TABLE "+cfg.Database+".t"+benchTable)

	b.Run("client=ch-go", func(b *testing.B) {
		ins := newInserter(b, cfg)
		cols := newTypedColumns()
		perRow(b, func() error {
			cols.fill(spans)
			return ins.Insert(b.Context(), 0, "t", "", cols.input, len(spans))
		})
	})
	b.Run("client=ch-go/compression=none", func(b *testing.B) {
		cfg := cfg
		cfg.Compression = compressionNone
		ins := newInserter(b, cfg)
		cols := newTypedColumns()
		perRow(b, func() error {
			cols.fill(spans)
			return ins.Insert(b.Context(), 0, "t", "", cols.input, len(spans))
		})
	})
	for name, layOut := range map[string]func(batch.Batch, []benchSpan) error{
		"rows": appendRows, "columns": appendColumns,
	} {
		b.Run("client=clickhouse-go/append="+name, func(b *testing.B) {
			conn, err := driver.Open(&driver.Options{
				Addr: cfg.Addresses, Compression: &driver.Compression{Method: driver.CompressionLZ4},
			})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			perRow(b, func() error {
				out, err := conn.PrepareBatch(b.Context(), "INSERT INTO "+cfg.Database+".t")
				if err != nil {
					return err
				}
				defer func() { _ = out.Close() }()
				if err := layOut(out, spans); err != nil {
					return err
				}
				return out.Send()
			})
		})
	}
}

func appendRows(out batch.Batch, spans []benchSpan) error {
	for i := range spans {
		s := &spans[i]
		err := out.Append(s.traceID, s.spanID, s.start, s.duration,
			s.labels[0], s.labels[1], s.labels[2], s.labels[3], s.labels[4], s.labels[5], &s.attributes)
		if err != nil {
			return err
		}
	}
	return nil
}

func appendColumns(out batch.Batch, spans []benchSpan) error {
	n := len(spans)
	traceIDs, spanIDs := make([]string, n), make([]string, n)
	starts, durations := make([]time.Time, n), make([]int64, n)
	var labels [6][]string
	for l := range labels {
		labels[l] = make([]string, n)
	}
	for i := range spans {
		s := &spans[i]
		traceIDs[i], spanIDs[i], starts[i], durations[i] = s.traceID, s.spanID, s.start, s.duration
		for l := range labels {
			labels[l][i] = s.labels[l]
		}
		if err := out.Column(10).AppendRow(&s.attributes); err != nil {
			return err
		}
	}
	columns := []any{traceIDs, spanIDs, starts, durations}
	for l := range labels {
		columns = append(columns, labels[l])
	}
	for i, c := range columns {
		if err := out.Column(i).Append(c); err != nil {
			return err
		}
	}
	return nil
}

// perRow runs insert and reports this process's CPU and allocations per row.
func perRow(b *testing.B, insert func() error) {
	b.Helper()
	if err := insert(); err != nil { // connects, and grows the reused buffers
		b.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu := cputime.Used(b)
	for b.Loop() {
		if err := insert(); err != nil {
			b.Fatal(err)
		}
	}
	cpu = cputime.Used(b) - cpu
	runtime.ReadMemStats(&after)
	rows := float64(b.N) * benchRows
	b.ReportMetric(float64(cpu.Nanoseconds())/rows, "cpu-ns/row")
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/rows, "allocs/row")
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/rows, "B/row")
	b.ReportMetric(rows/b.Elapsed().Seconds(), "rows/s")
}
