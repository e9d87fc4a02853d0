package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"

	"github.com/metaflowys/metaflow-server/deploy/demo/internal/process"
	"github.com/metaflowys/metaflow-server/deploy/demo/spring-boot/queries"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
)

func TestMain(m *testing.M) {
	chengine.MaybeRunChild()
	goleak.VerifyTestMain(m)
}

func say(t *testing.T) func(string, ...any) { return t.Logf }

// Services take up to minutes to start: each one that listens is told at once.
func TestProgressNamesServices(t *testing.T) {
	s := &shop{addresses: map[string]string{}}
	for _, name := range services[:3] {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		s.addresses[name] = listener.Addr().String()
		c, err := process.Start(name, os.Environ(), "sleep", "600")
		if err != nil {
			t.Skipf("no program to wait for: %v", err)
		}
		defer func() { _ = c.Stop() }() // a signal ends sleep with an error
		s.children = append(s.children, c)
	}
	var told []string
	if err := s.awaitReady(t.Context(), func(format string, args ...any) { told = append(told, fmt.Sprintf(format, args...)) }); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(told, "\n")
	for _, want := range append(slices.Clone(services[:3]), "3 of 3") {
		if !strings.Contains(text, want) {
			t.Errorf("progress lacks %q:\n%s", want, text)
		}
	}
}

func TestRunRejectsBadFlags(t *testing.T) {
	tests := map[string]struct {
		args []string
		want string
	}{
		"no visits":       {[]string{"-visits", "0"}, "-visits: 0 is not positive"},
		"an argument":     {[]string{"please"}, `unknown argument "please"`},
		"an unknown flag": {[]string{"-please"}, "flag provided but not defined"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			err := run(t.Context(), tc.args, io.Discard, io.Discard)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("run(%q) = %v, want %q", tc.args, err, tc.want)
			}
		})
	}
}

// Maven runs for new and changed sources only.
func TestBuildOnlyWhenNeeded(t *testing.T) {
	bin, source, target := t.TempDir(), t.TempDir(), t.TempDir()
	ran := filepath.Join(t.TempDir(), "ran")
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(bin, "java"), "#!/bin/sh\n")
	write(filepath.Join(bin, "mvn"), "#!/bin/sh\necho \"$@\" >> "+ran+"\ntest ! -e broken || { echo as the test wants; exit 1; }\n")
	write(filepath.Join(source, "pom.xml"), "<project/>")
	write(filepath.Join(source, "src/main/java/A.java"), "class A {}")
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	o := options{source: source, build: target}
	runs := func() int { text, _ := os.ReadFile(ran); return strings.Count(string(text), "\n") }

	for _, step := range []struct {
		change func()
		want   int
	}{
		{func() {}, 1},
		{func() {}, 1},
		{func() { write(filepath.Join(source, "src/main/java/A.java"), "class A { }") }, 2},
		{func() { write(filepath.Join(source, "src/main/java/B.java"), "class B {}") }, 3},
		{func() { write(filepath.Join(source, "README"), "not built") }, 3},
	} {
		step.change()
		if err := build(t.Context(), o, say(t)); err != nil {
			t.Fatal(err)
		}
		if got := runs(); got != step.want {
			t.Fatalf("Maven ran %d times, want %d", got, step.want)
		}
	}

	write(filepath.Join(source, "broken"), "")
	write(filepath.Join(source, "pom.xml"), "<project>")
	if err := build(t.Context(), o, say(t)); err == nil || !strings.Contains(err.Error(), "as the test wants") {
		t.Errorf("build = %v, want Maven's output", err)
	}
	t.Setenv("PATH", t.TempDir())
	if err := build(t.Context(), o, say(t)); err == nil || !strings.Contains(err.Error(), "17 or newer") {
		t.Errorf("build without Maven = %v", err)
	}
}

// The seed alone determines what visitors do, and every response is counted.
func TestVisit(t *testing.T) {
	requests := make(chan string, 1000)
	shop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		requests <- fmt.Sprint(r.Method, r.URL, r.UserAgent(), string(body))
		if r.Method == http.MethodPost && bytes.Contains(body, []byte(`"itemId":13`)) {
			w.WriteHeader(http.StatusConflict)
		}
	}))
	defer shop.Close()
	drain := func() (all []string) {
		for range len(requests) {
			all = append(all, <-requests)
		}
		slices.Sort(all)
		return all
	}
	seen, err := visit(t.Context(), shop.URL, 20, 1)
	if err != nil {
		t.Fatal(err)
	}
	first := drain()
	if want := 6 * (warmUp + 20); seen.total() != want || len(first) != want {
		t.Errorf("%d answers to %d requests, want %d", seen.total(), len(first), want)
	}
	if seen.statuses[http.StatusConflict] == 0 {
		t.Error("no visitor wanted item 13")
	}
	if _, err := visit(t.Context(), shop.URL, 20, 1); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, drain()); diff != "" {
		t.Errorf("equal seeds differ:\n%s", diff)
	}
}

