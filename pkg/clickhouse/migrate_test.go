package clickhouse

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/migrations"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/testkit/output"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

func TestForwardBackAndForward(t *testing.T) {
	cfg := testConfig(t)
	d := openDB(t, cfg)
	latest := int(migrations.Latest())

	checkVersion(t, d, 0)
	if got := appliedNames(t, d); len(got) != 0 {
		t.Errorf("before the first migration %v are applied", got)
	}
	if back, err := d.MigrateDown(t.Context()); back != nil || err != nil {
		t.Errorf("down before the first migration: %v, %v", back, err)
	}
	for round := range 2 {
		if err := d.Migrate(t.Context(), Retention{}); err != nil {
			t.Fatal(err)
		}
		checkVersion(t, d, uint32(latest))
		if got := queryText(t, d, "SELECT count() FROM "+cfg.Database+".spans"); got != "0" {
			t.Errorf("round %d: %s spans", round, got)
		}
		for v := latest; v > 0; v-- {
			back, err := d.MigrateDown(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if back == nil || int(back.Version) != v {
				t.Fatalf("took back %v, want version %d", back, v)
			}
			checkVersion(t, d, uint32(v-1))
		}
		left := queryText(t, d, "SELECT name FROM system.tables WHERE database = '"+cfg.Database+"'")
		if left != "schema_migrations" {
			t.Errorf("round %d: left over: %q", round, left)
		}
	}
	mustExec(t, d, "DROP DATABASE "+cfg.Database+" SYNC")
}

func checkVersion(t *testing.T, d *DB, want uint32) {
	t.Helper()
	current, wanted, err := d.SchemaVersion(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if current != want || wanted != migrations.Latest() {
		t.Errorf("schema version %d of %d, want %d of %d", current, wanted, want, migrations.Latest())
	}
}

func appliedNames(t *testing.T, d *DB) []string {
	t.Helper()
	list, err := d.MigrationStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != int(migrations.Latest()) {
		t.Errorf("status of %d migrations, want %d", len(list), migrations.Latest())
	}
	var names []string
	for _, m := range list {
		if m.Applied {
			names = append(names, m.Name)
		}
	}
	return names
}

// A newer program may have migrated already: its migrations are listed and stay.
func TestDatabaseAheadOfTheProgram(t *testing.T) {
	d := migrated(t, testConfig(t))
	mustExec(t, d, "INSERT INTO "+d.cfg.Database+".schema_migrations (version, name, applied) VALUES (900, 'later', true)")
	current, wanted, err := d.SchemaVersion(t.Context())
	if err != nil || current != 900 || wanted != migrations.Latest() {
		t.Errorf("schema version %d of %d, %v", current, wanted, err)
	}
	if err := d.Migrate(t.Context(), Retention{}); err != nil {
		t.Error(err)
	}
	list, err := d.MigrationStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if last := list[len(list)-1]; last.Version != 900 || !last.Applied || time.Since(last.At) > time.Hour {
		t.Errorf("status ends with %+v", last)
	}
}

// Every replica of a deployment migrates when it starts.
func TestReplicasMigrateAtOnce(t *testing.T) {
	cfg := testConfig(t)
	first := openDB(t, cfg)
	var wg sync.WaitGroup
	for range 5 {
		d := openDB(t, cfg)
		wg.Go(func() {
			if err := d.Migrate(t.Context(), Retention{Spans: time.Hour}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	checkVersion(t, first, migrations.Latest())
	// Replicas of two releases disagree about the retention.
	for i := range 5 {
		d := openDB(t, cfg)
		wg.Go(func() {
			if err := d.Migrate(t.Context(), Retention{Spans: time.Duration(i%2+1) * time.Hour}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	mustExec(t, first, "DROP DATABASE "+cfg.Database+" SYNC")
}

func TestRetentionFollowsTheConfiguration(t *testing.T) {
	cfg := testConfig(t)
	d := openDB(t, cfg)
	var lines output.Buffer
	d.log = slog.New(slog.NewTextHandler(&lines, nil))
	const month = "toDateTime(start_time) + toIntervalSecond(2592000)"
	steps := []struct {
		name    string
		keep    time.Duration
		want    string
		changes int // ALTERs so far, of each of two tables
	}{
		{"created with a month", 30 * 24 * time.Hour, month, 0},
		{"the same again", 30 * 24 * time.Hour, month, 0},
		{"shortened", time.Hour, "toDateTime(start_time) + toIntervalSecond(3600)", 1},
		{"for ever", 0, "", 2},
		{"still for ever", 0, "", 2},
		{"a month again", 30 * 24 * time.Hour, month, 3},
	}
	for _, s := range steps {
		if err := d.Migrate(t.Context(), Retention{Spans: s.keep}); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		got, err := d.currentTTLs(t.Context(), "spans_local")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{s.want}, got); diff != "" {
			t.Errorf("%s: TTL (-want +got):\n%s", s.name, diff)
		}
		if n := strings.Count(lines.String(), "changed retention"); n != 2*s.changes {
			t.Errorf("%s: changed %d times, want %d", s.name, n, 2*s.changes)
		}
	}
	// An expired day is dropped as a whole.
	ins := newInserter(t, cfg)
	block := spanBlock(10, func(i int) time.Time { return day(40 * (i % 2)) })
	if err := ins.Insert(t.Context(), 0, "spans_local", "token", block, 10); err != nil {
		t.Fatal(err)
	}
	mustExec(t, d, "OPTIMIZE TABLE "+cfg.Database+".spans_local FINAL")
	if got := queryText(t, d, "SELECT count() FROM "+cfg.Database+".spans"); got != "5" {
		t.Errorf("%s rows are left, want the 5 of today", got)
	}
	mustExec(t, d, "DROP DATABASE "+cfg.Database+" SYNC")
}

// The engine lacks Keeper and cannot run these statements, but it can parse them.
func TestRenderedSQLParses(t *testing.T) {
	d := openDB(t, testConfig(t))
	for name, p := range map[string]migrations.Params{
		"one node":    {Database: "metaflow", SpansRetention: time.Hour},
		"for ever":    {Database: "metaflow", StringSerialization: true, AutoStatistics: true, MergeSelectorBase: true},
		"cluster":     {Database: "metaflow", Cluster: "prod-1.eu", SpansRetention: time.Hour},
		"shards only": {Database: "metaflow", Cluster: "prod", Topology: migrations.PerShard},
	} {
		statements, err := migrations.Bootstrap(p)
		if err != nil {
			t.Fatal(err)
		}
		all, err := migrations.Render(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			statements = append(append(statements, m.Up...), m.Down...)
		}
		views, err := migrations.Views(p, migrations.Latest())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range views {
			statements = append(append(statements, v.Replace...), v.Drop)
		}
		statements = append(statements,
			alterTTL(p, "spans_local", ""), alterTTL(p, "spans_local", migrations.TTL("start_time", time.Hour)), syncReplicaSQL(p.Database, "spans_local"), syncReplicaSQL(p.Database, "flows_local"))
		for _, s := range statements {
			if queryText(t, d, "EXPLAIN AST "+s) == "" {
				t.Errorf("%s: no tree for %s", name, s)
			}
		}
	}
}

func TestWaitLogsWhatItWaitsFor(t *testing.T) {
	cfg := testConfig(t)
	cfg.Addresses = []string{"127.0.0.1:1"}
	d := openDB(t, cfg)
	var lines output.Buffer
	d.log = slog.New(slog.NewTextHandler(&lines, nil))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := d.Wait(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("Wait = %v", err)
	}
	if log := lines.String(); strings.Count(log, "waiting for ClickHouse") != 1 || !strings.Contains(log, "127.0.0.1:1") || !strings.Contains(log, "connection refused") {
		t.Errorf("log: %s", log)
	}
}

// The engine starts while a program waits for it.
func TestWaitReturnsWhenTheEngineIsUp(t *testing.T) {
	port := ports.Free(t)
	cfg := testConfig(t)
	cfg.Addresses, cfg.Username = []string{ports.Address(port)}, "default"
	d := openDB(t, cfg)
	waited := make(chan error, 1)
	go func() { waited <- d.Wait(t.Context()) }()
	startEngine(t, chengine.Options{DataDir: t.TempDir(), NativePort: port})
	if err := <-waited; err != nil {
		t.Error(err)
	}
}

func TestConfigReportsEveryProblem(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	err := Config{
		Addresses: []string{"nowhere", "host:port", ":9000"}, Database: "a b", Cluster: "it's", Compression: "gzip",
		InsertQuorum: "most", TLS: tlsconfig.Client{CertFile: "c.pem"},
	}.Validate()
	want := []string{
		`addresses[0]: "nowhere" is not host:port such as kafka-1:9092 or [2001:db8::1]:9092`,
		`addresses[1]: "host:port" is not host:port such as kafka-1:9092 or [2001:db8::1]:9092`,
		`addresses[2]: ":9000" is not host:port such as kafka-1:9092 or [2001:db8::1]:9092`,
		`database: "a b" is not letters, digits and _`,
		`cluster: "it's" is not letters, digits, _, . and -`,
		`username: must not be empty`,
		`compression: "gzip" is not lz4, zstd or none`,
		`dial_timeout: 0s is not positive`,
		`query_timeout: 0s is not positive`,
		`insert_quorum: "most" is not a number, auto or empty`,
		`tls.cert_file and tls.key_file: "c.pem" and "", but one needs the other`,
	}
	if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("addresses: at least one is required", (Config{
		Database: "a", Username: "u", Compression: "none", DialTimeout: 1, QueryTimeout: 1,
	}).Validate().Error()); diff != "" {
		t.Error(diff)
	}
}
