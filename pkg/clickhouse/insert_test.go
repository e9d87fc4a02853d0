package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// day returns noon of a day within every retention of these tests.
func day(n int) time.Time {
	return time.Now().UTC().Truncate(24*time.Hour).Add(12*time.Hour).AddDate(0, 0, -n)
}

// spanBlock has some rows of the spans table, with the columns that matter to the tests:
// ids, times, and columns that fill caches as they encode.
func spanBlock(n int, start func(i int) time.Time) proto.Input {
	var (
		traceID  = proto.ColFixedStr{Size: 32}
		spanID   = proto.ColFixedStr{Size: 16}
		at       = new(proto.ColDateTime64).WithPrecision(proto.PrecisionNano).WithLocation(time.UTC)
		service  = new(proto.ColStr).LowCardinality()
		attrs    = proto.NewMap(new(proto.ColStr).LowCardinality(), new(proto.ColStr))
		kind     proto.ColEnum // learns the meaning of its names from the table
		duration proto.ColInt64
	)
	for i := range n {
		traceID.Append(fmt.Appendf(nil, "%032x", i/4+1))
		spanID.Append(fmt.Appendf(nil, "%016x", i+1))
		at.Append(start(i))
		service.Append("service-" + strconv.Itoa(i%3))
		attrs.AppendKV([]proto.KV[string, string]{{Key: "n", Value: strconv.Itoa(i)}, {Key: "http.route", Value: "/a"}})
		kind.Append("server")
		duration.Append(int64(i))
	}
	return proto.Input{
		{Name: "trace_id", Data: &traceID},
		{Name: "span_id", Data: &spanID},
		{Name: "start_time", Data: at},
		{Name: "service_name", Data: service},
		{Name: "attributes", Data: attrs},
		{Name: "kind", Data: &kind},
		{Name: "duration_ns", Data: &duration},
	}
}

func numbers(from, n int) proto.Input {
	var col proto.ColUInt64
	for i := range n {
		col.Append(uint64(from + i))
	}
	return proto.Input{{Name: "n", Data: &col}}
}

func TestTokenDecidesWhatIsStored(t *testing.T) {
	sameDay := func(int) time.Time { return day(1) }
	twoDays := func(i int) time.Time { return day(1 + i%2) }
	tests := map[string]struct {
		start  func(int) time.Time
		tokens []string
		want   string
	}{
		"once":                                 {sameDay, []string{"a"}, "100"},
		"sent twice under one token":           {sameDay, []string{"a", "a"}, "100"},
		"sent twice, of two daily partitions":  {twoDays, []string{"a", "a"}, "100"},
		"again after others":                   {twoDays, []string{"a", "b", "c", "a"}, "300"},
		"equal rows under tokens of their own": {sameDay, []string{"a", "b"}, "200"},
		"three times, of two daily partitions": {twoDays, []string{"a", "a", "a"}, "100"},
	}
	cfg := testConfig(t)
	d := migrated(t, cfg)
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			mustExec(t, d, "TRUNCATE TABLE "+cfg.Database+".spans_local")
			ins := newInserter(t, cfg)
			block := spanBlock(100, tc.start)
			for _, token := range tc.tokens {
				if err := ins.Insert(t.Context(), 0, "spans_local", name+token, block, 100); err != nil {
					t.Fatal(err)
				}
			}
			if got := queryText(t, d, "SELECT count() FROM "+cfg.Database+".spans"); got != tc.want {
				t.Errorf("%s rows, want %s", got, tc.want)
			}
			// Encoding fills caches of the columns; the rows must not change.
			sum := "SELECT sum(duration_ns), uniqExact(span_id), uniqExact(service_name), sum(toInt32(attributes['n'])), countIf(kind = 'server') FROM " +
				"(SELECT DISTINCT * FROM " + cfg.Database + ".spans)"
			if got := queryText(t, d, sum); got != "4950\t100\t3\t4950\t100" {
				t.Errorf("sums of the rows are %q", got)
			}
		})
	}
}

