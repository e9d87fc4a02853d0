package migrations

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/testkit/golden"
)

var update = flag.Bool("update", false, "rewrite the golden files of schema/")

var installations = map[string]struct {
	params Params
	golden string
}{
	"one node": {
		Params{Database: "metaflow", SpansRetention: 30 * 24 * time.Hour, FlowsRetention: 7 * 24 * time.Hour, StringSerialization: true, AutoStatistics: true, MergeSelectorBase: true},
		"tables.sql",
	},
	"cluster": {
		Params{Database: "metaflow", Cluster: "metaflow", SpansRetention: 30 * 24 * time.Hour, FlowsRetention: 7 * 24 * time.Hour, StringSerialization: true, AutoStatistics: true, MergeSelectorBase: true},
		"tables.cluster.sql",
	},
}

// schema/ contains the rendered DDL, so that people can read the tables without rendering
// templates.
func TestRenderedTables(t *testing.T) {
	for name, tc := range installations {
		t.Run(name, func(t *testing.T) {
			got := []byte("-- Rendered from migrations/ for " + name + ": go test ./migrations -update\n\n" +
				strings.Join(upStatements(t, tc.params), ";\n\n") + ";\n")
			path := filepath.Join("..", "schema", tc.golden)
			golden.Check(t, path, string(got), *update)
		})
	}
}

// The statements that a migration may contain. Any replica may run any statement again at
// any time, even after a crash in the middle of a file.
var (
	tableStatement = regexp.MustCompile(`^(CREATE (DATABASE|TABLE) IF NOT EXISTS|DROP TABLE IF EXISTS) (?P<table>\S+)`)
	alterStatement = regexp.MustCompile(`^ALTER TABLE (?P<table>\S+)( ON CLUSTER '\S+')? (` +
		`ADD (?P<add>COLUMN|INDEX|PROJECTION|CONSTRAINT) IF NOT EXISTS|DROP (?P<drop>COLUMN|INDEX|PROJECTION|CONSTRAINT) IF EXISTS|` +
		`(?P<modify>MODIFY|RESET) (COLUMN IF EXISTS|SETTING)) (?P<name>[\w.]+)`)
	// A column joins the sorting key in the ALTER that adds it, and leaves it in one of its
	// own. ClickHouse changes both at once, and again changes nothing.
	keyStatement   = regexp.MustCompile(`^ALTER TABLE (?P<table>\S+)( ON CLUSTER '\S+')? (ADD COLUMN IF NOT EXISTS (?P<name>\w+) [^,]+, )?MODIFY ORDER BY \([\w, ]+\)$`)
	anotherCommand = regexp.MustCompile(`,\s*(ADD|DROP|MODIFY|RESET|RENAME|CLEAR|MATERIALIZE|UPDATE|DELETE|COMMENT)\b`)
	viewStatement  = regexp.MustCompile(`^(CREATE OR REPLACE VIEW|CREATE MATERIALIZED VIEW IF NOT EXISTS|DROP VIEW IF EXISTS|ALTER TABLE \S+( ON CLUSTER '\S+')? (MODIFY (QUERY|COMMENT)|COMMENT COLUMN IF EXISTS)) `)
)

// commands splits an ALTER that only adds columns, or only drops columns, into one
// statement per column. ClickHouse does all or nothing of it.
func commands(statement string) []string {
	for _, command := range []string{"ADD COLUMN IF NOT EXISTS ", "DROP COLUMN IF EXISTS "} {
		parts := strings.Split(statement, ",\n    "+command)
		table, _, ok := strings.Cut(parts[0], command)
		if !ok || len(parts) == 1 {
			continue
		}
		for i, part := range parts[1:] {
			parts[i+1] = table + command + part
		}
		return parts
	}
	return []string{statement}
}

// effect returns whether a statement of a numbered migration creates (+1), removes (-1)
// or changes (0) an object, or an error if no migration may contain it. A sorting key is
// part of its column: object is empty when only the key changes.
func effect(statement string) (object string, sign int, err error) {
	if m := tableStatement.FindStringSubmatch(statement); m != nil {
		if strings.HasPrefix(statement, "DROP") {
			return m[3], -1, nil
		}
		return m[3], 1, nil
	}
	if m := keyStatement.FindStringSubmatch(statement); m != nil {
		name := m[keyStatement.SubexpIndex("name")]
		if name == "" {
			return "", 0, nil
		}
		return "COLUMN " + m[1] + " " + name, 1, nil
	}
	m := alterStatement.FindStringSubmatch(statement)
	if m == nil {
		return "", 0, errors.New("it cannot be run again, or is about a view, which belongs into views/")
	}
	if anotherCommand.MatchString(statement) {
		return "", 0, errors.New("an ALTER with several commands stops at the first that fails: give each a statement")
	}
	group := func(name string) string { return m[alterStatement.SubexpIndex(name)] }
	object = group("table") + " " + group("name")
	switch {
	case group("add") != "":
		return group("add") + " " + object, 1, nil
	case group("drop") != "":
		return group("drop") + " " + object, -1, nil
	default:
		return "MODIFY " + object, 0, nil
	}
}

