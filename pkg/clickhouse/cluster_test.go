package clickhouse

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/migrations"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// twoShards starts two engines as the shards of a cluster and creates MetaFlow's tables
// on each. There is no Keeper, so the tables are not replicated.
func twoShards(t *testing.T) (Config, [2]*DB) {
	t.Helper()
	cfg, dbs := twoEmptyShards(t)
	for _, d := range dbs {
		if err := d.Migrate(t.Context(), Retention{Spans: 30 * 24 * time.Hour}); err != nil {
			t.Fatal(err)
		}
	}
	return cfg, dbs
}

// twoEmptyShards is twoShards without the tables.
func twoEmptyShards(t *testing.T) (Config, [2]*DB) {
	t.Helper()
	free := [2]int{ports.Free(t), ports.Free(t)}
	var servers strings.Builder
	for _, port := range free {
		fmt.Fprintf(&servers, "<shard><replica><host>127.0.0.1</host><port>%d</port></replica></shard>", port)
	}
	cfg := testConfig(t)
	cfg.Cluster, cfg.Username = "two", "default"
	cfg.Addresses = []string{"127.0.0.1:1", ports.Address(free[0]), ports.Address(free[1])}
	var dbs [2]*DB
	for i, port := range free {
		startEngine(t, chengine.Options{
			DataDir:     t.TempDir(),
			NativePort:  port,
			ExtraConfig: "<remote_servers><two>" + servers.String() + "</two></remote_servers>",
		})
		one := cfg
		one.Addresses = []string{ports.Address(port)}
		dbs[i] = openDB(t, one)
		dbs[i].topology = migrations.PerShard
	}
	return cfg, dbs
}

func TestShardsHoldTheirRowsAndViewsShowThemAll(t *testing.T) {
	cfg, dbs := twoShards(t)
	ins := newInserter(t, cfg)
	if n := ins.Shards(); n != 0 {
		t.Errorf("%d shards before anybody asked", n)
	}
	if err := ins.Discover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := ins.Shards(); n != 2 {
		t.Fatalf("%d shards", n)
	}
	// Four partitions of the topic, whose traces differ.
	start := func(partition int) func(int) time.Time {
		return func(i int) time.Time { return day(1).Add(time.Duration(partition)*time.Hour + time.Duration(i)) }
	}
	for partition := range 4 {
		block := spanBlock(100*(partition+1), start(partition))
		for range 2 {
			err := ins.Insert(t.Context(), partition%ins.Shards(), "spans_local", strconv.Itoa(partition), block, 100*(partition+1))
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, want := range []string{"400", "600"} {
		if got := queryText(t, dbs[i], "SELECT count() FROM "+cfg.Database+".spans_local"); got != want {
			t.Errorf("shard %d holds %s rows, want %s", i, got, want)
		}
	}
	for i, d := range dbs {
		got := queryText(t, d, "SELECT count(), sum(duration_ns), uniqExact(start_time) FROM "+cfg.Database+".spans")
		if got != "1000\t149500\t1000" {
			t.Errorf("asked at node %d: %q", i, got)
		}
		for _, view := range []string{"otel_traces", "otel_traces_trace_id_ts"} {
			id := fmt.Sprintf("%032x", 100)
			got := queryText(t, d, "SELECT count() FROM "+cfg.Database+"."+view+" WHERE TraceId = '"+id+"'")
			want := map[string]string{"otel_traces": "4", "otel_traces_trace_id_ts": "1"}[view]
			if got != want {
				t.Errorf("%s at node %d: %s rows of a trace, want %s", view, i, got, want)
			}
		}
	}
	checkLookupAsksAllShards(t, cfg, start(3))
	checkRetentionOfEveryShardIsSeen(t, cfg, dbs[1])
	checkDisksOfEveryShard(t, cfg)
}

// A change of the retention may have reached only some nodes.
func checkRetentionOfEveryShardIsSeen(t *testing.T, cfg Config, changed *DB) {
	t.Helper()
	d := openDB(t, cfg)
	p := migrations.Params{Database: cfg.Database, Cluster: cfg.Cluster, Topology: migrations.PerShard}
	hour, month := migrations.TTL("start_time", time.Hour), migrations.TTL("start_time", 30*24*time.Hour)
	mustExec(t, changed, alterTTL(p, "spans_local", hour))
	got, err := d.currentTTLs(t.Context(), "spans_local")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{month, hour}, got); diff != "" {
		t.Errorf("TTLs of the cluster (-want +got):\n%s", diff)
	}
}

// Rows stored before a shard was added stay on the shard that their partition had then.
func checkLookupAsksAllShards(t *testing.T, cfg Config, start func(int) time.Time) {
	t.Helper()
	d := openDB(t, cfg)
	stored, other := keyOf(7, start(7)), keyOf(8, start(7))
	want := map[signal.Key]struct{}{stored: {}}
	for shard := range 2 {
		got, err := d.Existing(t.Context(), shard, true, spansTable(), []signal.Key{stored, other})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("of shard %d (-want +got):\n%s", shard, diff)
		}
	}
}

