package main

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
)

// Whoever reaches something else than the API is told what to write.
func TestWrongPortOrToken(t *testing.T) {
	var none http.HandlerFunc = func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "404 page not found", http.StatusNotFound) }
	other := httptest.NewServer(none)
	defer other.Close()
	secure := httptest.NewTLSServer(none)
	defer secure.Close()
	grpc := httptest.NewUnstartedServer(nil)
	grpc.Listener.Close()
	grpc.Listener = http2Only(t)
	for name, tc := range map[string]struct {
		server *httptest.Server
		flags  []string
		want   string
	}{
		"another program":      {other, nil, "is not the HTTP port of a metaflow-server: set --api-port"},
		"gRPC":                 {grpc, nil, "is not the HTTP port of a metaflow-server: set --api-port"},
		"TLS without the flag": {secure, nil, "this port has TLS: add --tls"},
		"the flag without TLS": {other, []string{"--tls"}, "this port has no TLS: leave out --tls"},
		"unknown authority":    {secure, []string{"--tls"}, "set --ca-file"},
	} {
		c := &ctl{env: at(tc.server)}
		got := c.run(append([]string{"agent", "list"}, tc.flags...)...)
		if got.status != 1 || !strings.Contains(got.stderr, tc.want) {
			t.Errorf("%s: status %d, %s; want %q", name, got.status, got.stderr, tc.want)
		}
	}
}

// http2Only listens as a gRPC port does: its first bytes are an HTTP/2 SETTINGS frame.
func http2Only(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "\x00\x00\x00\x04\x00\x00\x00\x00\x00")
			_ = conn.Close()
		}
	}()
	return l
}

func TestMissingTokenIsNamed(t *testing.T) {
	set, err := tokens.Open(nil, tokens.List{Key: "control.token", Values: []string{"right"}, Label: api.RoleWrite})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(api.NewHandler(newMemory(), api.HandlerOptions{Tokens: set}))
	defer server.Close()
	c := &ctl{env: at(server)}
	if got := c.run("agent", "list"); got.status != 1 || !strings.Contains(got.stderr, "set the token with --token-file or METAFLOW_CTL_TOKEN") {
		t.Errorf("without a token: %d, %s", got.status, got.stderr)
	}
	c.env["METAFLOW_CTL_TOKEN"] = "right"
	c.ok(t, "agent", "list")
}

// The commands of the backup in docs/operate.md: a new server gets the groups, with their
// ids, and their configurations.
func TestBackupOfGroups(t *testing.T) {
	old := against(t, newMemory())
	old.ok(t, "agent-group", "create", "edge", "--id", "g-edge000001")
	old.ok(t, "agent-group-config", "update", "edge", "-f", "testdata/agent.yaml")
	groups := write(t, old.ok(t, "agent-group", "list", "-o", "json"))
	configurations := write(t, old.ok(t, "agent-group-config", "list", "-o", "yaml"))

	restored := against(t, newMemory())
	if got := restored.ok(t, "agent-group", "create", "-f", groups); !strings.Contains(got, "g-edge000001") || strings.Contains(got, "default") {
		t.Errorf("create -f prints:\n%s", got)
	}
	restored.ok(t, "agent-group-config", "update", "-f", configurations)
	for _, args := range [][]string{{"agent-group-config", "show", "edge"}, {"agent-group", "list", "edge"}} {
		if got, want := restored.ok(t, args...), old.ok(t, args...); got != want {
			t.Errorf("%v after the restore:\n%s, want\n%s", args, got, want)
		}
	}
	if got := restored.ok(t, "agent-group", "create", "-f", groups, "-o", "json"); strings.TrimSpace(got) != "[]" {
		t.Errorf("again: %s", got)
	}
}

// Flags take durations as configurations do.
func TestTimeoutInDays(t *testing.T) {
	c := &ctl{}
	if got := c.run("agent", "list", "--timeout", "1d", "--help"); got.status != 0 {
		t.Errorf("status %d, %s", got.status, got.stderr)
	}
}

// A wrong variable is answered with what it takes, as a wrong flag is.
func TestWrongVariable(t *testing.T) {
	c := &ctl{env: map[string]string{"METAFLOW_CTL_API_PORT": "http"}}
	if got := c.run("agent", "list"); got.status != 2 || !strings.Contains(got.stderr, `METAFLOW_CTL_API_PORT "http" is not a whole number from 0 to 65535`) {
		t.Errorf("status %d, %s", got.status, got.stderr)
	}
}
