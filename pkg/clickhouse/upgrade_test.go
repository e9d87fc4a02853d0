package clickhouse

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/migrations"
	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// releasedVersion is the version of migrations/testdata/released_0005*.sql.
const releasedVersion = 5

// releasedRetention is what the released schema was rendered with.
var releasedRetention = Retention{Spans: 30 * 24 * time.Hour, Flows: 7 * 24 * time.Hour}

// An installation of the released version is brought to the newest version,
// back, and forward again, while a writer inserts and readers query. No row is
// lost or stored twice, neither in the tables nor in those that materialized
// views fill, and no reader finds a view missing. Up, the schema is that of a
// new installation; down, it is the released one again.
func TestUpgradeUnderAWriter(t *testing.T) {
	cfg := testConfig(t)
	upgradeUnderAWriter(t, cfg, "released_0005.sql", openDB(t, cfg))
}

func TestUpgradeOfTwoShardsUnderAWriter(t *testing.T) {
	cfg, dbs := twoEmptyShards(t)
	upgradeUnderAWriter(t, cfg, "released_0005.shards.sql", dbs[:]...)
}

func upgradeUnderAWriter(t *testing.T, cfg Config, released string, nodes ...*DB) {
	db := cfg.Database
	for _, d := range nodes {
		installReleased(t, d, released)
	}
	before := definitions(t, nodes[0])

	ctx, stop := context.WithCancel(t.Context())
	g, ctx := errgroup.WithContext(ctx)
	t.Cleanup(stop)
	w := &upgradeWriter{ins: newInserter(t, cfg), shards: len(nodes), start: time.Now().Add(-time.Hour), released: map[string]bool{}}
	for name := range strings.SplitSeq(queryText(t, nodes[0], "SELECT concat(table, '.', name) FROM system.columns WHERE database = '"+db+"'"), "\n") {
		w.released[name] = true
	}
	if err := w.ins.Discover(ctx); err != nil {
		t.Fatal(err)
	}
	g.Go(func() error { return w.run(ctx) })
	// Here each node of a cluster migrates alone, so for a moment a view of one node reads
	// a column that the other lacks. That query fails, the node cuts off the other's part of
	// it, and the embedded engine aborts when a client does that. ON CLUSTER changes tables
	// before views, and takes views back before tables, on all nodes.
	if len(nodes) == 1 {
		g.Go(func() error {
			for ctx.Err() == nil {
				if err := readViews(ctx, nodes[0]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	// Each step leaves the writer time for some blocks before the next one.
	goOn := func() {
		t.Helper()
		for target := w.blocks.Load() + 6; w.blocks.Load() < target; {
			select {
			case <-ctx.Done():
				t.Fatal(g.Wait())
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	each := func(what string, f func(*DB) error) {
		t.Helper()
		for _, d := range nodes {
			if err := f(d); err != nil {
				stop()
				t.Fatalf("%s: %v; writer and readers: %v", what, err, g.Wait())
			}
		}
		goOn()
	}
	up := func(d *DB) error { return d.Migrate(ctx, releasedRetention) }

	goOn()
	each("up", up)
	checkVersion(t, nodes[0], migrations.Latest())
	insertService(t, w.ins, "upgraded", 1234)
	for _, d := range nodes[:1] { // nodes of this cluster do not replicate
		if got := queryText(t, d, "SELECT service, endpoint_count FROM "+db+".services"); got != "upgraded\t1234" {
			t.Errorf("services: %q", got)
		}
	}
	upgraded := definitions(t, nodes[0])
	if err := readViews(ctx, nodes[0]); err != nil {
		t.Error(err)
	}

	// What a migration of the large tables would do. A Distributed table never
	// has a column that the table below it lacks.
	suffixes := []string{"_local"}
	if len(nodes) > 1 {
		suffixes = append(suffixes, "_distributed")
	}
	for _, change := range []string{"ADD COLUMN IF NOT EXISTS later LowCardinality(String) CODEC(ZSTD(1))", "DROP COLUMN IF EXISTS later"} {
		for _, suffix := range suffixes {
			for _, table := range []string{"spans", "flows"} {
				each(change, func(d *DB) error {
					// A part that an insert of before the DROP writes after it keeps the column, and
					// the next mutation of a table without Keeper fails on it: docs/operate.md.
					w.inserts.Lock()
					defer w.inserts.Unlock()
					return d.exec(ctx, "ALTER TABLE "+db+"."+table+suffix+" "+change)
				})
			}
		}
		slices.Reverse(suffixes)
	}

	for v := migrations.Latest(); v > releasedVersion; v-- {
		each("down", func(d *DB) error {
			_, err := d.MigrateDown(ctx)
			return err
		})
		if err := readViews(ctx, nodes[0]); err != nil {
			t.Errorf("after the way down from %d: %v", v, err)
		}
	}
	checkVersion(t, nodes[0], releasedVersion)
	if diff := cmp.Diff(before, withoutComments(definitions(t, nodes[0]))); diff != "" {
		t.Errorf("the schema after down (-released +down):\n%s", diff)
	}
	each("up again", up)
	stop()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}

	counts := fmt.Sprintf("%d\t%d", w.spans, w.spans)
	if got := queryText(t, nodes[0], "SELECT count(), uniqExact(trace_id, span_id) FROM "+db+".spans"); got != counts {
		t.Errorf("spans %q, inserted %q", got, counts)
	}
	counts = fmt.Sprintf("%d\t%d", w.flows, w.flows)
	if got := queryText(t, nodes[0], "SELECT count(), uniqExact(agent_id, network_namespace, connection, time) FROM "+db+".flows"); got != counts {
		t.Errorf("flows %q, inserted %q", got, counts)
	}
	for _, d := range nodes {
		for filled, source := range map[string]string{
			"sum(spans) FROM " + db + ".service_addresses_local": db + ".spans_local WHERE ip != toIPv6('::') AND service_name != ''",
			"sum(flows) FROM " + db + ".flow_addresses_local":    db + ".flows_local",
		} {
			if got, want := queryText(t, d, "SELECT "+filled), queryText(t, d, "SELECT count() FROM "+source); got != want || want == "0" {
				t.Errorf("%s is %s, want %s", filled, got, want)
			}
		}
	}
	checkNewInstallation(t, cfg, upgraded, nodes[0])
}

// checkNewInstallation compares the definitions of an upgraded database with
// those of a new one.
func checkNewInstallation(t *testing.T, cfg Config, upgraded map[string]string, node *DB) {
	t.Helper()
	fresh := cfg
	fresh.Database += "_new"
	fresh.Addresses = node.cfg.Addresses
	d := openDB(t, fresh)
	d.topology = node.topology
	if err := d.Migrate(t.Context(), releasedRetention); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(definitions(t, d), upgraded); diff != "" {
		t.Errorf("the schema (-new +upgraded):\n%s", diff)
	}
}

// installReleased makes the schema of the released version on one node.
func installReleased(t *testing.T, d *DB, file string) {
	t.Helper()
	text, err := os.ReadFile("../../migrations/testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	sql := strings.NewReplacer(
		"Distributed('metaflow', 'metaflow',", "Distributed('"+d.cfg.Cluster+"', '"+d.cfg.Database+"',",
		"EXISTS metaflow;", "EXISTS "+d.cfg.Database+";",
		"metaflow.", d.cfg.Database+".",
	).Replace(string(text))
	_, sql, _ = strings.Cut(sql, "\n")
	for statement := range strings.SplitSeq(sql, ";\n") {
		if strings.TrimSpace(statement) != "" {
			mustExec(t, d, statement)
		}
	}
	for version, name := range []string{1: "spans", "otel_traces", "flows", "network", releasedVersion: "pods"} {
		if name != "" {
			mustExec(t, d, fmt.Sprintf("INSERT INTO %s.schema_migrations (version, name, applied) VALUES (%d, '%s', true)", d.cfg.Database, version, name))
		}
	}
	checkVersion(t, d, releasedVersion)
}

// withoutComments removes what the comments of columns say: views keep them on the way down.
func withoutComments(definitions map[string]string) map[string]string {
	comment := regexp.MustCompile(`(?m) COMMENT '.*'(,?)$`)
	for name, text := range definitions {
		definitions[name] = comment.ReplaceAllString(text, "$1")
	}
	return definitions
}

// definitions returns how ClickHouse defines each table and view of the
// database, by name, without the comments of views and the database's name.
func definitions(t *testing.T, d *DB) map[string]string {
	t.Helper()
	comment := regexp.MustCompile(`\s*COMMENT 'made by metaflow-server[^']*'`)
	keys := regexp.MustCompile(`PRIMARY KEY (\(.*\))\nORDER BY (\(.*\))`)
	found := map[string]string{}
	for name := range strings.SplitSeq(queryText(t, d, "SELECT name FROM system.tables WHERE database = '"+d.cfg.Database+"'"), "\n") {
		text := queryText(t, d, "SHOW CREATE TABLE "+d.cfg.Database+"."+name)
		text = strings.ReplaceAll(text, "'"+d.cfg.Database+"'", "'DB'")
		// A primary key that is the whole sorting key again, after a column left it, is
		// shown, but means the same as none.
		if key := keys.FindStringSubmatch(text); key != nil && key[1] == key[2] {
			text = strings.Replace(text, "PRIMARY KEY "+key[1]+"\n", "", 1)
		}
		found[name] = comment.ReplaceAllString(strings.ReplaceAll(text, d.cfg.Database+".", "DB."), "")
	}
	return found
}

// readViews queries each view once. It fails when one of them is missing or broken.
func readViews(ctx context.Context, d *DB) error {
	// A query ends by itself also when ctx does: the embedded engine aborts when a client
	// cuts one off.
	ctx = context.WithoutCancel(ctx)
	for _, from := range []string{"spans", "flows", "services", "service_network", "otel_traces", "trace_network(trace_id = '0')"} {
		var n uint64
		err := d.conn.QueryRow(ctx, "SELECT count() FROM "+d.cfg.Database+"."+from).Scan(&n)
		// A query that began before the views were replaced may miss a view below that is
		// gone by now. The next one succeeds.
		if err != nil && strings.Contains(err.Error(), "Unknown table") {
			err = d.conn.QueryRow(ctx, "SELECT count() FROM "+d.cfg.Database+"."+from).Scan(&n)
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", from, err)
		}
	}
	return nil
}

// upgradeWriter inserts spans and flows as a writer of the released version
// does: only the columns of that version, under tokens, and again when the
// outcome is not known.
type upgradeWriter struct {
	ins          *Inserter
	shards       int
	start        time.Time
	released     map[string]bool // table.column
	spans, flows int
	blocks       atomic.Int64
	inserts      sync.Mutex // held by one that runs
}

func (w *upgradeWriter) run(ctx context.Context) error {
	const rows = 200
	spans, flows := otlptest.New(1, otlptest.Options{Start: w.start}), otlptest.NewFlows(1, w.start)
	for i := 0; ctx.Err() == nil; i++ {
		for _, b := range []struct {
			columns.Block
			request []byte
			stored  *int
		}{
			{columns.NewSpans(), spans.RequestBytes(rows), &w.spans},
			{columns.NewFlows(nil), flows.RequestBytes(rows), &w.flows},
		} {
			refused, err := b.Append(b.request, columns.Source{Agent: "agent-1", Window: signal.Anytime})
			if err != nil || len(refused) > 0 {
				return fmt.Errorf("append: refused %v, %w", refused, err)
			}
			if err := w.insert(i, b.Block); err != nil {
				return err
			}
			*b.stored += b.Rows()
		}
		w.blocks.Add(1)
	}
	return nil
}

// insert sends a block until it is stored, also when ctx ends meanwhile.
func (w *upgradeWriter) insert(i int, b columns.Block) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	input := slices.DeleteFunc(slices.Clone(b.Input()), func(c proto.InputColumn) bool { return !w.released[b.Table()+"."+c.Name] })
	w.inserts.Lock()
	defer w.inserts.Unlock()
	for {
		err := w.ins.Insert(ctx, i%w.shards, b.Table(), fmt.Sprint(b.Table(), " ", i), input, b.Rows())
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

func insertService(t *testing.T, ins *Inserter, name string, endpoints uint32) {
	t.Helper()
	b := columns.NewServices()
	b.Append(&agentv1.Service{Name: name, Addresses: [][]byte{{10, 96, 0, 1}}, EndpointCount: endpoints, SeenTimeUnixNano: uint64(time.Now().UnixNano())}, time.Now())
	if err := ins.Insert(t.Context(), 0, columns.TableServices, name, b.Input(), b.Rows()); err != nil {
		t.Fatal(err)
	}
}

// A materialized view gets another query between two inserts: whatever is
// inserted while it is replaced over and over is in the table that it fills.
func TestMaterializedViewsMissNoInsert(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	all, err := migrations.Views(d.params(Retention{}), migrations.Latest())
	if err != nil {
		t.Fatal(err)
	}
	var views []migrations.View
	for _, v := range all {
		if strings.HasPrefix(v.Replace[0], "CREATE MATERIALIZED") {
			views = append(views, v)
		}
	}
	if len(views) != 2 {
		t.Fatalf("%d materialized views", len(views))
	}
	ctx, stop := context.WithCancel(t.Context())
	var g errgroup.Group
	for range 2 {
		g.Go(func() error {
			for ctx.Err() == nil {
				if err := d.exec(context.WithoutCancel(ctx), "INSERT INTO "+cfg.Database+`.spans_local (trace_id, span_id, start_time, service_name, ip)
					VALUES ('0', '0', now64(9), 's', '::1')`); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for range 40 {
		for _, v := range views {
			mustExec(t, d, "ALTER TABLE "+cfg.Database+"."+v.Name+" MODIFY COMMENT 'of another form'")
		}
		if err := d.replaceViews(ctx, views); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	stored, counted := queryText(t, d, "SELECT count() FROM "+cfg.Database+".spans_local"), queryText(t, d, "SELECT sum(spans) FROM "+cfg.Database+".service_addresses_local")
	if stored != counted || stored == "0" {
		t.Errorf("%s spans are stored and %s counted", stored, counted)
	}
}