func TestEveryStatementMayRunAgain(t *testing.T) {
	for name, tc := range installations {
		t.Run(name, func(t *testing.T) {
			all, err := Render(tc.params)
			if err != nil {
				t.Fatal(err)
			}
			statements, err := Bootstrap(tc.params)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range all {
				statements = append(append(statements, m.Up...), m.Down...)
			}
			for _, s := range statements {
				for _, s := range commands(s) {
					if _, _, err := effect(s); err != nil {
						t.Errorf("%s: %v", firstLine(s), err)
					}
				}
			}
			for _, s := range viewStatements(t, tc.params) {
				if !viewStatement.MatchString(s) {
					t.Errorf("%s: it cannot be run again", firstLine(s))
				}
			}
		})
	}
}

func TestRulesForStatements(t *testing.T) {
	allowed := map[string]int{
		"CREATE TABLE IF NOT EXISTS m.t (a Int8) ENGINE = Memory":                                1,
		"DROP TABLE IF EXISTS m.t ON CLUSTER 'c' SYNC":                                           -1,
		"ALTER TABLE m.t ADD COLUMN IF NOT EXISTS a Enum8('x' = 1, 'ADD' = 2) CODEC(ZSTD(1))":    1,
		"ALTER TABLE m.t ON CLUSTER 'c' DROP COLUMN IF EXISTS a":                                 -1,
		"ALTER TABLE m.t ADD INDEX IF NOT EXISTS i a TYPE minmax GRANULARITY 1":                  1,
		"ALTER TABLE m.t ADD PROJECTION IF NOT EXISTS p (SELECT a ORDER BY a)":                   1,
		"ALTER TABLE m.t MODIFY COLUMN IF EXISTS a UInt64":                                       0,
		"ALTER TABLE m.t MODIFY SETTING ttl_only_drop_parts = 1, min_bytes_for_wide_part = 1000": 0,
		"ALTER TABLE m.t ADD COLUMN IF NOT EXISTS a Int8, MODIFY ORDER BY (b, a)":                1,
		"ALTER TABLE m.t MODIFY ORDER BY (b)":                                                    0,
	}
	if got := commands("ALTER TABLE m.t ADD COLUMN IF NOT EXISTS a Enum8('x' = 1, 'y' = 2),\n    ADD COLUMN IF NOT EXISTS b Int8"); len(got) != 2 ||
		got[0] != "ALTER TABLE m.t ADD COLUMN IF NOT EXISTS a Enum8('x' = 1, 'y' = 2)" || got[1] != "ALTER TABLE m.t ADD COLUMN IF NOT EXISTS b Int8" {
		t.Errorf("commands: %q", got)
	}
	for statement, want := range allowed {
		if _, sign, err := effect(statement); err != nil || sign != want {
			t.Errorf("%s: %d, %v", statement, sign, err)
		}
	}
	for _, statement := range []string{
		"CREATE TABLE m.t (a Int8) ENGINE = Memory",
		"DROP TABLE m.t",
		"ALTER TABLE m.t ADD COLUMN a Int8",
		"ALTER TABLE m.t DROP COLUMN a",
		"ALTER TABLE m.t ADD COLUMN IF NOT EXISTS a Int8, ADD COLUMN b Int8",
		"ALTER TABLE m.t ADD COLUMN IF NOT EXISTS a Int8,\n    DROP COLUMN IF EXISTS b",
		"ALTER TABLE m.t RENAME COLUMN IF EXISTS a TO b", // a writer of the version before still fills a
		"ALTER TABLE m.t UPDATE a = a + 1 WHERE 1",
		"ALTER TABLE m.t MODIFY TTL b + toIntervalDay(1)", // removes the rules of operators
		"INSERT INTO m.t SELECT 1",
		"TRUNCATE TABLE m.t",
		"RENAME TABLE m.t TO m.u",
		"CREATE OR REPLACE VIEW m.v AS SELECT 1",
		"DROP VIEW IF EXISTS m.v",
	} {
		if _, _, err := effect(statement); err == nil {
			t.Errorf("%s is allowed", statement)
		}
	}
}

func TestEveryStatementNamesTheCluster(t *testing.T) {
	p := installations["cluster"].params
	for _, s := range slices.Concat(upStatements(t, p), downStatements(t, p), viewStatements(t, p)) {
		if !strings.Contains(firstLine(s), " ON CLUSTER 'metaflow'") {
			t.Errorf("runs on one node only: %s", firstLine(s))
		}
	}
	p.Topology = PerShard
	for _, s := range slices.Concat(upStatements(t, p), downStatements(t, p), viewStatements(t, p)) {
		if strings.Contains(s, "ON CLUSTER") || strings.Contains(s, "Replicated") {
			t.Errorf("needs Keeper in a topology without it: %s", s)
		}
	}
}

