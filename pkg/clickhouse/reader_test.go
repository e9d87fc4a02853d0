package clickhouse

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

func openReader(t *testing.T, limits ReadLimits) *Reader { return openReaderAs(t, "default", limits) }

func openReaderAs(t *testing.T, user string, limits ReadLimits) *Reader {
	t.Helper()
	cfg := testConfig(t)
	cfg.Username = user
	r, err := OpenReader(cfg, limits, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// Who asks over MCP does not see the configuration, so errors say which program is missing.
func TestReaderNamesClickHouse(t *testing.T) {
	cfg := testConfig(t)
	cfg.Addresses = []string{"127.0.0.1:1"}
	r, err := OpenReader(cfg, ReadLimits{Time: 2 * time.Second, MemoryBytes: 100 << 20, Rows: 1000, Bytes: 10 << 20, AtOnce: 2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Table(t.Context(), "SELECT 1", 1, 100); err == nil || !strings.HasPrefix(err.Error(), "ask clickhouse: ") || fault.ClassOf(err) != fault.Retryable {
		t.Errorf("%v (%s)", err, fault.ClassOf(err))
	}
}

// A Reader's statements neither change anything nor lift a limit, and those that take too
// much fail.
func TestReaderOnlyReads(t *testing.T) {
	r := openReader(t, ReadLimits{Time: 2 * time.Second, MemoryBytes: 100 << 20, Rows: 1000, Bytes: 10 << 20, AtOnce: 2})
	for statement, want := range map[string]string{
		"CREATE DATABASE other":                                                "READONLY",
		"SELECT 1 SETTINGS max_execution_time = 100":                           "READONLY",
		"SELECT 1 SETTINGS readonly = 0":                                       "READONLY",
		"SET max_memory_usage = 1":                                             "READONLY",
		"SELECT * FROM file('/etc/passwd', 'LineAsString')":                    "READONLY",
		"SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')":             "READONLY",
		"SELECT * FROM remote('127.0.0.1:9000', system.one)":                   "READONLY",
		"SELECT number FROM numbers(10000)":                                    "TOO_MANY_ROWS",
		"SELECT groupArray(repeat(toString(number), 500000)) FROM numbers(20)": "Limit for result exceeded, max bytes",
		"SELECT repeat(repeat('x', 1000), 2000)":                               "a row takes more than 1048576 bytes",
		"SELECT toNullable(repeat(repeat('x', 1000), 2000))":                   "a row takes more than 1048576 bytes",
		"SELECT groupArray(number) FROM numbers(100000000)":                    "MEMORY_LIMIT_EXCEEDED",
		"SELECT sum(cityHash64(number)) FROM numbers(1000000000000)":           "TIMEOUT_EXCEEDED",
		"SELECT nothing":     "UNKNOWN_IDENTIFIER",
		"SELECT 1; SELECT 2": "SYNTAX_ERROR",
	} {
		_, err := r.Table(t.Context(), statement, 10, 1<<20)
		if err == nil || !strings.Contains(err.Error(), want) || fault.ClassOf(err) != fault.Rejected {
			t.Errorf("%s: %v (%s), want %s", statement, err, fault.ClassOf(err), want)
		}
	}
}

func TestReaderTable(t *testing.T) {
	r := openReader(t, ReadLimits{Time: time.Minute, MemoryBytes: 1 << 30, Rows: 100_000, Bytes: 10 << 20, AtOnce: 2})
	got, err := r.Table(t.Context(), "SELECT number AS n, toString(number) AS s, map('a', number) AS m FROM numbers(50000)", 2, 1<<20)
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	want := Table{
		Columns: []string{"n", "s", "m"}, Types: []string{"UInt64", "String", "Map(String, UInt64)"}, More: true,
		Rows: [][]json.RawMessage{{raw("0"), raw(`"0"`), raw(`{"a":0}`)}, {raw("1"), raw(`"1"`), raw(`{"a":1}`)}},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v, -want +got:\n%s", err, diff)
	}
	// The query that was not read to its end harms none of the next.
	for range 5 {
		if _, err := r.Table(t.Context(), "SELECT 1", 1, 1<<20); err != nil {
			t.Error(err)
		}
	}
}

// A table ends before the row that would exceed its bytes, and says so.
func TestReaderTableCutsBytes(t *testing.T) {
	r := openReader(t, ReadLimits{Time: time.Minute, MemoryBytes: 1 << 30, Rows: 1000, Bytes: 10 << 20, AtOnce: 1})
	got, err := r.Table(t.Context(), "SELECT repeat('x', 1000) FROM numbers(100)", 100, 10_000)
	if err != nil || len(got.Rows) != 9 || !got.More {
		t.Errorf("%d rows, more %t, %v; want 9 and more", len(got.Rows), got.More, err)
	}
}

// Columns of the types JSON, Dynamic and Variant can be encoded as JSON.
func TestReaderTableEncodesJSON(t *testing.T) {
	r := openReader(t, ReadLimits{Time: time.Minute, MemoryBytes: 1 << 30, Rows: 1000, Bytes: 10 << 20, AtOnce: 1})
	got, err := r.Table(t.Context(), `SELECT '{"a":{"b":1}}'::JSON, ['{"c":"d"}'::JSON], toUInt8(5)::Dynamic, 'v'::Variant(String, UInt8)`, 1, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(got.Rows)
	if want := `[[{"a":{"b":1}},[{"c":"d"}],5,"v"]]`; err != nil || string(text) != want {
		t.Errorf("%s %v, want %s", text, err, want)
	}
}

// A value that JSON does not have is a string, alone and within others.
func TestReaderTableEncodesAnyValue(t *testing.T) {
	r := openReader(t, ReadLimits{Time: time.Minute, MemoryBytes: 1 << 30, Rows: 1000, Bytes: 10 << 20, AtOnce: 1})
	got, err := r.Table(t.Context(), "SELECT nan, [1., -inf], NULL, 'a', toNullable(nan)", 1, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(got.Rows)
	if want := `[["NaN","[1 -Inf]",null,"a","NaN"]]`; err != nil || string(text) != want {
		t.Errorf("%s %v, want %s", text, err, want)
	}
}

// A result with too many rows or bytes is told from other refusals.
func TestReaderTooLarge(t *testing.T) {
	r := openReader(t, ReadLimits{Time: time.Minute, MemoryBytes: 1 << 30, Rows: 1000, Bytes: 1 << 20, AtOnce: 1})
	for query, want := range map[string]bool{
		"SELECT number FROM numbers(10000)":                        true,
		"SELECT repeat(toString(number), 10000) FROM numbers(500)": true,
		"SELECT throwIf(1, 'TOO_MANY_ROWS_OR_BYTES')":              false,
		"SELECT number FROM numbers(10)":                           false,
	} {
		err := r.Query(t.Context(), query, func(func(...any) error) error { return nil })
		if r.TooLarge(err) != want {
			t.Errorf("%s: %v, too large %t", query, err, !want)
		}
	}
}

// A Reader whose queries wait for each other is still healthy.
func TestReaderPingsWhileBusy(t *testing.T) {
	cfg := testConfig(t)
	cfg.DialTimeout = 5 * time.Second
	r, err := OpenReader(cfg, ReadLimits{Time: 10 * time.Minute, MemoryBytes: 1 << 30, Rows: 1_000_000_000, Bytes: 10 << 30, AtOnce: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pinged := errors.New("pinged")
	err = r.Query(t.Context(), "SELECT number FROM numbers(100000000)", func(func(...any) error) error {
		if err := r.Ping(t.Context()); err != nil { // the query still holds its connection
			return err
		}
		return pinged
	})
	if !errors.Is(err, pinged) {
		t.Error(err)
	}
}

// A caller that leaves ends its query in ClickHouse, and makes room for the next one.
func TestReaderStopsWithItsCaller(t *testing.T) {
	r := openReader(t, ReadLimits{Time: 10 * time.Minute, MemoryBytes: 1 << 30, Rows: 1000, Bytes: 10 << 20, AtOnce: 1})
	others := openReader(t, ReadLimits{Time: time.Minute, MemoryBytes: 1 << 30, Rows: 1000, Bytes: 10 << 20, AtOnce: 1})
	mark := fmt.Sprintf("mark%d", time.Now().UnixNano())
	running := func() (n int, err error) {
		got, err := others.Table(t.Context(), "SELECT 1 FROM system.processes WHERE query LIKE '%numbers(9000000000000)%' AND query NOT LIKE '%system.processes%' AND query LIKE '%"+mark+"%'", 10, 1<<20)
		return len(got.Rows), err
	}
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := r.Table(ctx, "SELECT '"+mark+"', sum(cityHash64(number)) FROM numbers(9000000000000)", 1, 1<<20)
		ended <- err
	}()
	if err := wait.Poll(time.Minute, nil, func() error {
		if n, err := running(); n != 1 || err != nil {
			return fmt.Errorf("%d queries run: %w", n, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	leave()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the query ended with %v", err)
	}
	if err := wait.Poll(time.Minute, nil, func() error {
		if n, err := running(); n != 0 || err != nil {
			return fmt.Errorf("%d queries still run: %w", n, err)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if _, err := r.Table(t.Context(), "SELECT 1", 1, 1<<20); err != nil {
		t.Error(err)
	}
}

// The user that only reads cannot do more, even with its password and without a Reader.
func TestReadUserOnlyReads(t *testing.T) {
	cfg := testConfig(t)
	migrated(t, cfg)
	cfg.Username = "default"
	everything := openDB(t, cfg)
	mustExec(t, everything, "CREATE DATABASE hidden")
	mustExec(t, everything, "CREATE TABLE hidden.rows (a UInt8) ENGINE = Memory")
	defer mustExec(t, everything, "DROP DATABASE hidden SYNC")
	cfg.Username = "metaflow_query"
	d := openDB(t, cfg)
	if n := queryText(t, d, "SELECT count() FROM "+cfg.Database+".spans"); n != "0" {
		t.Errorf("%s spans, want 0", n)
	}
	if tables := queryText(t, d, "SELECT name FROM system.tables WHERE database = 'hidden'"); tables != "" {
		t.Errorf("it sees hidden.%s", tables)
	}
	for _, statement := range []string{
		"INSERT INTO " + cfg.Database + ".spans_local (trace_id) VALUES ('')",
		"CREATE TABLE " + cfg.Database + ".other (a UInt8) ENGINE = Memory",
		"CREATE TEMPORARY TABLE other (a UInt8)",
		"ALTER TABLE " + cfg.Database + ".spans_local DELETE WHERE 1",
		"TRUNCATE TABLE " + cfg.Database + ".spans_local",
		"DROP DATABASE " + cfg.Database,
		"GRANT SELECT ON " + cfg.Database + ".* TO default",
		"CREATE USER other",
		"SYSTEM FLUSH LOGS",
		"BACKUP DATABASE " + cfg.Database + " TO Disk('default', 'x')",
		"SELECT * FROM hidden.rows",
		"SELECT * FROM system.processes", "SELECT * FROM system.parts", "SELECT * FROM system.users", "SELECT * FROM system.disks", "SELECT * FROM system.clusters",
		"SELECT * FROM file('/etc/passwd', 'LineAsString')", "DESCRIBE file('/etc/passwd', 'CSV')", "SELECT * FROM filesystem('/etc')",
		"SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')", "DESCRIBE url('http://127.0.0.1:1/')",
		"SELECT * FROM remote('127.0.0.1:1', system.one)", "SELECT * FROM s3('http://127.0.0.1:1/bucket/x', 'CSV', 'a UInt8')", "SELECT * FROM iceberg('http://127.0.0.1:1/bucket/x')",
		"SELECT * FROM mysql('127.0.0.1:1', 'a', 'b', 'c', 'd')", "SELECT * FROM postgresql('127.0.0.1:1', 'a', 'b', 'c', 'd')", "SELECT * FROM mongodb('127.0.0.1:1', 'a', 'b', 'c', 'd', 'x UInt8')",
		"SELECT * FROM redis('127.0.0.1:1', 'k', 'k String')", "SELECT * FROM sqlite('/x', 'a')", "SELECT * FROM executable('cat', 'TSV', 'a UInt8')",
	} {
		err := d.exec(t.Context(), statement)
		if code, _, _ := exception(err); code != proto.ErrAccessDenied {
			t.Errorf("%s: %v, want ACCESS_DENIED", statement, err)
		}
	}
}

// A query beyond the quota of its user can succeed later.
func TestReaderBeyondItsQuota(t *testing.T) {
	r := openReaderAs(t, "few_queries", ReadLimits{Time: time.Minute, MemoryBytes: 1 << 30, Rows: 1000, Bytes: 10 << 20, AtOnce: 1})
	var err error
	for range 4 {
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Table(t.Context(), "SELECT number FROM numbers(1)", 1, 1<<20)
	}
	if err == nil || !strings.Contains(err.Error(), "(201): Quota") || fault.ClassOf(err) != fault.Retryable {
		t.Errorf("the fourth of three queries: %v (%s)", err, fault.ClassOf(err))
	}
}

// A user without the grants cannot create users, nor can anybody where they have no place, as
// in the embedded engine. Operators are told.
func TestEnsureReadUserNeedsAccessManagement(t *testing.T) {
	for _, user := range []string{"metaflow_query", "metaflow", "default"} {
		cfg := testConfig(t)
		cfg.Username = user
		err := openDB(t, cfg).EnsureReadUser(t.Context(), "metaflow_query_2", "hush", ReadLimits{Time: time.Second, MemoryBytes: 1})
		if !errors.Is(err, ErrNoAccessManagement) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v, want ErrNoAccessManagement without the password", user, err)
		}
	}
}

func TestReadUserStatements(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Cluster = "main"
	d, err := Open(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	limits := ReadLimits{Time: 30 * time.Second, MemoryBytes: 1000}
	rest := "IDENTIFIED WITH no_password SETTINGS max_execution_time = 30 MIN 0.001 MAX 30, max_memory_usage = 1000 MIN 1 MAX 1000, allow_ddl = 0"
	want := []string{
		"CREATE USER IF NOT EXISTS `re\\`ad` ON CLUSTER 'main' " + rest,
		"ALTER USER `re\\`ad` ON CLUSTER 'main' " + rest,
		"GRANT ON CLUSTER 'main' SELECT ON metaflow.* TO `re\\`ad`",
		"CREATE QUOTA IF NOT EXISTS `re\\`ad` ON CLUSTER 'main' FOR INTERVAL 1 minute MAX queries = 6000 TO `re\\`ad`",
		"ALTER QUOTA `re\\`ad` ON CLUSTER 'main' TO `re\\`ad`",
	}
	if diff := cmp.Diff(want, d.readUserStatements("re`ad", "", limits)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	secret := regexp.MustCompile("IDENTIFIED WITH sha256_hash BY '([0-9a-f]{64})' SALT '([A-Z0-9]+)' SETTINGS")
	for _, statement := range d.readUserStatements("reader", "it's", limits)[:2] {
		found := secret.FindStringSubmatch(statement)
		if found == nil || fmt.Sprintf("%x", sha256.Sum256([]byte("it's"+found[2]))) != found[1] {
			t.Errorf("%s does not hold the password's salted hash", statement)
		}
	}
}
