package agent

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/cors"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/testkit/certs"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

// openListeners runs listeners on loopback until the test ends.
func openListeners(t *testing.T, edit func(*Config)) *listeners {
	t.Helper()
	r := newRig(t, 1<<20)
	local := DefaultConfig()
	local.BindAddress = "127.0.0.1"
	if edit != nil {
		edit(&local)
	}
	l, err := newListeners(local, r.forwarder, prometheus.NewRegistry(), slog.New(slog.DiscardHandler), newExceptions())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run = %v", err)
		}
	})
	return l
}

func integration(port, grpcPort int) *agentconfig.Config {
	cfg := agentconfig.Default()
	cfg.Integration.Enabled, cfg.Integration.ListenPort, cfg.Integration.GRPCPort = true, port, grpcPort
	return &cfg
}

// opens waits until the port is open or closed, as wanted.
func opens(t *testing.T, port int, want bool) {
	t.Helper()
	deadline := time.Now().Add(wait.Patience)
	for {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), time.Second)
		if err == nil {
			_ = conn.Close()
		}
		if (err == nil) == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("port %d open: %t, want %t (%v)", port, err == nil, want, err)
		}
		if err := retry.Sleep(t.Context(), 5*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}

// Ports are opened, moved, closed and reopened as configured.
func TestPortsFollowTheConfiguration(t *testing.T) {
	l := openListeners(t, nil)
	one, two, grpc := ports.Free(t), ports.Free(t), ports.Free(t)
	l.configure(integration(one, 0))
	opens(t, one, true)
	l.configure(integration(two, grpc))
	opens(t, two, true)
	opens(t, grpc, true)
	opens(t, one, false)
	l.configure(integration(0, 0))
	opens(t, two, false)
	opens(t, grpc, false)
	l.configure(integration(two, grpc)) // the metrics of the first listener must be unregistered
	opens(t, two, true)
	opens(t, grpc, true)
	off := *integration(two, grpc)
	off.Integration.Enabled = false
	l.configure(&off)
	opens(t, two, false)
	opens(t, grpc, false)
}

