package integration

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// The trial of README: a server and an agent beside it in the foreground. Spans
// that a local program sends to the agent have an address of the host, a second run on
// the same data leaves the first one's addresses alone, and Ctrl-C ends the agent before the
// server and leaves no process behind.
func TestTrialWithAgent(t *testing.T) {
	script, err := filepath.Rel(binaries, filepath.Join(repository(t), "deploy/trial/with-agent.sh"))
	if err != nil {
		t.Fatal(err)
	}
	data, port, ops := t.TempDir(), ports.Free(t), "127.0.0.1:"+strconv.Itoa(ports.Free(t))
	t.Setenv("AGENT_PORT", strconv.Itoa(port))
	t.Setenv("AGENT_HTTP", ops)
	freePorts := []string{
		"--grpc-listen", "127.0.0.1:0", "--otlp-http-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
		"--query-http-listen", "127.0.0.1:0", "--query-grpc-listen", "127.0.0.1:0", "--kafka-listen", "127.0.0.1:0", "--clickhouse-native-port", "0", "--clickhouse-http-port", "0",
	}
	p := startProgram(t, script, append([]string{binaries, data}, freePorts...)...)
	defer p.terminate()
	p.eventually(2*time.Minute, func() error {
		code, body, err := get("http://" + ops + "/ready")
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("/ready: %d %s", code, body)
		}
		return err
	})
	endpoint := "127.0.0.1:" + strconv.Itoa(port)
	p.eventually(time.Minute, func() error {
		conn, err := net.DialTimeout("tcp", endpoint, time.Second)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	exporter, err := otlptracehttp.New(t.Context(), otlptracehttp.WithEndpoint(endpoint), otlptracehttp.WithInsecure())
	if err != nil {
		t.Fatal(err)
	}
	sendOver(t, exporter)
	if strings.Contains(p.output.String(), "listener is open on loopback only") {
		t.Error("the trial warns of its own configuration")
	}
	t.Setenv("AGENT_PORT", strconv.Itoa(ports.Free(t)))
	t.Setenv("AGENT_HTTP", "127.0.0.1:"+strconv.Itoa(ports.Free(t)))
	second := startProgram(t, script, append([]string{binaries, data}, freePorts...)...)
	select {
	case <-second.done:
	case <-time.After(time.Minute):
		t.Fatal("a second run on the same data goes on")
	}
	if code, out := second.cmd.ProcessState.ExitCode(), second.output.String(); code != 1 || !strings.Contains(out, "is used by another engine") {
		t.Errorf("a second run on the same data: status %d, %s", code, out)
	}
	text, err := os.ReadFile(filepath.Join(data, "addresses.json"))
	if err != nil {
		t.Fatal(err)
	}
	_, native, _ := strings.Cut(string(text), `"clickhouse_native":"`)
	native, _, _ = strings.Cut(native, `"`)
	conn := open(t, native)
	p.eventually(time.Minute, exactly(conn, 2))
	var ip string
	if err := conn.QueryRow(t.Context(), "SELECT toString(any(ip)) FROM metaflow.spans").Scan(&ip); err != nil || ip == "::" || strings.Contains(ip, "127.0.0.1") {
		t.Errorf("the spans have the address %q, %v", ip, err)
	}
	if os.Getuid() == 0 {
		callWithNetwork(t, p, endpoint, conn)
	}
	if code := p.interrupt(); code != 0 {
		t.Errorf("exit status %d after Ctrl-C", code)
	}
	if strings.Contains(p.output.String(), "spooling requests to disk") {
		t.Error("Ctrl-C ends the server before the agent")
	}
	for _, addr := range []string{endpoint, native} {
		if conn, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
			_ = conn.Close()
			t.Errorf("something still listens on %s", addr)
		}
	}
}

// A port of the agent that another program has is named before anything starts, with the
// variable that chooses another one.
func TestTrialPortInUse(t *testing.T) {
	script, err := filepath.Rel(binaries, filepath.Join(repository(t), "deploy/trial/with-agent.sh"))
	if err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	free := strconv.Itoa(ports.Free(t))
	for _, tc := range []struct{ port, http, want string }{
		{port, "127.0.0.1:" + free, "another program uses the port 127.0.0.1:" + port + "; choose another one for the agent with AGENT_PORT=...\n"},
		{free, taken.Addr().String(), "another program uses the port 127.0.0.1:" + port + "; choose another one for the agent with AGENT_HTTP=127.0.0.1:...\n"},
		{free, port, "another program uses the port 127.0.0.1:" + port + "; choose another one for the agent with AGENT_HTTP=127.0.0.1:...\n"},
		{free, ":" + port, "another program uses the port :" + port + "; choose another one for the agent with AGENT_HTTP=127.0.0.1:...\n"},
		{free, "[::ffff:127.0.0.1]:" + port, "another program uses the port [::ffff:127.0.0.1]:" + port + "; choose another one for the agent with AGENT_HTTP=127.0.0.1:...\n"},
	} {
		t.Setenv("AGENT_PORT", tc.port)
		t.Setenv("AGENT_HTTP", tc.http)
		p := startProgram(t, script, binaries, t.TempDir())
		select {
		case <-p.done:
		case <-time.After(time.Minute):
			t.Fatal("it runs")
		}
		if got := p.output.String(); got != tc.want {
			t.Errorf("output %q, want %q", got, tc.want)
		}
		if code := p.cmd.ProcessState.ExitCode(); code != 1 {
			t.Errorf("exit status %d", code)
		}
	}
}

