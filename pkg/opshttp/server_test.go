package opshttp_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/metaflowys/metaflow-server/pkg/opshttp"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a server until the test ends.
func start(t *testing.T, cfg opshttp.Config, opts opshttp.Options) *opshttp.Server {
	t.Helper()
	cfg.Listen = "127.0.0.1:0"
	s, err := opshttp.New(cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return s
}

func get(t *testing.T, s *opshttp.Server, path string) (status int, body string) {
	t.Helper()
	status, body, err := fetch(s, path)
	if err != nil {
		t.Fatal(err)
	}
	return status, body
}

func fetch(s *opshttp.Server, path string) (status int, body string, err error) {
	resp, err := http.Get("http://" + s.Addr().String() + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func TestPaths(t *testing.T) {
	reg := prometheus.NewRegistry()
	spans := prometheus.NewCounter(prometheus.CounterOpts{Name: "spans_total", Help: "Spans."})
	reg.MustRegister(spans)
	spans.Add(3)
	tests := map[string]struct {
		cfg        opshttp.Config
		opts       opshttp.Options
		path       string
		wantStatus int
		wantBody   string
	}{
		"alive":                       {path: "/healthz", wantStatus: 200, wantBody: "ok\n"},
		"ready without checks":        {path: "/ready", wantStatus: 200, wantBody: `{"ready":true,"checks":[]}`},
		"metrics":                     {opts: opshttp.Options{Gatherer: reg}, path: "/metrics", wantStatus: 200, wantBody: "spans_total 3"},
		"no metrics without gatherer": {path: "/metrics", wantStatus: 404},
		"profiles when configured":    {cfg: opshttp.Config{Pprof: true}, path: "/debug/pprof/goroutine?debug=1", wantStatus: 200, wantBody: "goroutine profile"},
		"no profiles otherwise":       {path: "/debug/pprof/", wantStatus: 404},
		"anything else":               {path: "/", wantStatus: 404},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			status, body := get(t, start(t, tc.cfg, tc.opts), tc.path)
			if status != tc.wantStatus || !strings.Contains(body, tc.wantBody) {
				t.Errorf("%s = %d %q, want %d with %q", tc.path, status, body, tc.wantStatus, tc.wantBody)
			}
		})
	}
}

func check(name string, f func(context.Context) error) opshttp.Check {
	return opshttp.Check{Name: name, Func: f}
}

func TestReadyNamesEveryCheckAndItsCause(t *testing.T) {
	fine := func(context.Context) error { return nil }
	tests := map[string]struct {
		checks     []opshttp.Check
		wantStatus int
		wantBody   string
	}{
		"all there": {
			[]opshttp.Check{check("kafka", fine), check("clickhouse", fine)},
			200, `{"ready":true,"checks":[{"name":"kafka","ok":true},{"name":"clickhouse","ok":true}]}`,
		},
		"one away": {
			[]opshttp.Check{check("kafka", func(context.Context) error { return errors.New("dial 10.0.0.1:9092: refused") }), check("clickhouse", fine)},
			503, `{"ready":false,"checks":[{"name":"kafka","ok":false,"cause":"dial 10.0.0.1:9092: refused"},{"name":"clickhouse","ok":true}]}`,
		},
		"one panics": {
			[]opshttp.Check{check("kafka", func(context.Context) error { panic("nil client") })},
			503, `{"ready":false,"checks":[{"name":"kafka","ok":false,"cause":"panic: nil client"}]}`,
		},
		"one does not answer": {
			[]opshttp.Check{check("kafka", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }), check("clickhouse", fine)},
			503, `{"ready":false,"checks":[{"name":"kafka","ok":false,"cause":"context deadline exceeded"},{"name":"clickhouse","ok":true}]}`,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			status, body := get(t, start(t, opshttp.Config{}, opshttp.Options{Checks: tc.checks}), "/ready")
			if status != tc.wantStatus {
				t.Errorf("status %d, want %d", status, tc.wantStatus)
			}
			if diff := cmp.Diff(tc.wantBody+"\n", body); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Each check runs once for all concurrent requests, and the checks of one verdict run in
// parallel: here each waits for the other.
func TestChecksRunOnceAndInParallel(t *testing.T) {
	var calls atomic.Int32
	met := make(chan struct{})
	s := start(t, opshttp.Config{}, opshttp.Options{Checks: []opshttp.Check{
		check("kafka", func(context.Context) error { calls.Add(1); met <- struct{}{}; return nil }),
		check("clickhouse", func(context.Context) error { calls.Add(1); <-met; return nil }),
	}})
	began := time.Now()
	statuses := make(chan int)
	for range 8 {
		go func() {
			status, _, err := fetch(s, "/ready")
			if err != nil {
				t.Error(err)
			}
			statuses <- status
		}()
	}
	for range 8 {
		if status := <-statuses; status != 200 {
			t.Errorf("status %d", status)
		}
	}
	if got := calls.Load(); got != 2 && time.Since(began) < time.Second {
		t.Errorf("checks ran %d times for 8 requests, want 2", got)
	}
}

func TestHandleAddsPaths(t *testing.T) {
	s := start(t, opshttp.Config{}, opshttp.Options{})
	s.Handle("GET /v1/hello", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hi") }))
	if status, body := get(t, s, "/v1/hello"); status != 200 || body != "hi" {
		t.Errorf("got %d %q", status, body)
	}
}

func TestRunningAnswersFinish(t *testing.T) {
	s, err := opshttp.New(opshttp.Config{Listen: "127.0.0.1:0"}, opshttp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	entered, release := make(chan struct{}), make(chan struct{})
	s.Handle("/slow", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		_, _ = io.WriteString(w, "done")
	}))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	body := make(chan string, 1)
	go func() {
		_, b, err := fetch(s, "/slow")
		if err != nil {
			t.Error(err)
		}
		body <- b
	}()
	<-entered
	cancel()
	close(release)
	if got := <-body; got != "done" {
		t.Errorf("got %q from a response that was in progress at the stop", got)
	}
	http.DefaultClient.CloseIdleConnections()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
}

func TestNewReportsWhatIsWrong(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	tests := map[string]struct{ listen, want string }{
		"port taken":  {taken.Addr().String(), "http.listen: listen tcp " + taken.Addr().String() + ": bind: address already in use"},
		"not a port":  {"here", `listen: "here" is not host:port such as 0.0.0.0:8080, [::1]:8080 or :8080`},
		"nothing set": {"", `listen: "" is not host:port such as 0.0.0.0:8080, [::1]:8080 or :8080`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s, err := opshttp.New(opshttp.Config{Listen: tc.listen}, opshttp.Options{})
			if err == nil {
				s.Close()
				t.Fatal("New accepted it")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("New = %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestCloseReleasesThePortOfAServerThatNeverRan(t *testing.T) {
	addr := ports.FreeAddress(t)
	s, err := opshttp.New(opshttp.Config{Listen: addr}, opshttp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatalf("the port is still in use: %v", err)
	}
	l.Close()
}

// A probe may ask for one condition, regardless of the others.
func TestReadyForOneCheck(t *testing.T) {
	s := start(t, opshttp.Config{}, opshttp.Options{Checks: []opshttp.Check{
		{Name: "kafka", Func: func(context.Context) error { return nil }},
		{Name: "clickhouse", Func: func(context.Context) error { return errors.New("away") }},
	}})
	for path, want := range map[string]int{
		"/ready":                              http.StatusServiceUnavailable,
		"/ready?check=kafka":                  http.StatusOK,
		"/ready?check=clickhouse":             http.StatusServiceUnavailable,
		"/ready?check=kafka&check=clickhouse": http.StatusServiceUnavailable,
		"/ready?check=kafak":                  http.StatusBadRequest,
	} {
		if status, body := get(t, s, path); status != want || strings.Contains(body, "away") && path == "/ready?check=kafka" {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

func TestTLS(t *testing.T) {
	authority := httptest.NewTLSServer(nil) // has a certificate for 127.0.0.1
	defer authority.Close()
	pair := authority.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cfg := opshttp.Config{TLS: tlsconfig.Server{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key")}}
	for name, block := range map[string]*pem.Block{cfg.TLS.CertFile: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, cfg.TLS.KeyFile: {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, cfg, opshttp.Options{})
	resp, err := authority.Client().Get("https://" + s.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("status %d over TLS", resp.StatusCode)
	}
	if status, _ := get(t, s, "/healthz"); status == http.StatusOK {
		t.Error("plain text gets a response, too")
	}
}

// News are asked at each verdict, and do not make the program unready.
func TestNews(t *testing.T) {
	s := start(t, opshttp.Config{}, opshttp.Options{Notices: []string{"plain text"}, News: func() []string { return []string{"no server answers"} }})
	if status, body := get(t, s, "/ready"); status != http.StatusOK || !strings.Contains(body, `"notices":["plain text","no server answers"]`) {
		t.Errorf("/ready: %d %s", status, body)
	}
}