// A block above every size at which ClickHouse squashes or splits becomes one part.
func TestLargeBlockStaysOneBlock(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	mustExec(t, d, "CREATE TABLE "+cfg.Database+".big (n UInt64) ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 10")
	mustExec(t, d, "SYSTEM STOP MERGES "+cfg.Database+".big")
	const rows = 2_500_000
	ins := newInserter(t, cfg)
	block := numbers(0, rows)
	for range 2 {
		if err := ins.Insert(t.Context(), 0, "big", "token", block, rows); err != nil {
			t.Fatal(err)
		}
	}
	got := queryText(t, d, "SELECT count(), sum(rows) FROM system.parts WHERE database = '"+cfg.Database+"' AND table = 'big' AND active")
	if got != "1\t2500000" {
		t.Errorf("parts and rows are %q", got)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	for _, table := range []string{
		"checked (n UInt64, CONSTRAINT not_13 CHECK n != 13) ENGINE = MergeTree ORDER BY n",
		"narrow (n UInt64, e Enum8('a' = 1) MATERIALIZED toString(n)) ENGINE = MergeTree ORDER BY n",
		"parted (n UInt64) ENGINE = MergeTree PARTITION BY n ORDER BY n",
		"other (m UInt64) ENGINE = MergeTree ORDER BY m",
		"typed (n Array(UInt8)) ENGINE = MergeTree ORDER BY n",
	} {
		mustExec(t, d, "CREATE TABLE "+cfg.Database+"."+table)
	}
	refusing := ports.FreeAddress(t)
	tests := map[string]struct {
		table string
		rows  int
		addr  string
		want  fault.Class
		text  []string
	}{
		"a row violates a constraint":    {"checked", 20, "", fault.Rejected, []string{"20 rows", ".checked at 127.0.0.1", "VIOLATED_CONSTRAINT (469): Constraint `not_13`"}},
		"a row of very many violates it": {"checked", 3_000_000, "", fault.Rejected, []string{"3000000 rows", "VIOLATED_CONSTRAINT (469)"}},
		"a value is none of an enum":     {"narrow", 1, "", fault.Rejected, []string{"UNKNOWN_ELEMENT_OF_ENUM (691)"}},
		"more partitions than a block":   {"parted", 101, "", fault.Rejected, []string{"TOO_MANY_PARTS (252)"}},
		"the table does not exist":       {"missing", 1, "", fault.Retryable, []string{"UNKNOWN_TABLE (60)", "missing"}},
		"the column does not exist":      {"other", 1, "", fault.Retryable, []string{"NO_SUCH_COLUMN_IN_TABLE (16)"}},
		"nobody listens":                 {"checked", 1, refusing, fault.Retryable, []string{"connection refused", refusing}},
		"the name resolves to nothing":   {"checked", 1, "no.such.host.invalid:9000", fault.Retryable, []string{"no.such.host.invalid:9000"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := cfg
			if tc.addr != "" {
				cfg.Addresses = []string{tc.addr}
			}
			ins := newInserter(t, cfg)
			err := ins.Insert(t.Context(), 0, tc.table, "token", numbers(0, tc.rows), tc.rows)
			if err == nil {
				t.Fatal("Insert succeeded")
			}
			if got := fault.ClassOf(err); got != tc.want {
				t.Errorf("class %s, want %s", got, tc.want)
			}
			for _, text := range tc.text {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("error %q does not say %q", err, text)
				}
			}
			if tc.addr == "" {
				// The same inserter continues to work, with the same rows.
				if err := ins.Insert(t.Context(), 0, "checked", name, numbers(20, 5), 5); err != nil {
					t.Errorf("insert after the error: %v", err)
				}
			}
		})
	}
}

func TestColumnsOfUnequalLengthAreNotSent(t *testing.T) {
	ins := newInserter(t, testConfig(t))
	err := ins.Insert(t.Context(), 0, "t", "token", numbers(0, 5), 6)
	if err == nil || !strings.Contains(err.Error(), "column n has 5 rows, not 6") {
		t.Errorf("error %v", err)
	}
	if err := ins.Insert(t.Context(), 0, "t", "token", numbers(0, 0), 0); err != nil {
		t.Errorf("nothing to insert: %v", err)
	}
}

