package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

func openReader(t *testing.T, limits ReadLimits) *Reader {
	t.Helper()
	r, err := OpenReader(testConfig(t), limits, nil)
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

// A Reader's statements neither change anything nor lift a limit, and those that take too
// much fail.
func TestReaderOnlyReads(t *testing.T) {
	r := openReader(t, ReadLimits{Time: 2 * time.Second, MemoryBytes: 100 << 20, Rows: 1000, AtOnce: 2})
	for statement, want := range map[string]string{
		"CREATE DATABASE other":                                      "READONLY",
		"SELECT 1 SETTINGS max_execution_time = 100":                 "READONLY",
		"SELECT 1 SETTINGS readonly = 0":                             "READONLY",
		"SET max_memory_usage = 1":                                   "READONLY",
		"SELECT * FROM file('/etc/passwd', 'LineAsString')":          "READONLY",
		"SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')":   "READONLY",
		"SELECT * FROM remote('127.0.0.1:9000', system.one)":         "READONLY",
		"SELECT number FROM numbers(10000)":                          "TOO_MANY_ROWS",
		"SELECT groupArray(number) FROM numbers(100000000)":          "MEMORY_LIMIT_EXCEEDED",
		"SELECT sum(cityHash64(number)) FROM numbers(1000000000000)": "TIMEOUT_EXCEEDED",
		"SELECT nothing":     "UNKNOWN_IDENTIFIER",
		"SELECT 1; SELECT 2": "SYNTAX_ERROR",
	} {
		_, err := r.Table(t.Context(), statement, 10)
		if err == nil || !strings.Contains(err.Error(), want) || fault.ClassOf(err) != fault.Rejected {
			t.Errorf("%s: %v (%s), want %s", statement, err, fault.ClassOf(err), want)
		}
	}
}

func TestReaderTable(t *testing.T) {
	r := openReader(t, ReadLimits{Time: time.Minute, MemoryBytes: 1 << 30, Rows: 100_000, AtOnce: 2})
	got, err := r.Table(t.Context(), "SELECT number AS n, toString(number) AS s, map('a', number) AS m FROM numbers(50000)", 2)
	want := Table{
		Columns: []string{"n", "s", "m"}, Types: []string{"UInt64", "String", "Map(String, UInt64)"}, More: true,
		Rows: [][]any{{uint64(0), "0", map[string]uint64{"a": 0}}, {uint64(1), "1", map[string]uint64{"a": 1}}},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v, -want +got:\n%s", err, diff)
	}
	// The query that was not read to its end harms none of the next.
	for range 5 {
		if _, err := r.Table(t.Context(), "SELECT 1", 1); err != nil {
			t.Error(err)
		}
	}
}

// A caller that leaves ends its query in ClickHouse, and makes room for the next one.
func TestReaderStopsWithItsCaller(t *testing.T) {
	r := openReader(t, ReadLimits{Time: 10 * time.Minute, MemoryBytes: 1 << 30, Rows: 1000, AtOnce: 1})
	others := openReader(t, ReadLimits{Time: time.Minute, MemoryBytes: 1 << 30, Rows: 1000, AtOnce: 1})
	mark := fmt.Sprintf("mark%d", time.Now().UnixNano())
	running := func() (n int, err error) {
		got, err := others.Table(t.Context(), "SELECT 1 FROM system.processes WHERE query LIKE '%numbers(9000000000000)%' AND query NOT LIKE '%system.processes%' AND query LIKE '%"+mark+"%'", 10)
		return len(got.Rows), err
	}
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := r.Table(ctx, "SELECT '"+mark+"', sum(cityHash64(number)) FROM numbers(9000000000000)", 1)
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
	if _, err := r.Table(t.Context(), "SELECT 1", 1); err != nil {
		t.Error(err)
	}
}

// The embedded engine has no access management, which operators are told of.
func TestEnsureReadUserNeedsAccessManagement(t *testing.T) {
	d := openDB(t, testConfig(t))
	err := d.EnsureReadUser(t.Context(), "reader", "hush", ReadLimits{Time: time.Second, MemoryBytes: 1})
	if !errors.Is(err, ErrNoAccessManagement) || strings.Contains(err.Error(), "hush") {
		t.Errorf("%v, want ErrNoAccessManagement without the password", err)
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
	got := d.readUserStatements("re`ad", "it's", ReadLimits{Time: 30 * time.Second, MemoryBytes: 1000})
	rest := "IDENTIFIED WITH sha256_password BY 'it\\'s' SETTINGS max_execution_time = 30 MAX 30, max_memory_usage = 1000 MAX 1000, allow_ddl = 0"
	want := []string{
		"CREATE USER IF NOT EXISTS `re\\`ad` ON CLUSTER 'main' " + rest,
		"ALTER USER `re\\`ad` ON CLUSTER 'main' " + rest,
		"GRANT ON CLUSTER 'main' SELECT ON metaflow.* TO `re\\`ad`",
		"CREATE QUOTA IF NOT EXISTS metaflow_query ON CLUSTER 'main' FOR INTERVAL 1 minute MAX queries = 6000 TO `re\\`ad`",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