// callWithNetwork sends the span of a call to an address of this host, and waits until the
// trace has the flow of its connection.
func callWithNetwork(t *testing.T, p *process, endpoint string, conn driver.Conn) {
	t.Helper()
	host := addressOfHost(t)
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c) // the caller ends it
			_ = c.Close()
		}
	}()
	exporter, err := otlptracehttp.New(t.Context(), otlptracehttp.WithEndpoint(endpoint), otlptracehttp.WithInsecure())
	if err != nil {
		t.Fatal(err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter))
	at := listener.Addr().(*net.TCPAddr) //nolint:forcetypeassert // a TCP listener has no other
	_, span := provider.Tracer("test").Start(t.Context(), "GET", trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		attribute.String("network.peer.address", host), attribute.Int("network.peer.port", at.Port)))
	client, err := net.Dial("tcp", at.String())
	if err == nil {
		_, err = client.Write([]byte("ping"))
	}
	if err == nil {
		_, err = io.ReadFull(client, make([]byte, len("ping")))
	}
	if err != nil {
		t.Fatal(err)
	}
	span.End()
	_ = client.Close()
	if err := provider.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.eventually(time.Minute, func() error {
		var verdict, unmatched string
		err := conn.QueryRow(t.Context(), "SELECT toString(verdict), toString(unmatched) FROM ("+documentedQuery(t)+")").Scan(&verdict, &unmatched)
		if err == nil && unmatched != "" {
			err = fmt.Errorf("verdict %q, unmatched: %s", verdict, unmatched)
		}
		return err
	})
}

// documentedQuery returns the query of docs/install.md for a trace of everything on one host.
func documentedQuery(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository(t), "docs/install.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?s)--data-binary "(SELECT [^"]*trace_network[^"]*)"`).FindStringSubmatch(string(text))
	if found == nil {
		t.Fatal("docs/install.md has no such query")
	}
	return strings.TrimSuffix(found[1], " FORMAT PrettyCompact")
}

// addressOfHost returns an IPv4 address of this host that is not loopback, or skips the
// rest of the test.
func addressOfHost(t *testing.T) string {
	t.Helper()
	for _, a := range addressesOfHost(t) {
		if strings.Contains(a, ".") && a != "127.0.0.1" {
			return a
		}
	}
	t.Skip("this host has no address but loopback")
	return ""
}

// addressesOfHost returns the addresses of this host that are not loopback, or loopback if
// there is no other.
func addressesOfHost(t *testing.T) (found []string) {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			found = append(found, n.IP.String())
		}
	}
	if len(found) == 0 {
		return []string{"127.0.0.1"}
	}
	return found
}

// A port in use is one line that names the flag and the variable of `make run`, and no
// stack trace.
func TestStandalonePortInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address := taken.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	free := map[string]string{
		"--clickhouse-native-port": "0", "--clickhouse-http-port": "0", "--kafka-listen": "127.0.0.1:0", "--grpc-listen": "127.0.0.1:0", "--http-listen": "127.0.0.1:0",
		"--otlp-http-listen": "127.0.0.1:0", "--query-http-listen": "127.0.0.1:0", "--query-grpc-listen": "127.0.0.1:0",
	}
	for flag, variable := range map[string]string{
		"--clickhouse-native-port": "CLICKHOUSE", "--clickhouse-http-port": "CLICKHOUSE_HTTP", "--kafka-listen": "KAFKA", "--grpc-listen": "GRPC", "--http-listen": "HTTP",
		"--otlp-http-listen": "OTLP_HTTP", "--query-http-listen": "QUERY_HTTP", "--query-grpc-listen": "QUERY_GRPC",
	} {
		args := []string{"standalone", "--data-dir", t.TempDir()}
		for name, value := range free {
			if name == flag {
				if value = address; strings.HasSuffix(flag, "-port") {
					value = port
				}
			}
			args = append(args, name, value)
		}
		p := start(t, args...)
		select {
		case <-p.done:
		case <-time.After(2 * time.Minute):
			t.Fatalf("%s: it runs", flag)
		}
		want := fmt.Sprintf("metaflow-server: %s: another program uses the port %s; choose another one (with make run: %s=...)\n", flag, address, variable)
		// The gateway opens its ports while other parts of the server run and may log.
		if got := logLine.ReplaceAllString(p.output.String(), ""); got != want {
			t.Errorf("output %q, want %q", got, want)
		}
	}
}

var logLine = regexp.MustCompile(`(?m)^time=.*\n`)