// A server that stops responding must not block a writer beyond its context, wherever in
// the exchange it stops.
func TestSilentServerEndsWithTheContext(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	mustExec(t, d, "CREATE TABLE "+cfg.Database+".t (n UInt64) ENGINE = MergeTree ORDER BY n")
	for name, answers := range map[string]int64{
		"before the login is answered": 0,
		"after the login":              1,
		"after the query":              2,
	} {
		t.Run(name, func(t *testing.T) {
			cfg := cfg
			cfg.Addresses = []string{silentAfter(t, engine.NativeAddr(), answers)}
			ins := newInserter(t, cfg)
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(200*time.Millisecond, cancel)
			start := time.Now()
			err := ins.Insert(ctx, 0, "t", "token", numbers(0, 2_000_000), 2_000_000)
			if !errors.Is(err, context.Canceled) || fault.ClassOf(err) != fault.Retryable {
				t.Errorf("error %v, class %s", err, fault.ClassOf(err))
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

// Without a cluster the addresses are replicas of each other.
func TestNextReplicaTakesOver(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	mustExec(t, d, "CREATE TABLE "+cfg.Database+".t (n UInt64) ENGINE = MergeTree ORDER BY n")
	cfg.Addresses = []string{"127.0.0.1:1", engine.NativeAddr()}
	ins := newInserter(t, cfg)
	if ins.Shards() != 1 {
		t.Errorf("%d shards", ins.Shards())
	}
	for i := range 3 {
		if err := ins.Insert(t.Context(), 0, "t", strconv.Itoa(i), numbers(i, 1), 1); err != nil {
			t.Fatal(err)
		}
	}
	if got := queryText(t, d, "SELECT count() FROM "+cfg.Database+".t"); got != "3" {
		t.Errorf("%s rows", got)
	}
	if err := ins.Insert(t.Context(), 1, "t", "x", numbers(0, 1), 1); err == nil || !strings.Contains(err.Error(), "shard 1 of 1") {
		t.Errorf("insert into a shard that is not there: %v", err)
	}
}

func TestInsertsShareBoundedConnections(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	mustExec(t, d, "CREATE TABLE "+cfg.Database+".t (n UInt64) ENGINE = MergeTree ORDER BY n")
	reg := prometheus.NewRegistry()
	ins, err := NewInserter(cfg, InserterOptions{Registerer: reg, MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer ins.Close()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := ins.Insert(t.Context(), 0, "t", strconv.Itoa(i), numbers(i*10, 10), 10); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(ins.shards.seeds[0].idle); n > 2 {
		t.Errorf("%d connections, bound 2", n)
	}
	_ = ins.Insert(t.Context(), 0, "missing", "x", numbers(0, 1), 1)
	want := `
# HELP metaflow_clickhouse_insert_errors_total Failed inserts, by fault class and by ClickHouse's name of the error.
# TYPE metaflow_clickhouse_insert_errors_total counter
metaflow_clickhouse_insert_errors_total{class="retryable",code="UNKNOWN_TABLE",table="missing"} 1
# HELP metaflow_clickhouse_inserted_rows_total Rows that ClickHouse acknowledged, including those it had already stored.
# TYPE metaflow_clickhouse_inserted_rows_total counter
metaflow_clickhouse_inserted_rows_total{table="t"} 80
`
	err = testutil.GatherAndCompare(reg, strings.NewReader(want),
		"metaflow_clickhouse_insert_errors_total", "metaflow_clickhouse_inserted_rows_total")
	if err != nil {
		t.Error(err)
	}
}

func TestCompressionOnTheWire(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	for _, name := range []string{"lz4", "zstd", "none"} {
		t.Run(name, func(t *testing.T) {
			cfg := cfg
			cfg.Compression = name
			ins := newInserter(t, cfg)
			block := spanBlock(1000, func(int) time.Time { return day(1) })
			if err := ins.Insert(t.Context(), 0, "spans_local", name, block, 1000); err != nil {
				t.Fatal(err)
			}
		})
	}
	if got := queryText(t, d, "SELECT count() FROM "+cfg.Database+".spans"); got != "3000" {
		t.Errorf("%s rows", got)
	}
}

// raceEnabled is set in builds with the race detector.
var raceEnabled bool

// A writer's memory is bounded by its batches. Sending them must not copy them.
func TestBlockIsSentWithoutACopy(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector adds allocations")
	}
	cfg := testConfig(t)
	d := migrated(t, cfg)
	mustExec(t, d, "CREATE TABLE "+cfg.Database+".t (n UInt64) ENGINE = Null")
	const rows = 4_000_000
	block := numbers(0, rows) // 32 MB
	for _, compression := range []string{compressionLZ4, compressionZSTD, compressionNone} {
		cfg.Compression = compression
		ins := newInserter(t, cfg)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := ins.Insert(t.Context(), 0, "t", "", block, rows); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		// zstd's own tables take 10 MiB.
		if got := (after.TotalAlloc - before.TotalAlloc) >> 20; got > 16 {
			t.Errorf("%s: %d MiB allocated for a block of %d MiB", compression, got, rows*8>>20)
		}
	}
}

// An idle connection may have been closed anywhere between client and server. The pool
// detects that before it sends a block.
func TestIdleConnectionIsCheckedFirst(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	mustExec(t, d, "CREATE TABLE "+cfg.Database+".t (n UInt64) ENGINE = MergeTree ORDER BY n")
	ins := newInserter(t, cfg)
	pool := ins.shards.seeds[0]
	for i, happens := range []func(c *conn){
		func(*conn) {},
		func(c *conn) { c.used = time.Time{} },
		func(c *conn) { c.used = time.Time{}; _ = c.wire.Close() },
	} {
		if len(pool.idle) > 0 {
			happens(pool.idle[0])
		}
		if err := ins.Insert(t.Context(), 0, "t", strconv.Itoa(i), numbers(i, 1), 1); err != nil {
			t.Errorf("insert %d: %v", i, err)
		}
		if len(pool.idle) != 1 {
			t.Errorf("insert %d left %d idle connections", i, len(pool.idle))
		}
	}
}