// A migration down drops every object that the migration up creates, and reverts every
// change.
func TestDownDropsWhatUpMakes(t *testing.T) {
	for name, tc := range installations {
		t.Run(name, func(t *testing.T) {
			all, err := Render(tc.params)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range all {
				made, dropped := map[string]int{}, map[string]int{}
				for _, s := range m.Up {
					for _, s := range commands(s) {
						object, sign, _ := effect(s)
						made[object] += sign
					}
				}
				for _, s := range m.Down {
					for _, s := range commands(s) {
						if object, sign, _ := effect(s); object != "" {
							dropped[object] -= sign
						}
					}
				}
				if diff := cmp.Diff(made, dropped); diff != "" {
					t.Errorf("migration %d (-made +dropped):\n%s", m.Version, diff)
				}
			}
		})
	}
}

// Version 5 is a released schema: its tables stay as they are, and a changed view keeps
// its old form in views/until_NNNN.
func TestReleasedSchemaStays(t *testing.T) {
	shards := installations["cluster"].params
	shards.Topology = PerShard
	for golden, p := range map[string]Params{
		"released_0005.sql":         installations["one node"].params,
		"released_0005.cluster.sql": installations["cluster"].params,
		"released_0005.shards.sql":  shards,
	} {
		t.Run(golden, func(t *testing.T) {
			released, err := os.ReadFile(filepath.Join("testdata", golden))
			if err != nil {
				t.Fatal(err)
			}
			want, got := byObject(split(string(released))), byObject(statementsAt(t, p, 5))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the released schema changed; if you edited a view, copy its old form to migrations/views/until_NNNN, NNNN being the last version that has it (-released +rendered):\n%s", diff)
			}
		})
	}
}

// byObject returns statements by the object that they create, normalized for comparison.
func byObject(statements []string) map[string]string {
	comment := regexp.MustCompile(` COMMENT '[^']*'$`)
	found := map[string]string{}
	for _, s := range statements {
		s = strings.Join(strings.Fields(s), " ")
		s = strings.Replace(s, "CREATE OR REPLACE VIEW", "CREATE VIEW IF NOT EXISTS", 1)
		found[regexp.MustCompile(`EXISTS (\S+)`).FindStringSubmatch(s)[1]] = comment.ReplaceAllString(s, "")
	}
	return found
}

func TestEveryViewFileIsListed(t *testing.T) {
	names, err := filepath.Glob("views/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, f := range viewFiles {
		listed["views/"+f.name+".sql"] = true
	}
	for _, name := range names {
		if !listed[name] {
			t.Errorf("%s is in no line of viewFiles", name)
		}
	}
	old, err := filepath.Glob("views/until_*/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range old {
		if !listed["views/"+filepath.Base(name)] {
			t.Errorf("%s is the old form of no view", name)
		}
	}
}

func TestFormAt(t *testing.T) {
	file := &fstest.MapFile{Data: []byte("CREATE OR REPLACE VIEW m.v AS SELECT 1;")}
	fsys := fstest.MapFS{"views/v.sql": file, "views/until_0003/v.sql": file, "views/until_0005/v.sql": file, "views/until_0005/w.sql": file}
	for version, want := range map[uint32]string{
		1: "views/until_0003/v.sql", 3: "views/until_0003/v.sql", 4: "views/until_0005/v.sql", 5: "views/until_0005/v.sql", 6: "views/v.sql",
	} {
		if got, err := formAt(fsys, "v", version); got != want || err != nil {
			t.Errorf("formAt(%d) = %s, %v, want %s", version, got, err, want)
		}
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

// upStatements are the statements of a new installation.
func upStatements(t *testing.T, p Params) []string {
	t.Helper()
	return statementsAt(t, p, Latest())
}

// statementsAt are the statements of the schema at a version.
func statementsAt(t *testing.T, p Params, version uint32) []string {
	t.Helper()
	statements, err := Bootstrap(p)
	if err != nil {
		t.Fatal(err)
	}
	all, err := Render(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all[:version] {
		statements = append(statements, m.Up...)
	}
	for _, v := range viewsAt(t, p, version) {
		statements = append(statements, v.Replace[0])
	}
	return statements
}

func viewsAt(t *testing.T, p Params, version uint32) []View {
	t.Helper()
	views, err := Views(p, version)
	if err != nil {
		t.Fatal(err)
	}
	return views
}

// viewStatements are all statements about views.
func viewStatements(t *testing.T, p Params) []string {
	t.Helper()
	var statements []string
	for version := range Latest() {
		for _, v := range viewsAt(t, p, version+1) {
			statements = append(append(statements, v.Replace...), v.Drop)
		}
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
