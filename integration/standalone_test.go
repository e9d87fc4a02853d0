package integration

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// A newcomer's first minutes: start, send with the SDK, query with SQL, stop,
// start again, and find everything still there.
func TestStandaloneKeepsSpans(t *testing.T) {
	dir := t.TempDir()
	s := startStandalone(t, dir)
	for _, word := range []string{"MetaFlow is ready", s.at.GRPC, s.at.ClickHouseHTTP, "SELECT"} {
		if !strings.Contains(s.output.String(), word) {
			t.Errorf("the server's greeting lacks %q", word)
		}
	}
	traceID := sendWithSDK(t, s.at.GRPC)
	conn := open(t, s.at.ClickHouseNative)
	s.eventually(time.Minute, exactly(conn, 2))
	var service, kind, endpoint, parent string
	err := conn.QueryRow(t.Context(), `SELECT service_name, toString(kind), endpoint, parent_span_id
		FROM metaflow.spans WHERE trace_id = $1 AND kind = 'server'`, traceID).Scan(&service, &kind, &endpoint, &parent)
	if err != nil || service != "shop" || endpoint != "/cart/{user}" || len(parent) != 16 {
		t.Errorf("service %q, kind %q, endpoint %q, parent %q, %v", service, kind, endpoint, parent, err)
	}
	for _, path := range []string{"/healthz", "/ready"} {
		if code, body, err := get("http://" + s.at.HTTP + path); code != http.StatusOK {
			t.Errorf("%s: %d %s %v", path, code, body, err)
		}
	}
	if _, body, err := get("http://" + s.at.HTTP + "/metrics"); err != nil || !strings.Contains(body, "metaflow_gateway_spans_produced_total 2") {
		t.Errorf("/metrics does not count the two spans: %v", err)
	}
	if code := s.terminate(); code != 0 {
		t.Errorf("exit status %d after SIGTERM", code)
	}

	again := startStandalone(t, dir)
	if err := exactly(open(t, again.at.ClickHouseNative), 2)(); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

func sendWithSDK(t *testing.T, addr string) (traceID string) {
	t.Helper()
	exporter, err := otlptracegrpc.New(t.Context(), otlptracegrpc.WithEndpoint(addr), otlptracegrpc.WithInsecure(), otlptracegrpc.WithCompressor("gzip"))
	if err != nil {
		t.Fatal(err)
	}
	return sendOver(t, exporter)
}

// sendOver sends a trace of two spans as an instrumented program does.
func sendOver(t *testing.T, exporter sdktrace.SpanExporter) (traceID string) {
	t.Helper()
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "shop"))))
	tracer := provider.Tracer("test")
	ctx, client := tracer.Start(t.Context(), "GET", trace.WithSpanKind(trace.SpanKindClient))
	_, server := tracer.Start(ctx, "GET /cart/{user}", trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attribute.String("http.request.method", "GET"), attribute.String("http.route", "/cart/{user}")))
	server.End()
	client.End()
	if err := provider.Shutdown(t.Context()); err != nil {
		t.Fatalf("export: %v", err)
	}
	return client.SpanContext().TraceID().String()
}

// Acknowledged spans survive kill -9 at any time and are stored once, although
// the client retries whenever the outcome is unknown.
func TestStandaloneSurvivesKill(t *testing.T) {
	dir := t.TempDir()
	sent := 0
	for round := range 4 {
		s := startStandalone(t, dir)
		engine := childOf(t, s.cmd.Process.Pid)
		c := newClient(t, s.at.GRPC, uint64(round))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		for range 20 {
			c.send(ctx, 50)
		}
		cancel()
		sent += c.sent
		time.Sleep(time.Duration(round) * 300 * time.Millisecond) //nolint:forbidigo // kill at different moments
		s.kill()
		if err := wait.Poll(10*time.Second, nil, func() error { return ended(engine) }); err != nil {
			t.Errorf("the embedded ClickHouse outlived the server: %v", err)
		}
	}
	s := startStandalone(t, dir)
	s.eventually(time.Minute, exactly(open(t, s.at.ClickHouseNative), sent))
}

// The embedded engine may die. It is restarted, and spans sent meanwhile are
// stored.
func TestStandaloneRestartsItsEngine(t *testing.T) {
	s := startStandalone(t, t.TempDir())
	c := newClient(t, s.at.GRPC, 1)
	c.send(t.Context(), 50)
	if err := syscall.Kill(childOf(t, s.cmd.Process.Pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.send(t.Context(), 50)
	s.eventually(time.Minute, exactly(open(t, s.at.ClickHouseNative), c.sent))
	if code := s.terminate(); code != 0 {
		t.Errorf("exit status %d after SIGTERM", code)
	}
}

// childOf returns the process whose parent is pid.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it ended meanwhile
		}
		var child, parent int
		var state string
		line := string(text)
		if _, err := fmt.Sscan(line, &child); err != nil {
			continue
		}
		if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ')')+1:], &state, &parent); err == nil && parent == pid {
			return child
		}
	}
	t.Fatal("the server has no child process")
	return 0
}

func ended(pid int) error {
	if err := syscall.Kill(pid, 0); err != nil {
		return nil //nolint:nilerr // success: there is no such process
	}
	return fmt.Errorf("process %d lives", pid)
}

func TestStandaloneRejectsBadArguments(t *testing.T) {
	file := filepath.Join(t.TempDir(), "wrong.yaml")
	if err := os.WriteFile(file, []byte("kafka:\n  partitons: 3\nwriter: {max_batch_rows: many}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		args []string
		code int
		says []string
	}{
		"no data directory":   {[]string{"standalone"}, 2, []string{"--data-dir"}},
		"unknown flag":        {[]string{"serve", "--rols", "x"}, 2, []string{"--rols"}},
		"unknown role":        {[]string{"config", "check"}, 0, []string{"valid"}},
		"wrong configuration": {[]string{"config", "check", "--config", file}, 2, []string{"partitons", "partitions", "writer.max_batch_rows", "many"}},
		"missing file":        {[]string{"serve", "--config", "/nonexistent.yaml"}, 2, []string{"/nonexistent.yaml"}},
		"version":             {[]string{"version"}, 0, []string{"metaflow-server"}},
		"unknown command":     {[]string{"sreve"}, 2, []string{"sreve"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			p := start(t, tc.args...)
			<-p.done
			if code := p.cmd.ProcessState.ExitCode(); code != tc.code {
				t.Errorf("exit status %d, want %d", code, tc.code)
			}
			for _, word := range tc.says {
				if !strings.Contains(p.output.String(), word) {
					t.Errorf("output lacks %q:\n%s", word, p.output.String())
				}
			}
		})
	}
}
