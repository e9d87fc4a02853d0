package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/query"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// serve returns the address of a server over an empty engine, and its database.
func serve(t *testing.T) (string, *clickhouse.Reader) {
	t.Helper()
	cfg := clickhouse.DefaultConfig()
	cfg.Addresses = []string{chtest.Start(t, chengine.Options{}).NativeAddr()}
	db, err := clickhouse.OpenReader(cfg, clickhouse.ReadLimits{Time: testTime, MemoryBytes: 1 << 30, Rows: 10_000, Bytes: 10 << 20, AtOnce: 2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	server := httptest.NewServer(NewServer(query.NewReader(query.DefaultConfig(), db, cfg.Database, query.Options{}), db, "test").Handler())
	t.Cleanup(server.Close)
	return server.URL, db
}

// call returns the whole answer to the call of a tool.
func call(ctx context.Context, address, tool string, arguments map[string]any) (string, error) {
	body, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": map[string]any{"name": tool, "arguments": arguments}})
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(string(body)))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// A query over HTTP stops when its client leaves.
func TestQueryStopsWithItsClient(t *testing.T) {
	address, db := serve(t)
	running := func(want int) error {
		return wait.Poll(testTime/2, nil, func() error {
			got, err := db.Table(t.Context(), "SELECT 1 FROM system.processes WHERE query LIKE '%numbers(9000000000000)%' AND query NOT LIKE '%system.processes%'", 10, 1<<20)
			if err != nil || len(got.Rows) != want {
				return fmt.Errorf("%d queries run, not %d: %w", len(got.Rows), want, err)
			}
			return nil
		})
	}
	ctx, leave := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := call(ctx, address, "sql", map[string]any{"query": "SELECT sum(cityHash64(number)) FROM numbers(9000000000000)"})
		ended <- err
	}()
	if err := running(1); err != nil {
		t.Error(err)
	}
	leave()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the call ended with %v", err)
	}
	if err := running(0); err != nil {
		t.Error(err)
	}
}

// Answers are sent once, within bounds, and show columns of the type JSON.
func TestAnswers(t *testing.T) {
	address, _ := serve(t)
	for name, tc := range map[string]struct {
		tool      string
		arguments map[string]any
		want      string
	}{
		"JSON":                  {"sql", map[string]any{"query": `SELECT '{"a":{"b":1}}'::JSON AS j`}, `\"rows\":[[{\"a\":{\"b\":1}}]]`},
		"many bytes":            {"sql", map[string]any{"query": "SELECT repeat('x', 100000) FROM numbers(100)"}, `\"more_rows\":true`},
		"a file":                {"sql", map[string]any{"query": "SELECT file('/etc/passwd')"}, "file is refused"},
		"the table function":    {"sql", map[string]any{"query": "DESC url('http://127.0.0.1:1/x.csv')"}, "url is refused"},
		"description":           {"sql", map[string]any{"query": "DESC system.one"}, "dummy"},
		"tables":                {"sql", map[string]any{"query": "SHOW TABLES FROM system LIKE 'on%'"}, `[\"one\"]`},
		"an endless duration":   {"find_traces", map[string]any{"min_ms": 1e308}, "min_ms: 1e+308 is not between 0 and 1e+12"},
		"a negative duration":   {"find_traces", map[string]any{"min_ms": -1}, "min_ms: -1 is not"},
		"an endless range":      {"find_traces", map[string]any{"minutes": 1_000_000_000_000_000}, "minutes: 1000000000000000 is not between 1 and"},
		"a range in the future": {"find_traces", map[string]any{"minutes": -5}, "minutes: -5 is not between 1 and"},
		"a negative limit":      {"find_traces", map[string]any{"limit": -1}, "limit: -1 is not between 1 and 50"},
	} {
		text, err := call(t.Context(), address, tc.tool, tc.arguments)
		if err != nil || !strings.Contains(text, tc.want) || strings.Contains(text, "structuredContent") || len(text) > 2*maxBytes {
			t.Errorf("%s: %v %d bytes %.400s, want %s", name, err, len(text), text, tc.want)
		}
	}
}
