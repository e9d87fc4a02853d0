package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/schema/jaegerstorage"
)

// asking is a server of the role query alone, without Kafka and ClickHouse.
func asking(t *testing.T, edit func(*server)) *app {
	t.Helper()
	cfg := defaultServer()
	cfg.Roles, cfg.HTTP.Listen = []string{roleQuery}, "127.0.0.1:0"
	cfg.Query.HTTPListen, cfg.Query.GRPCListen = "127.0.0.1:0", "127.0.0.1:0"
	cfg.Kafka.Brokers, cfg.ClickHouse.Addresses = []string{"127.0.0.1:1"}, []string{"127.0.0.1:1"}
	edit(cfg)
	return runApp(t, cfg)
}

// runApp runs a server until the test ends.
func runApp(t *testing.T, cfg *server) *app {
	t.Helper()
	a, err := newApp(cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("run = %v", err)
		}
	})
	return a
}

// ask asks the port of queries.
func ask(t *testing.T, a *app, path string, edit func(*http.Request)) (int, string) {
	t.Helper()
	return getFrom(t, a.asked.http.Addr(), path, edit)
}

func getFrom(t *testing.T, addr net.Addr, path string, edit func(*http.Request)) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr.String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	edit(req)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// The role query runs without Kafka, and without ClickHouse it says what is missing. On
// loopback it answers this host without a token, and no page whose name was rebound to it.
func TestQueriesStandAlone(t *testing.T) {
	a := asking(t, func(*server) {})
	same := func(*http.Request) {}
	if code, body := ask(t, a, "/api/echo", same); code != http.StatusOK || body != "echo" {
		t.Errorf("/api/echo: %d %s", code, body)
	}
	if code, body := ask(t, a, "/api/search", same); code != http.StatusServiceUnavailable || !strings.Contains(body, "connection refused") {
		t.Errorf("a search without ClickHouse: %d %s", code, body)
	}
	if code, body := ask(t, a, "/ready", same); code != http.StatusServiceUnavailable || !strings.Contains(body, "query") || strings.Contains(body, "kafka") {
		t.Errorf("/ready: %d %s", code, body)
	}
	rebound := func(r *http.Request) { r.Host = "evil.example" }
	if code, body := ask(t, a, "/api/echo", rebound); code != http.StatusForbidden {
		t.Errorf("for evil.example: %d %s", code, body)
	}
}

// Pages of other sites cannot start queries, but may link to the page; this server's own
// page and programs may ask.
func TestQueriesRefuseOtherSites(t *testing.T) {
	a := asking(t, func(*server) {})
	own := "http://" + a.asked.http.Addr().String()
	for name, tc := range map[string]struct {
		path    string
		headers map[string]string
		want    int
	}{
		"curl":                        {"/api/echo", nil, 200},
		"the address bar":             {"/api/echo", map[string]string{"Sec-Fetch-Site": "none"}, 200},
		"its own page":                {"/api/echo", map[string]string{"Sec-Fetch-Site": "same-origin", "Origin": own}, 200},
		"its own page in old browser": {"/api/echo", map[string]string{"Origin": own}, 200},
		"an image":                    {"/api/search", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403},
		"a page of another port":      {"/ui/data/edges", map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		"a script of another site":    {"/mcp", map[string]string{"Origin": "https://evil.example"}, 403},
		"a sandboxed page":            {"/mcp", map[string]string{"Origin": "null"}, 403},
		"a link to the page":          {"/ui/", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200},
		"a frame of the page":         {"/ui/", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403},
		"a link to data":              {"/ui/data/edges", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 403},
	} {
		code, body := ask(t, a, tc.path, func(r *http.Request) {
			for key, value := range tc.headers {
				r.Header.Set(key, value)
			}
		})
		if code != tc.want {
			t.Errorf("%s: %d %.200s, want %d", name, code, body, tc.want)
		}
	}
}

// Another role is ready while queries are not: their own port says so.
func TestQueriesDoNotBlockOtherRoles(t *testing.T) {
	a := asking(t, func(s *server) { s.Roles, s.GRPC.Listen = []string{roleGateway, roleQuery}, "127.0.0.1:0" })
	named := func(addr net.Addr) bool {
		_, body := getFrom(t, addr, "/ready", func(*http.Request) {})
		return strings.Contains(body, `"query"`)
	}
	if named(a.http.Addr()) {
		t.Error("the main port checks queries")
	}
	if !named(a.asked.http.Addr()) {
		t.Error("the port of queries does not check them")
	}
}

// With tokens, both ports ask for one, but probes need none.
func TestQueriesAskForTokens(t *testing.T) {
	a := asking(t, func(s *server) { s.Query.Tokens = []string{"hush"} })
	for token, want := range map[string]int{"": http.StatusUnauthorized, "wrong": http.StatusUnauthorized, "hush": http.StatusOK} {
		with := func(r *http.Request) {
			r.Host = "traces.example"
			if token != "" {
				r.Header.Set("Authorization", "Bearer "+token)
			}
		}
		if code, body := ask(t, a, "/api/echo", with); code != want || code != http.StatusOK && !strings.Contains(body, "query.tokens") {
			t.Errorf("with the token %q: %d %s", token, code, body)
		}
	}
	conn, err := grpc.NewClient(a.asked.grpc.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Errorf("health: %v", err)
	}
	for token, refused := range map[string]bool{"": true, "wrong": true, "hush": false} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
		_, err := jaegerstorage.NewTraceReaderClient(conn).GetServices(ctx, &jaegerstorage.GetServicesRequest{})
		if (status.Code(err) == codes.Unauthenticated) != refused {
			t.Errorf("services with the token %q: %v", token, err) // there is no ClickHouse to tell them
		}
	}
}

// A port of the role query that another program uses is told by its own key.
func TestTakenQueryPorts(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for key, set := range map[string]func(*server){
		"query.http_listen": func(s *server) { s.Query.HTTPListen = taken.Addr().String() },
		"query.grpc_listen": func(s *server) { s.Query.GRPCListen = taken.Addr().String() },
	} {
		cfg := defaultServer()
		cfg.Roles = []string{roleQuery}
		cfg.HTTP.Listen, cfg.Query.HTTPListen, cfg.Query.GRPCListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
		set(cfg)
		_, err := newApp(cfg, slog.New(slog.DiscardHandler))
		if err == nil || !strings.HasPrefix(err.Error(), key+": ") {
			t.Errorf("%s taken: %v", key, err)
		}
	}
}
