package migrations

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files of schema/")

var installations = map[string]struct {
	params Params
	golden string
}{
	"one node": {
		Params{Database: "metaflow", SpansRetention: 30 * 24 * time.Hour, FlowsRetention: 7 * 24 * time.Hour, StringSerialization: true, AutoStatistics: true},
		"tables.sql",
	},
	"cluster": {
		Params{Database: "metaflow", Cluster: "metaflow", SpansRetention: 30 * 24 * time.Hour, FlowsRetention: 7 * 24 * time.Hour, StringSerialization: true, AutoStatistics: true},
		"tables.cluster.sql",
	},
}

// The rendered DDL stands in schema/, where people read what MetaFlow's tables
// are without running a template in their heads.
func TestRenderedTables(t *testing.T) {
	for name, tc := range installations {
		t.Run(name, func(t *testing.T) {
			got := []byte("-- Rendered from migrations/ for " + name + ": go test ./migrations -update\n\n" +
				strings.Join(upStatements(t, tc.params), ";\n\n") + ";\n")
			path := filepath.Join("..", "schema", tc.golden)
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatalf("%v; -update writes it", err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("rendered DDL differs from %s (-want +got):\n%s", path, diff)
			}
		})
	}
}

// Any replica may run any statement again at any time.
func TestEveryStatementMayRunAgain(t *testing.T) {
	again := regexp.MustCompile(`^(CREATE (DATABASE|TABLE|VIEW|MATERIALIZED VIEW) IF NOT EXISTS|CREATE OR REPLACE VIEW|` +
		`DROP (DATABASE|TABLE|VIEW) IF EXISTS|ALTER TABLE \S+( ON CLUSTER '\S+')? (ADD \w+ IF NOT EXISTS|DROP \w+ IF EXISTS|MODIFY)) `)
	for name, tc := range installations {
		t.Run(name, func(t *testing.T) {
			for _, s := range append(upStatements(t, tc.params), downStatements(t, tc.params)...) {
				if !again.MatchString(s) {
					t.Errorf("cannot be run again: %s", firstLine(s))
				}
			}
		})
	}
}

func TestEveryStatementNamesTheCluster(t *testing.T) {
	p := installations["cluster"].params
	for _, s := range append(upStatements(t, p), downStatements(t, p)...) {
		if !strings.Contains(firstLine(s), " ON CLUSTER 'metaflow'") {
			t.Errorf("runs on one node only: %s", firstLine(s))
		}
	}
	p.Topology = PerShard
	for _, s := range append(upStatements(t, p), downStatements(t, p)...) {
		if strings.Contains(s, "ON CLUSTER") || strings.Contains(s, "Replicated") {
			t.Errorf("needs Keeper in a topology without it: %s", s)
		}
	}
}

// What goes up comes down: each object that a migration makes, it also drops.
func TestDownDropsWhatUpMakes(t *testing.T) {
	object := regexp.MustCompile(`EXISTS (\S+)`)
	for name, tc := range installations {
		t.Run(name, func(t *testing.T) {
			all, err := Render(tc.params)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range all {
				made, dropped := map[string]bool{}, map[string]bool{}
				for _, s := range m.Up {
					made[object.FindStringSubmatch(s)[1]] = true
				}
				for _, s := range m.Down {
					dropped[object.FindStringSubmatch(s)[1]] = true
				}
				if diff := cmp.Diff(made, dropped); diff != "" {
					t.Errorf("migration %d (-made +dropped):\n%s", m.Version, diff)
				}
			}
		})
	}
}

func TestRetentionClause(t *testing.T) {
	tests := map[string]struct {
		keep time.Duration
		want string
	}{
		"thirty days":          {30 * 24 * time.Hour, "toDateTime(start_time) + toIntervalSecond(2592000)"},
		"for ever":             {0, ""},
		"shorter than it goes": {time.Millisecond, "toDateTime(start_time) + toIntervalSecond(1)"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := TTL("start_time", tc.keep); got != tc.want {
				t.Errorf("TTL = %q, want %q", got, tc.want)
			}
			sql := strings.Join(upStatements(t, Params{Database: "metaflow", SpansRetention: tc.keep}), "\n")
			if got := strings.Contains(sql, "\nTTL "); got != (tc.want != "") {
				t.Errorf("the table has a TTL: %t", got)
			}
		})
	}
}

func TestRenderRefusesNamesThatAreNotPlain(t *testing.T) {
	for _, p := range []Params{
		{},
		{Database: "a b"},
		{Database: "x; DROP TABLE y"},
		{Database: "metaflow", Cluster: "it's"},
		{Database: "metaflow", SpansRetention: -time.Second},
	} {
		if _, err := Render(p); err == nil {
			t.Errorf("Render(%+v) succeeded", p)
		}
	}
}

func TestFilesAreNumberedWithoutGaps(t *testing.T) {
	file := &fstest.MapFile{Data: []byte("CREATE TABLE IF NOT EXISTS t (a Int8) ENGINE = Memory;")}
	tests := map[string]struct {
		files fstest.MapFS
		want  string // part of the error
	}{
		"in order":     {fstest.MapFS{"0001_a.up.sql": file, "0001_a.down.sql": file, "0002_b.up.sql": file, "0002_b.down.sql": file}, ""},
		"gap":          {fstest.MapFS{"0001_a.up.sql": file, "0001_a.down.sql": file, "0003_b.up.sql": file, "0003_b.down.sql": file}, "version 3 is not 2"},
		"no way back":  {fstest.MapFS{"0001_a.up.sql": file}, "0001_a.down.sql"},
		"bad name":     {fstest.MapFS{"1_a.up.sql": file}, "not NNNN_name.up.sql"},
		"no statement": {fstest.MapFS{"0001_a.up.sql": {Data: []byte("-- nothing\n")}, "0001_a.down.sql": file}, "no statement"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := render(tc.files, Params{Database: "metaflow"})
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
	all, err := Render(Params{Database: "metaflow"})
	if err != nil {
		t.Fatal(err)
	}
	if int(Latest()) != len(all) {
		t.Errorf("Latest() = %d with %d migrations", Latest(), len(all))
	}
}

func upStatements(t *testing.T, p Params) []string {
	t.Helper()
	statements, err := Bootstrap(p)
	if err != nil {
		t.Fatal(err)
	}
	all, err := Render(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		statements = append(statements, m.Up...)
	}
	return statements
}

func downStatements(t *testing.T, p Params) []string {
	t.Helper()
	all, err := Render(p)
	if err != nil {
		t.Fatal(err)
	}
	var statements []string
	for _, m := range all {
		statements = append(statements, m.Down...)
	}
	return statements
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
