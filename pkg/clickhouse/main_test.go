package clickhouse

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
)

// engine is shared by the tests that do not stop it. Each test uses its own database, as a
// user who may do there what docs/security.md grants.
var engine *chengine.Engine

func TestMain(m *testing.M) {
	chengine.MaybeRunChild()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "clickhouse-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := addUsers(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if engine, err = chengine.Start(context.Background(), chengine.Options{DataDir: dir}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	running := goleak.IgnoreCurrent()
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(running); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := engine.Stop(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// addUsers adds the users of docs/security.md, with their grants on the databases of the
// tests.
func addUsers(dataDir string) error {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "security.md"))
	if err != nil {
		return err
	}
	servers := chtest.User{Name: "metaflow", Grants: []string{"DROP DATABASE, OPTIMIZE, TRUNCATE, SYSTEM MERGES ON test*.*", "TABLE ENGINE ON `Null`"}} // for the tests themselves
	reads := chtest.User{Name: "metaflow_query"}
	for line := range strings.Lines(string(doc)) {
		grant, isGrant := strings.CutPrefix(line, "    GRANT ")
		grant, note, _ := strings.Cut(grant, ";")
		what, who, _ := strings.Cut(grant, " TO ")
		what = strings.ReplaceAll(what, "metaflow.", "test*.")
		switch {
		case !isGrant || strings.Contains(note, "in a cluster"):
		case who == "metaflow" && strings.Contains(what, "test*.spans_local"): // a table of any database cannot be named
			servers.Grants = append(servers.Grants, "ALTER DELETE ON test*.*")
		case who == "metaflow":
			servers.Grants = append(servers.Grants, what)
		case who == "metaflow_query":
			reads.Grants = append(reads.Grants, what)
		}
	}
	few := chtest.User{Name: "few_queries", Grants: reads.Grants, Queries: 3}
	return chtest.AddUsers(dataDir, servers, reads, few)
}

var notInNames = regexp.MustCompile(`[^A-Za-z0-9]+`)

// testConfig returns a configuration for the shared engine and a database named after the
// test.
func testConfig(t testing.TB) Config {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Addresses, cfg.Username = []string{engine.NativeAddr()}, "metaflow"
	name := strings.ToLower(notInNames.ReplaceAllString(t.Name(), "_"))
	cfg.Database = name[:min(len(name), 60)]
	return cfg
}

// openDB opens a DB and drops its database when the test ends.
func openDB(t testing.TB, cfg Config) *DB {
	t.Helper()
	d, err := Open(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// migrated returns a DB with the current schema and thirty days of retention.
func migrated(t testing.TB, cfg Config) *DB {
	t.Helper()
	d := openDB(t, cfg)
	if err := d.Migrate(t.Context(), Retention{Spans: 30 * 24 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.exec(context.Background(), "DROP DATABASE IF EXISTS "+cfg.Database+" SYNC"); err != nil {
			t.Error(err)
		}
	})
	return d
}

func newInserter(t testing.TB, cfg Config) *Inserter {
	t.Helper()
	ins, err := NewInserter(cfg, InserterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ins.Close)
	return ins
}

func mustExec(t testing.TB, d *DB, sql string) {
	t.Helper()
	if err := d.exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// queryText returns the result of a query, one line per row, columns separated by tabs.
func queryText(t testing.TB, d *DB, sql string) string {
	t.Helper()
	rows, err := d.conn.Query(t.Context(), sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, readable(err))
	}
	defer func() { _ = rows.Close() }()
	var lines []string
	for rows.Next() {
		types := rows.ColumnTypes()
		values := make([]any, len(types))
		for i := range types {
			values[i] = reflect.New(types[i].ScanType()).Interface()
		}
		if err := rows.Scan(values...); err != nil {
			t.Fatal(err)
		}
		var cells []string
		for _, v := range values {
			cells = append(cells, fmt.Sprint(reflect.ValueOf(v).Elem().Interface()))
		}
		lines = append(lines, strings.Join(cells, "\t"))
	}
	if err := rows.Err(); err != nil {
		t.Fatalf("%s: %v", sql, readable(err))
	}
	return strings.Join(lines, "\n")
}
