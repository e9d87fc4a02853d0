// Package chtest gives tests a ClickHouse of their own, like net/http/httptest.
//
// TestMain of the package must call chengine.MaybeRunChild first. A test that
// finds no engine fails, because `make engine` provides one everywhere: a test
// that skips itself proves nothing.
package chtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
)

// stopTimeout is for merges to be cut short; an idle engine stops in 0.1 s.
const stopTimeout = 10 * time.Second

// Start runs an engine until the test ends. An empty o.DataDir becomes a
// directory that is removed with the test. Starting takes about 0.3 s and an
// engine about 210 MB, so tests that can share one should.
func Start(t testing.TB, o chengine.Options) *chengine.Engine {
	t.Helper()
	if o.DataDir == "" {
		o.DataDir = t.TempDir()
	}
	e, err := chengine.Start(t.Context(), o)
	if err != nil {
		t.Fatalf("start clickhouse engine: %v", err)
	}
	t.Cleanup(func() { Stop(t, e) })
	return e
}

// Stop ends e before the test does, and fails the test when e had to be killed
// or had died before.
func Stop(t testing.TB, e *chengine.Engine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := e.Stop(ctx); err != nil {
		t.Error(err)
	}
	if err := e.Err(); err != nil {
		t.Error(err)
	}
}

// Open returns a connection to e over the native protocol, closed with the test.
func Open(t testing.TB, e *chengine.Engine) driver.Conn {
	t.Helper()
	conn, err := clickhouse.Open(&clickhouse.Options{Addr: []string{e.NativeAddr()}})
	if err != nil {
		t.Fatalf("open clickhouse connection: %v", err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Errorf("close clickhouse connection: %v", err)
		}
	})
	return conn
}

// User is a user without a password, beside the user default who may do everything.
type User struct {
	Name   string
	Grants []string // such as "SELECT ON metaflow.*"
	// Queries is how many queries the user may run; 0 means no limit. Those that read system
	// tables only do not count.
	Queries int
}

// AddUsers adds users to an engine that has not started yet.
func AddUsers(dataDir string, users ...User) error {
	var all, quotas bytes.Buffer
	for _, u := range users {
		fmt.Fprintf(&all, "  <%s><password></password><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>%[1]s</quota><grants>\n", u.Name)
		for _, grant := range u.Grants {
			fmt.Fprintf(&all, "    <query>GRANT %s</query>\n", grant)
		}
		fmt.Fprintf(&all, "  </grants></%s>\n", u.Name)
		fmt.Fprintf(&quotas, "  <%s><interval><duration>1000000000</duration><queries>%d</queries></interval></%[1]s>\n", u.Name, u.Queries)
	}
	dir := filepath.Join(dataDir, "conf.d") // ClickHouse merges it with the configuration beside it
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "users.xml"), fmt.Appendf(nil, "<clickhouse>\n<users>\n%s</users>\n<quotas>\n%s</quotas>\n</clickhouse>\n", all.String(), quotas.String()), 0o600)
}