func TestVisitStopsAtUnexpectedStatus(t *testing.T) {
	shop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "as the test wants", http.StatusInternalServerError)
	}))
	defer shop.Close()
	if _, err := visit(t.Context(), shop.URL, 5, 1); err == nil || !strings.Contains(err.Error(), "as the test wants") {
		t.Errorf("visit = %v", err)
	}
}

// The queries run on ClickHouse itself, on the spans of three requests,
// complete or not.
func TestAnswersAndChecks(t *testing.T) {
	engine := chtest.Start(t, chengine.Options{})
	cfg := clickhouse.DefaultConfig()
	cfg.Addresses = []string{engine.NativeAddr()}
	server, err := clickhouse.Open(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := server.Migrate(t.Context(), clickhouse.Retention{}); err != nil {
		t.Fatal(err)
	}
	db := clickHouse{engine.HTTPAddr()}
	const columns = "trace_id, span_id, parent_span_id, service_name, name, kind, protocol, response_code, status_code, start_time, duration_ns, attributes, events"
	// One request to each service; the last one fails in svc-user.
	rows := []string{
		"'a', '1', '',  'web-shop',  'GET /',  'server', 'http', '200', 0, now64(9), 900000000, {'user_agent.original':'warm-up'}",
		"'a', '2', '1', 'web-shop',  'GET',    'client', 'http', '200', 0, now64(9), 800000000, {}",
		"'a', '3', '2', 'svc-item',  'GET /x', 'server', 'http', '200', 0, now64(9), 700000000, {}",
		"'a', '4', '3', 'svc-item',  'SELECT', 'client', 'h2',   '',    0, now64(9), 600000000, {'db.query.text':'SELECT 1'}",
		"'b', '1', '',  'web-shop',  'POST /', 'server', 'http', '200', 0, now64(9), 90000000, {}",
		"'b', '2', '1', 'web-shop',  'POST',   'client', 'http', '200', 0, now64(9), 80000000, {}",
		"'b', '3', '2', 'svc-order', 'POST /', 'server', 'http', '200', 0, now64(9), 70000000, {}",
		"'b', '4', '3', 'svc-order', 'POST',   'client', 'http', '200', 0, now64(9), 60000000, {}",
		"'b', '5', '4', 'svc-stock', 'POST /', 'server', 'http', '200', 0, now64(9), 50000000, {}",
		"'b', '6', '5', 'svc-stock', 'UPDATE', 'client', 'h2',   '',    0, now64(9), 40000000, {'db.query.text':'UPDATE x'}",
		"'c', '1', '',  'web-shop',  'GET /a', 'server', 'http', '502', 2, now64(9), 9000000, {}",
		"'c', '2', '1', 'web-shop',  'GET',    'client', 'http', '500', 2, now64(9), 8000000, {}",
		"'c', '3', '2', 'svc-user',  'GET /u', 'server', 'http', '500', 2, now64(9), 7000000, {}, [('2026-01-01 00:00:00', 'exception', {'exception.type':'a.b.Broken','exception.message':'twice\\nover'}, 0)]",
		"'c', '4', '3', 'svc-user',  'SELECT', 'client', 'h2',   '',    0, now64(9), 6000000, {'db.query.text':'SELECT 2'}",
	}
	insert := func(rows ...string) {
		t.Helper()
		for _, row := range rows {
			if !strings.Contains(row, "exception") {
				row += ", []"
			}
			if _, err := db.ask(t.Context(), "INSERT INTO metaflow.spans_local ("+columns+") VALUES ("+row+")", nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	insert(rows...)
	seen := &report{statuses: map[int]int{200: 2, 502: 1}}

	t.Run("answers", func(t *testing.T) {
		var out bytes.Buffer
		if err := answer(t.Context(), db, &out); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"│ svc-order │ svc-stock │     1 │",
			"│ svc-stock │         POST / ", // below svc-order, whose request is the slowest after the warm-up
			"│ svc-item  │ SELECT 1  │     1 │",
			"│ GET /a  │ 502    │        1 │ svc-user │ GET /u │ Broken    │ twice   │",
		} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("the answers lack %q:\n%s", want, out.String())
			}
		}
	})
	t.Run("queries of the documentation page", func(t *testing.T) {
		page := readPage(t)
		blocks := strings.Split(page, "```sql\n")[1:]
		if len(blocks) < 5 {
			t.Errorf("found %d queries", len(blocks))
		}
		for _, block := range blocks {
			query, _, _ := strings.Cut(block, "```")
			if _, err := db.table(t.Context(), query); err != nil {
				t.Errorf("%v in\n%s", err, query)
			}
		}
	})
	t.Run("complete", func(t *testing.T) {
		if err := check(t.Context(), options{direct: true}, db, len(rows), seen, io.Discard); err != nil {
			t.Error(err)
		}
		if err := awaitStored(t.Context(), db, len(rows), time.Second, say(t)); err != nil {
			t.Error(err)
		}
	})
	t.Run("a span that never comes", func(t *testing.T) {
		err := awaitStored(t.Context(), db, len(rows)+1, 300*time.Millisecond, say(t))
		if err == nil || !strings.Contains(err.Error(), "14 of 15 acknowledged spans are stored") {
			t.Errorf("awaitStored = %v", err)
		}
	})
	t.Run("incomplete", func(t *testing.T) {
		insert(rows[0], // duplicated
			"'d', '1', '',  'web-shop', 'GET /', 'server', 'http', '200', 0, now64(9), 1, {}", // without children
			"'e', '2', '1', 'web-shop', 'GET',   'client', 'http', '200', 0, now64(9), 1, {}", // an orphan without a server span
			"'f', '1', '',  'stranger', 'CREATE', 'client', 'h2',  '',    0, now64(9), 1, {}") // foreign
		err := check(t.Context(), options{}, db, len(rows)+4, seen, io.Discard)
		if err == nil {
			t.Fatal("check found no problem")
		}
		want := []string{
			"distinct spans: 17, should be 18",
			"spans with the agent's id: 0, should be 18",
			"services with spans: 6, should be 5",
			"requests with response 200: 4, should be 2",
			"spans whose parent is missing: 1, should be 0",
			"calls between services without a server span: 1, should be 0",
			"requests without a call or statement: 1, should be 0",
		}
		if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
			t.Errorf("problems (-want +got):\n%s", diff)
		}
	})
	t.Run("a query that fails", func(t *testing.T) {
		if _, err := db.number(t.Context(), "SELECT nonsense"); err == nil || !strings.Contains(err.Error(), "nonsense") {
			t.Errorf("number = %v", err)
		}
	})
}

