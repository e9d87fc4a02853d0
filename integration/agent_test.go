package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/integration/internal/otelcol"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// agentProcess is a running metaflow-agent.
type agentProcess struct {
	*process
	http string // address of its HTTP port
}

// startAgent runs an agent that keeps its data in dir.
func startAgent(t *testing.T, dir, servers string, more ...string) *agentProcess {
	t.Helper()
	a := &agentProcess{http: ports.FreeAddress(t)}
	a.process = startProgram(t, "metaflow-agent", append([]string{
		"run", "--server", servers, "--spool-dir", dir, "--http-listen", a.http,
	}, more...)...)
	return a
}

// answersReady returns an error unless /ready has a status and contains every text.
func (a *agentProcess) answersReady(want int, texts ...string) func() error {
	return func() error {
		code, body, err := get("http://" + a.http + "/ready")
		if err != nil {
			return err
		}
		for _, text := range texts {
			if !strings.Contains(body, text) {
				return fmt.Errorf("/ready lacks %q: %s", text, body)
			}
		}
		if code != want {
			return fmt.Errorf("/ready is %d, want %d: %s", code, want, body)
		}
		return nil
	}
}

// ctl runs metaflow-ctl (or metaflow-cli) against the server at addr and
// returns its output and exit status.
func ctl(t *testing.T, program, addr string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(binaries, program), append(args, "-i", host, "--api-port", port)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// mustCtl runs metaflow-ctl and fails the test unless it succeeds.
func mustCtl(t *testing.T, addr string, args ...string) string {
	t.Helper()
	out, stderr, status := ctl(t, "metaflow-ctl", addr, args...)
	if status != 0 {
		t.Fatalf("metaflow-ctl %v: status %d: %s", args, status, stderr)
	}
	return out
}

// groupID finds the id of an agent group in the output of `agent-group list`.
func groupID(t *testing.T, list, name string) string {
	t.Helper()
	found := regexp.MustCompile(`(?m)^` + name + `\s+(g-[0-9a-z]{10})\b`).FindStringSubmatch(list)
	if found == nil {
		t.Fatalf("no group %q in:\n%s", name, list)
	}
	return found[1]
}

// portOf returns the port of host:port.
func portOf(t *testing.T, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// enable applies the document's file, with its echo's single quotes: the agents
// of the group listen on addr's port.
func enable(t *testing.T, server, id, addr string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "agent.yaml")
	text := fmt.Sprintf("vtap_group_id: ${VTAP_GROUP_ID}\nexternal_agent_http_proxy_enabled: 1\nexternal_agent_http_proxy_port: %s\n", portOf(t, addr))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	mustCtl(t, server, "agent-group-config", "update", id, "-f", file)
}

// listens returns nil if a program listens at addr.
func listens(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	return conn.Close()
}

// silent returns nil if no program listens at addr.
func silent(addr string) error {
	if listens(addr) == nil {
		return fmt.Errorf("%s is open", addr)
	}
	return nil
}

// sender posts requests like a collector's otlphttp exporter: it retries the
// same bytes until they are acknowledged.
type sender struct {
	t    *testing.T
	url  string
	gen  *otlptest.Generator
	sent int // spans acknowledged
}

func newSender(t *testing.T, addr, path string, seed uint64) *sender {
	t.Helper()
	return &sender{
		t: t, url: "http://" + addr + path,
		gen: otlptest.New(seed, otlptest.Options{Start: time.Now().Add(-time.Minute)}),
	}
}

func (s *sender) send(ctx context.Context, spans int) {
	s.t.Helper()
	body, err := proto.Marshal(s.gen.Request(spans))
	if err != nil {
		s.t.Fatal(err)
	}
	for {
		status, err := post(ctx, s.url, body)
		switch {
		case err == nil && status == http.StatusOK:
			s.sent += spans
			return
		case err == nil && status != http.StatusServiceUnavailable && status != http.StatusTooManyRequests:
			s.t.Fatalf("POST %s: status %d", s.url, status)
		}
		select {
		case <-ctx.Done():
			s.t.Fatalf("POST %s: not acknowledged in time: status %d, %v", s.url, status, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func post(ctx context.Context, url string, body []byte) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// The document's chapter on enabling the agent, command by command; then an
// SDK's spans arrive with the address of their sender.
func TestAgentFollowsDocument(t *testing.T) {
	s := startStandalone(t, t.TempDir())
	a := startAgent(t, t.TempDir(), s.at.GRPC)
	port := ports.FreeAddress(t)

	list, stderr, status := ctl(t, "metaflow-cli", s.at.HTTP, "agent-group", "list")
	if status != 0 || !strings.HasPrefix(list, "NAME") {
		t.Fatalf("metaflow-cli agent-group list: status %d, %q %q", status, list, stderr)
	}
	id := groupID(t, list, "default")
	a.eventually(time.Minute, func() error { return agentState(t, s.at.HTTP, "running") })
	if err := silent(port); err != nil {
		t.Errorf("before the configuration: %v", err)
	}
	enable(t, s.at.HTTP, id, port)
	a.eventually(time.Minute, func() error { return listens(port) })

	exporter, err := otlptracehttp.New(t.Context(), otlptracehttp.WithEndpoint(port), otlptracehttp.WithInsecure(),
		otlptracehttp.WithCompression(otlptracehttp.GzipCompression))
	if err != nil {
		t.Fatal(err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "shop"))))
	_, span := provider.Tracer("test").Start(t.Context(), "buy")
	span.End()
	if err := provider.Shutdown(t.Context()); err != nil {
		t.Fatalf("export: %v", err)
	}
	conn := open(t, s.at.ClickHouseNative)
	s.eventually(time.Minute, exactly(conn, 1))
	var ip, agentID string
	if err := conn.QueryRow(t.Context(), "SELECT toString(ip), agent_id FROM metaflow.spans").Scan(&ip, &agentID); err != nil {
		t.Fatal(err)
	}
	// The sender and the server are on this host; the flows of the sender would have one
	// of its addresses, and not loopback.
	if want := addressesOfHost(t); !slices.Contains(want, strings.TrimPrefix(ip, "::ffff:")) || agentID == "" {
		t.Errorf("ip %q, want one of %v; agent_id %q", ip, want, agentID)
	}

	collectorPath := newSender(t, port, "/api/v1/otel/trace", 1)
	collectorPath.send(t.Context(), 100)
	s.eventually(time.Minute, exactly(conn, 101))

	off := filepath.Join(t.TempDir(), "off.yaml")
	if err := os.WriteFile(off, []byte("external_agent_http_proxy_port: 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := mustCtl(t, s.at.HTTP, "agent-group-config", "update", id, "-f", off); !strings.Contains(out, portOf(t, port)) {
		t.Errorf("the update does not print the old value:\n%s", out)
	}
	a.eventually(time.Minute, func() error { return silent(port) })
	if code := a.terminate(); code != 0 {
		t.Errorf("exit status %d after SIGTERM", code)
	}
}

// agentState returns nil if the server's only agent is in this state.
func agentState(t *testing.T, server, state string) error {
	t.Helper()
	out, stderr, status := ctl(t, "metaflow-ctl", server, "agent", "list")
	if status != 0 {
		return fmt.Errorf("status %d: %s", status, stderr)
	}
	if !strings.Contains(strings.ToLower(out), state) {
		return fmt.Errorf("no agent is %s:\n%s", state, out)
	}
	return nil
}

// While the server is down, the agent acknowledges and spools. kill -9 of the
// agent loses none of it, and everything is stored once.
func TestAgentSpoolsWhileServerIsDown(t *testing.T) {
	dir, spool, port, grpc := t.TempDir(), t.TempDir(), ports.FreeAddress(t), ports.FreeAddress(t)
	s := startStandaloneAt(t, dir, grpc)
	a := startAgent(t, spool, grpc)
	id := groupID(t, mustCtl(t, s.at.HTTP, "agent-group", "list"), "default")
	enable(t, s.at.HTTP, id, port)
	a.eventually(time.Minute, func() error { return listens(port) })

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := newSender(t, port, "/v1/traces", 1)
	for range 10 {
		c.send(ctx, 50)
	}
	s.kill()
	for range 40 {
		c.send(ctx, 50)
	}
	a.kill()
	a = startAgent(t, spool, grpc) // has its configuration although no server is up
	a.eventually(time.Minute, func() error { return listens(port) })
	for range 10 {
		c.send(ctx, 50)
	}
	s = startStandaloneAt(t, dir, grpc)
	s.eventually(time.Minute, exactly(open(t, s.at.ClickHouseNative), c.sent))
	c.send(ctx, 50)
	s.eventually(time.Minute, exactly(open(t, s.at.ClickHouseNative), c.sent))
}

// A port in use is shown in the list of agents, and is opened as soon as it is
// free.
func TestAgentReportsPortInUse(t *testing.T) {
	s := startStandalone(t, t.TempDir())
	port := ports.FreeAddress(t)
	taken, err := net.Listen("tcp", ":"+portOf(t, port))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	a := startAgent(t, t.TempDir(), s.at.GRPC)
	id := groupID(t, mustCtl(t, s.at.HTTP, "agent-group", "list"), "default")
	enable(t, s.at.HTTP, id, port)
	a.eventually(time.Minute, func() error { return agentState(t, s.at.HTTP, "address already in use") })
	a.eventually(time.Minute, a.answersReady(http.StatusServiceUnavailable, `"listeners","ok":false`, "address already in use"))
	_ = taken.Close()
	a.eventually(time.Minute, func() error { return listens(port) })
	a.eventually(time.Minute, func() error {
		if agentState(t, s.at.HTTP, "address already in use") == nil {
			return errors.New("the exception is still listed")
		}
		return nil
	})
	a.eventually(time.Minute, a.answersReady(http.StatusOK, `"listeners","ok":true`))
}

// Two replicas of the server have the same state, and an acknowledged change
// survives the replica that acknowledged it.
func TestControlSurvivesReplica(t *testing.T) {
	site := newSite(t, "")
	first, firstHTTP := site.serve("gateway,writer,control")
	ready(first, firstHTTP)
	grpc := ports.FreeAddress(t)
	secondHTTP := ports.FreeAddress(t)
	second := start(t, "serve", "--config", site.config, "--roles", "gateway,control", "--http-listen", secondHTTP, "--grpc-listen", grpc)
	ready(second, secondHTTP)

	port := ports.FreeAddress(t)
	a := startAgent(t, t.TempDir(), site.grpc+","+grpc, "--group", "shops")
	mustCtl(t, firstHTTP, "agent-group", "create", "shops")
	id := groupID(t, mustCtl(t, secondHTTP, "agent-group", "list"), "shops")
	enable(t, firstHTTP, id, port)
	first.kill()
	if out := mustCtl(t, secondHTTP, "agent-group-config", "list", id, "-o", "yaml"); !strings.Contains(out, portOf(t, port)) {
		t.Errorf("the other replica lacks the acknowledged update:\n%s", out)
	}
	a.eventually(time.Minute, func() error { return listens(port) })
	a.eventually(time.Minute, func() error { return agentState(t, secondHTTP, "running") })

	first, firstHTTP = site.serve("gateway,writer,control")
	ready(first, firstHTTP)
	a.eventually(time.Minute, func() error { return agentState(t, firstHTTP, "running") })
	c := newSender(t, port, "/v1/traces", 1)
	for range 20 {
		c.send(t.Context(), 50)
	}
	first.eventually(time.Minute, exactly(open(t, site.engine.NativeAddr()), c.sent))
}

// The document's whole path: SDK, a real collector with the document's otlphttp
// exporter, agent, server.
func TestCollectorThroughAgent(t *testing.T) {
	collector := collectorProgram(t)
	s := startStandalone(t, t.TempDir())
	a := startAgent(t, t.TempDir(), s.at.GRPC)
	port, otlp := ports.FreeAddress(t), ports.FreeAddress(t)
	id := groupID(t, mustCtl(t, s.at.HTTP, "agent-group", "list"), "default")
	enable(t, s.at.HTTP, id, port)
	a.eventually(time.Minute, func() error { return listens(port) })
	otelcol.Run(t, collector, fmt.Sprintf(`
receivers:
  otlp: {protocols: {grpc: {endpoint: %q}}}
exporters:
  otlphttp:
    traces_endpoint: "http://%s/api/v1/otel/trace"
    tls: {insecure: true}
    retry_on_failure: {enabled: true}
service:
  telemetry: {metrics: {level: none}, logs: {level: error}}
  pipelines: {traces: {receivers: [otlp], exporters: [otlphttp]}}
`, otlp, port))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := newClient(t, otlp, 1)
	for range 10 {
		c.send(ctx, 100)
	}
	sendWithSDK(t, otlp)
	s.eventually(time.Minute, exactly(open(t, s.at.ClickHouseNative), c.sent+2))
}