// Filters must be pushed to the other nodes; otherwise each sends all its rows.
func TestFiltersArePushedToTheShards(t *testing.T) {
	cfg, dbs := twoShards(t)
	for _, d := range dbs {
		mustExec(t, d, `INSERT INTO `+cfg.Database+`.spans_local (trace_id, span_id, start_time)
			SELECT lower(hex(sipHash128(number))), lower(hex(sipHash64(number))), toStartOfHour(now64(9, 'UTC')) - toIntervalMillisecond(10 * number) FROM numbers(200000)`)
	}
	trace := queryText(t, dbs[0], "SELECT trace_id FROM "+cfg.Database+".spans_local LIMIT 1")
	for _, sql := range []string{
		"SELECT * FROM " + cfg.Database + ".spans WHERE trace_id = '" + trace + "'",
		"SELECT * FROM " + cfg.Database + ".otel_traces WHERE TraceId = '" + trace + "'",
		"SELECT * FROM " + cfg.Database + ".otel_traces_trace_id_ts WHERE TraceId = '" + trace + "'",
	} {
		plan := queryText(t, dbs[0], "EXPLAIN PLAN distributed = 1, indexes = 1 "+sql)
		if n := strings.Count(plan, trace); n < 2 {
			t.Errorf("the filter is in the plan %d times, want it for each shard:\n%s", n, plan)
		}
	}
}

func TestUnknownClusterIsReported(t *testing.T) {
	cfg := testConfig(t)
	cfg.Cluster = "nowhere"
	ins := newInserter(t, cfg)
	err := ins.Discover(t.Context())
	if err == nil || !strings.Contains(err.Error(), "nowhere") || !strings.Contains(err.Error(), "does not have it") {
		t.Errorf("Discover = %v", err)
	}
	if err := ins.Insert(t.Context(), 0, "t", "token", numbers(0, 1), 1); err == nil {
		t.Error("insert into an unknown cluster succeeded")
	}
}

// The number of shards decides where a block goes. It must not change under a running
// writer, or a retried block would be stored on two shards.
func TestNumberOfShardsIsFixed(t *testing.T) {
	cfg := testConfig(t)
	cfg.Cluster = "c"
	ins := newInserter(t, cfg)
	s := ins.shards
	if err := s.adopt([][]string{{"a:1", "b:1"}, {"c:1"}}); err != nil {
		t.Fatal(err)
	}
	before := s.list[0][1]
	if err := s.adopt([][]string{{"b:1"}, {"c:1", "d:1"}}); err != nil {
		t.Errorf("replicas came and went: %v", err)
	}
	if s.list[0][0] != before || s.count() != 2 {
		t.Error("a replica that stayed lost its connections")
	}
	for _, found := range [][][]string{{{"a:1"}}, {{"a:1"}, {"b:1"}, {"c:1"}}, nil} {
		if err := s.adopt(found); err == nil {
			t.Errorf("adopted %v", found)
		}
	}
	var asked []string
	for i := range 2 {
		nodes, err := s.replicas(i)
		if err != nil {
			t.Fatal(err)
		}
		nodes[0].markDown()
		nodes, err = s.replicas(i)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			asked = append(asked, n.addr)
		}
	}
	if diff := cmp.Diff([]string{"b:1", "d:1", "c:1"}, asked); diff != "" {
		t.Errorf("order of replicas (-want +got):\n%s", diff)
	}
	if _, err := s.replicas(2); err == nil || errors.Unwrap(err) != nil {
		t.Errorf("shard 2: %v", err)
	}
}