// The demo and the Kubernetes manifests run the same services with the same
// settings of the Java agent.
func TestManifestsAgree(t *testing.T) {
	text, err := os.ReadFile("../manifests/springboot-otel-demo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	settings := map[string]string{}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var object struct {
			Kind     string
			Metadata struct{ Name string }
			Data     map[string]string
		}
		if decoder.Decode(&object) != nil {
			break
		}
		switch object.Kind {
		case "Deployment", "StatefulSet":
			names = append(names, object.Metadata.Name)
		case "ConfigMap":
			settings = object.Data
		}
	}
	slices.Sort(names)
	want := append([]string{database, "loadgenerator"}, services...)
	slices.Sort(want)
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("workloads (-want +got):\n%s", diff)
	}
	ours := environment("svc-user", "secret", exporter{"http/protobuf", settings["OTEL_EXPORTER_OTLP_ENDPOINT"]})
	for key, value := range settings {
		if strings.HasPrefix(key, "OTEL_") && !slices.Contains(ours, key+"="+value) {
			t.Errorf("the manifests set %s to %s, the demo does not", key, value)
		}
	}
	dockerfile, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for _, jar := range []string{shopJar, agentJar} {
		if !strings.Contains(string(dockerfile), "/src/target/"+jar) {
			t.Errorf("the image has no %s", jar)
		}
	}
	if !strings.Contains(settings["JAVA_TOOL_OPTIONS"], "-javaagent:/app/"+agentJar) {
		t.Error("the Java agent is not loaded")
	}
}

// The documentation page shows the demo's queries unchanged.
func TestPageShowsQueries(t *testing.T) {
	page := readPage(t)
	for _, query := range []string{queries.Graph, queries.Waterfall, queries.SlowSQL, queries.Errors} {
		if !strings.Contains(page, query) {
			t.Errorf("the page lacks\n%s", query)
		}
	}
}

func readPage(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../../../docs/demo-spring-boot.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// Metrics are matched by their full names.
func TestAcknowledged(t *testing.T) {
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "# TYPE received counter\nreceived 1.2e+03\nreceived_bytes 7\nfailed 200\n")
	}))
	defer agent.Close()
	p := &path{received: "received", failed: "failed", metrics: strings.TrimPrefix(agent.URL, "http://")}
	if n, err := p.acknowledged(t.Context()); n != 1000 || err != nil {
		t.Errorf("acknowledged = %d, %v, want 1000", n, err)
	}
	p.failed = "fail"
	if _, err := p.acknowledged(t.Context()); err == nil || !strings.Contains(err.Error(), "no metric fail") {
		t.Errorf("acknowledged = %v", err)
	}
}
