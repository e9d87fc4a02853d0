// Package chtest gives tests a ClickHouse of their own, like net/http/httptest.
//
// TestMain of the package must call chengine.MaybeRunChild first. A test that
// finds no engine fails, because `make engine` provides one everywhere: a test
// that skips itself proves nothing.
package chtest

import (
	"context"
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