// Web pages may send from the configured origins only, also after these change.
func TestWebPagesFollowTheConfiguration(t *testing.T) {
	l := openListeners(t, nil)
	port := ports.Free(t)
	preflight := func(origin string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, "http://127.0.0.1:"+strconv.Itoa(port)+"/v1/traces", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Origin", origin)
		req.Header.Set("Access-Control-Request-Method", http.MethodPost)
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Do(req)
		if err != nil {
			return 0 // the port is being reopened
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	const one, two = "https://one.example.com", "https://two.example.com"
	for _, origin := range []string{one, two} {
		cfg := integration(port, 0)
		o, err := cors.ParseOrigin(origin)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Integration.CORSAllowedOrigins = []cors.Origin{o}
		l.configure(cfg)
		for deadline := time.Now().Add(wait.Patience); preflight(origin) != http.StatusNoContent; {
			if time.Now().After(deadline) {
				t.Fatalf("pages of %s may not send", origin)
			}
			if err := retry.Sleep(t.Context(), 5*time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := preflight(one); got != http.StatusForbidden {
		t.Errorf("pages of the previous origin got status %d", got)
	}
}

// The check does not succeed between a configuration and its ports.
func TestPortsAreCheckedAfterTheyWereTried(t *testing.T) {
	l, err := newListeners(DefaultConfig(), nil, prometheus.NewRegistry(), slog.New(slog.DiscardHandler), newExceptions())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.check(); err != nil {
		t.Errorf("without a configuration: %v", err)
	}
	l.configure(integration(ports.Free(t), 0))
	if err := l.check(); err == nil {
		t.Error("the check succeeds before a port is open")
	}
}

// A port in use is an exception and makes the agent unready, and is opened once it is free.
func TestPortInUseIsRetried(t *testing.T) {
	l := openListeners(t, nil)
	port := ports.Free(t)
	other, err := net.Listen("tcp", ports.Address(port))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	l.configure(integration(port, 0))
	awaitExceptions(t, l, 1)
	if err := l.check(); err == nil || !strings.Contains(err.Error(), "inputs.integration.listen_port: ") || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("while another program has the port, the check says %v", err)
	}
	_ = other.Close()
	awaitExceptions(t, l, 0)
	if err := l.check(); err != nil {
		t.Errorf("the check of an open port says %v", err)
	}
	opens(t, port, true)
}

func awaitExceptions(t *testing.T, l *listeners, want int) {
	t.Helper()
	deadline := time.After(wait.Patience)
	for len(l.exceptions.texts()) != want {
		select {
		case <-l.exceptions.changed:
		case <-deadline:
			t.Fatalf("exceptions %q, want %d", l.exceptions.texts(), want)
		}
	}
}

// The last of many configurations counts, however fast they arrive.
func TestConfigureDoesNotWait(t *testing.T) {
	l, err := newListeners(DefaultConfig(), newRig(t, 1<<20).forwarder, nil, slog.New(slog.DiscardHandler), newExceptions())
	if err != nil {
		t.Fatal(err)
	}
	for port := range 100 {
		l.configure(integration(port, 0))
	}
	select {
	case cfg := <-l.wanted:
		if cfg.Integration.ListenPort != 99 {
			t.Errorf("port %d is configured, want the last", cfg.Integration.ListenPort)
		}
	default:
		t.Error("no configuration is pending")
	}
}

// The agent's ports ask for TLS and for a bearer token where the host says so.
func TestPortsAskForTLSAndTokens(t *testing.T) {
	authority := certs.NewAuthority(t)
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	leaf := authority.Leaf(t, "agent")
	l := openListeners(t, func(c *Config) {
		c.TLS = tlsconfig.Server{CertFile: file("cert.pem", leaf.Cert), KeyFile: file("key.pem", leaf.Key)}
		c.BearerTokensFile = file("tokens", []byte("one\n"))
	})
	port, grpcPort := ports.Free(t), ports.Free(t)
	l.configure(integration(port, grpcPort))
	opens(t, port, true)
	opens(t, grpcPort, true)
	encrypted := &tls.Config{RootCAs: authority.Pool(), MinVersion: tls.VersionTLS12}
	transport := &http.Transport{TLSClientConfig: encrypted.Clone()}
	defer transport.CloseIdleConnections()
	post := func(scheme, token string) int {
		url := scheme + "://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) + "/v1/traces"
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-protobuf")
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	if got := post("https", "one"); got != http.StatusOK {
		t.Errorf("with TLS and the token: %d", got)
	}
	if got := post("https", "two"); got != http.StatusUnauthorized {
		t.Errorf("with another token: %d", got)
	}
	if got := post("http", "one"); got != http.StatusBadRequest {
		t.Errorf("in plain text: %d", got)
	}
	conn, err := grpc.NewClient(net.JoinHostPort("127.0.0.1", strconv.Itoa(grpcPort)), grpc.WithTransportCredentials(credentials.NewTLS(encrypted)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for token, want := range map[string]codes.Code{"one": codes.OK, "two": codes.Unauthenticated} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
		_, err := coltracepb.NewTraceServiceClient(conn).Export(ctx, &coltracepb.ExportTraceServiceRequest{})
		if status.Code(err) != want || err != nil && !strings.Contains(err.Error(), "otlp.bearer_tokens") {
			t.Errorf("OTLP/gRPC with the token %q: %v, want %s", token, err, want)
		}
	}
}

func TestMistakesOfTheHostShowAtTheStart(t *testing.T) {
	for key, edit := range map[string]func(*Config){
		"otlp.tls.cert_file":      func(c *Config) { c.TLS = tlsconfig.Server{CertFile: "/no/cert", KeyFile: "/no/key"} },
		"otlp.bearer_tokens_file": func(c *Config) { c.BearerTokensFile = "/no/tokens" },
	} {
		local := DefaultConfig()
		edit(&local)
		_, err := newListeners(local, newRig(t, 1<<20).forwarder, nil, slog.New(slog.DiscardHandler), newExceptions())
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%v does not name %s", err, key)
		}
	}
}

// Without TLS or consent to plain text, ports open on loopback, and an exception names
// the lines that open them to others.
func TestPlainTextNeedsConsent(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(*Config)
		want int // exceptions
	}{
		"the defaults":      {func(c *Config) { c.BindAddress = "" }, 1},
		"consent":           {func(c *Config) { c.BindAddress, c.Insecure = "", true }, 0},
		"loopback":          {func(*Config) {}, 0},
		"all, with consent": {func(c *Config) { c.BindAddress, c.Insecure = "0.0.0.0", true }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			l := openListeners(t, tc.edit)
			port := ports.Free(t)
			l.configure(integration(port, 0))
			opens(t, port, true)
			deadline := time.After(wait.Patience)
			for len(l.exceptions.texts()) != tc.want {
				select {
				case <-l.exceptions.changed:
				case <-deadline:
					t.Fatalf("exceptions %q, want %d", l.exceptions.texts(), tc.want)
				}
			}
			for _, text := range l.exceptions.texts() {
				if !strings.Contains(text, `"otlp.insecure: true"`) {
					t.Errorf("%q does not name the remedy", text)
				}
			}
		})
	}
	public := DefaultConfig()
	public.BindAddress = "0.0.0.0"
	if err := public.Validate(); err == nil || !strings.Contains(err.Error(), `"otlp.insecure: true"`) {
		t.Errorf("a public address without consent: %v", err)
	}
}
