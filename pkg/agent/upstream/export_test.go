package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

func TestBytesArriveUnchanged(t *testing.T) {
	srv := newReplica(t, nil)
	reg := prometheus.NewRegistry()
	c := newClient(t, testConfig(srv.addr), upstream.Options{AgentID: "agent-7", Registerer: reg})
	waitReady(t, c)

	large := bytes.Repeat([]byte("not even protobuf "), 100_000)
	sent := []struct {
		body []byte
		opts upstream.ExportOptions
	}{
		{body(), upstream.ExportOptions{}},
		{body(), upstream.ExportOptions{Resend: true, Received: time.Unix(1_790_000_000, 123_456_789)}},
		{large, upstream.ExportOptions{}},
		{large, upstream.ExportOptions{Compress: true}},
		{[]byte{1}, upstream.ExportOptions{Compress: true, Resend: true}},
	}
	for _, s := range sent {
		if res, err := c.Export(t.Context(), traces.Signal, s.body, s.opts); err != nil || res != (signal.Result{}) {
			t.Fatalf("Export = %+v, %v", res, err)
		}
	}
	got := srv.received()
	if len(got) != len(sent) {
		t.Fatalf("%d requests arrived, want %d", len(got), len(sent))
	}
	for i, s := range sent {
		if !bytes.Equal(got[i].Body, s.body) || got[i].Resend != s.opts.Resend || !got[i].Received.Equal(s.opts.Received) || got[i].Agent != "agent-7" {
			t.Errorf("request %d arrived as %d bytes, resend %v, agent %q", i, len(got[i].Body), got[i].Resend, got[i].Agent)
		}
	}
	if n := prom.Value(t, reg, "metaflow_upstream_requests_total", "OK"); n != float64(len(sent)) {
		t.Errorf("%v requests counted", n)
	}
}

func TestPartialSuccess(t *testing.T) {
	srv := newReplica(t, nil)
	srv.answers(func(context.Context, signal.Request) (signal.Result, error) {
		return signal.Result{Rejected: 3, Message: "too old"}, nil
	})
	c := newClient(t, testConfig(srv.addr), upstream.Options{})
	waitReady(t, c)
	res, err := c.Export(t.Context(), traces.Signal, body(), upstream.ExportOptions{})
	if err != nil || res != (signal.Result{Rejected: 3, Message: "too old"}) {
		t.Errorf("Export = %+v, %v", res, err)
	}
}

func TestRequestsAreBalanced(t *testing.T) {
	a, b, c := newReplica(t, nil), newReplica(t, nil), newReplica(t, nil)
	cli := newClient(t, testConfig(a.addr, b.addr, c.addr), upstream.Options{})
	waitReady(t, cli)
	export := func() { // from here on all are connected
		if _, err := cli.Export(t.Context(), traces.Signal, body(), upstream.ExportOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	wait.Until(t, "every replica receives a request", func() bool {
		export()
		return len(a.received()) > 0 && len(b.received()) > 0 && len(c.received()) > 0
	})
	before := []int{len(a.received()), len(b.received()), len(c.received())}
	for range 30 {
		export()
	}
	for i, r := range []*replica{a, b, c} {
		if n := len(r.received()) - before[i]; n < 9 || n > 11 {
			t.Errorf("replica %d received %d of 30 requests", i, n)
		}
	}
}

// One of two replicas goes away and comes back. The other takes all requests in
// between, no error lasts, and the first is used again.
func TestReplicaRestart(t *testing.T) {
	a, b := newReplica(t, nil), newReplica(t, nil)
	cli := newClient(t, testConfig(a.addr, b.addr), upstream.Options{})
	waitReady(t, cli)
	export := func() error {
		_, err := cli.Export(t.Context(), traces.Signal, body(), upstream.ExportOptions{})
		return err
	}
	wait.Until(t, "both replicas receive a request", func() bool {
		return export() == nil && len(a.received()) > 0 && len(b.received()) > 0
	})
	a.stop()
	failed := 0
	for range 50 {
		if err := export(); err != nil {
			failed++
			if fault.ClassOf(err) == fault.Rejected {
				t.Errorf("unexpected error while a replica is down: %v", err)
			}
		}
	}
	if failed > 1 {
		t.Errorf("%d of 50 requests failed although a replica was up", failed)
	}
	if !cli.Ready() {
		t.Error("not ready although a replica is up")
	}
	a.start(t, rpc.Options{ShutdownGrace: time.Second})
	before := len(a.received())
	wait.Until(t, "the restarted replica receives a request", func() bool {
		return export() == nil && len(a.received()) > before
	})
}

func TestNoServerFailsAtOnce(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := newClient(t, testConfig(ports.FreeAddress(t)), upstream.Options{Registerer: reg})
	_, err := c.Export(t.Context(), traces.Signal, body(), upstream.ExportOptions{})
	if err == nil || upstream.OutcomeUnknown(err) || fault.ClassOf(err) != fault.Retryable {
		t.Errorf("the first Export = %v", err)
	}
	if n := prom.Value(t, reg, "metaflow_upstream_requests_total", "NotReady"); n != 1 {
		t.Errorf("%v requests counted as not ready", n)
	}
	wait.Until(t, "the error contains the cause", func() bool {
		start := time.Now()
		_, err := c.Export(t.Context(), traces.Signal, body(), upstream.ExportOptions{})
		if err == nil || upstream.OutcomeUnknown(err) || fault.ClassOf(err) != fault.Retryable {
			t.Fatalf("Export = %v", err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Fatalf("Export took %s", took)
		}
		return strings.Contains(err.Error(), "connection refused")
	})
	if c.Ready() {
		t.Error("ready")
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errors.New("enough"))
	defer cancel()
	if err := c.WaitReady(ctx); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("WaitReady = %v", err)
	}
	if _, err := c.Connect(t.Context()); err == nil {
		t.Error("Connect opened a stream")
	}
	c.Close()
	if err := c.WaitReady(t.Context()); err == nil {
		t.Error("a closed client is ready")
	}
	if _, err := c.Export(t.Context(), traces.Signal, body(), upstream.ExportOptions{}); err == nil || upstream.OutcomeUnknown(err) {
		t.Errorf("Export of a closed client = %v", err)
	}
}

// Replies of the real server, and how the client interprets them.
func TestServerReplies(t *testing.T) {
	tests := map[string]struct {
		config   func(*rpc.Config)
		consumer func(context.Context, signal.Request) (signal.Result, error)
		body     []byte
		timeout  time.Duration
		class    fault.Class
		unknown  bool
		waits    bool
		text     string
	}{
		"malformed": {
			consumer: failing(fault.As(fault.Rejected, errors.New("field 7 is garbage"))),
			class:    fault.Rejected, text: "InvalidArgument: field 7 is garbage",
		},
		"too large": {
			config: func(c *rpc.Config) { c.MaxRequestBytes = 1000 },
			body:   make([]byte, 2000),
			class:  fault.Retryable, text: "ResourceExhausted",
		},
		"Kafka times out": {
			consumer: failing(errors.New("produce timed out")),
			class:    fault.Overload, unknown: true, waits: true, text: "produce timed out",
		},
		"the consumer panics": {
			consumer: func(context.Context, signal.Request) (signal.Result, error) { panic("oops") },
			class:    fault.Retryable, unknown: true, text: "Internal",
		},
		"no reply": {
			consumer: func(ctx context.Context, _ signal.Request) (signal.Result, error) {
				<-ctx.Done()
				return signal.Result{}, ctx.Err()
			},
			timeout: 100 * time.Millisecond,
			class:   fault.Retryable, unknown: true, text: "no answer in time",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			srv := newReplica(t, tc.config)
			srv.answers(tc.consumer)
			cfg := testConfig(srv.addr)
			if tc.timeout > 0 {
				cfg.Timeout = tc.timeout
			}
			c := newClient(t, cfg, upstream.Options{})
			waitReady(t, c)
			if tc.body == nil {
				tc.body = body()
			}
			_, err := c.Export(t.Context(), traces.Signal, tc.body, upstream.ExportOptions{})
			check(t, err, tc.class, tc.unknown, tc.waits)
			if got := upstream.TooLarge(err); got != (name == "too large") {
				t.Errorf("TooLarge is %v: %v", got, err)
			}
			if err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v does not contain %q", err, tc.text)
			}
		})
	}
}

func failing(err error) func(context.Context, signal.Request) (signal.Result, error) {
	return func(context.Context, signal.Request) (signal.Result, error) { return signal.Result{}, err }
}

func check(t *testing.T, err error, class fault.Class, unknown, waits bool) {
	t.Helper()
	if err == nil {
		t.Error("no error")
	}
	if got := fault.ClassOf(err); got != class {
		t.Errorf("class is %s, want %s: %v", got, class, err)
	}
	if got := upstream.OutcomeUnknown(err); got != unknown {
		t.Errorf("outcome unknown is %v, want %v: %v", got, unknown, err)
	}
	if after, ok := upstream.RetryAfter(err); ok != waits || ok && (after < 500*time.Millisecond || after > 1500*time.Millisecond) {
		t.Errorf("RetryAfter = %s, %v; want %v: %v", after, ok, waits, err)
	}
}

// A server at its limit refuses a request before it stores anything, and says
// so: at the headers, and once the size is known.
func TestServerAtLimitStoresNothing(t *testing.T) {
	srv := newReplica(t, func(c *rpc.Config) { c.MaxRequestsInFlight = 1 })
	entered, release := make(chan struct{}), make(chan struct{})
	srv.answers(func(context.Context, signal.Request) (signal.Result, error) {
		close(entered)
		<-release
		return signal.Result{}, nil
	})
	c := newClient(t, testConfig(srv.addr), upstream.Options{})
	waitReady(t, c)
	var first sync.WaitGroup
	first.Go(func() {
		if _, err := c.Export(t.Context(), traces.Signal, body(), upstream.ExportOptions{}); err != nil {
			t.Error(err)
		}
	})
	<-entered
	_, err := c.Export(t.Context(), traces.Signal, body(), upstream.ExportOptions{})
	check(t, err, fault.Overload, false, true)
	close(release)
	first.Wait()
}

// Replies that our server does not give, but a proxy in between may.
func TestForeignReplies(t *testing.T) {
	asking := func(code codes.Code) error {
		st, err := status.New(code, "later").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		return st.Err()
	}
	tests := map[string]struct {
		err     error
		class   fault.Class
		unknown bool
		waits   bool
	}{
		"unknown service":           {status.Error(codes.Unimplemented, ""), fault.Retryable, false, false},
		"exhausted, with a time":    {asking(codes.ResourceExhausted), fault.Overload, true, true},
		"exhausted, without a time": {status.Error(codes.ResourceExhausted, ""), fault.Retryable, false, false},
		"unavailable":               {status.Error(codes.Unavailable, ""), fault.Retryable, true, false},
		"not allowed":               {status.Error(codes.PermissionDenied, ""), fault.Retryable, true, false},
		"aborted":                   {status.Error(codes.Aborted, ""), fault.Retryable, true, false},
		"no status at all":          {errors.New("oops"), fault.Retryable, true, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			addr := serveStatus(t, tc.err)
			c := newClient(t, testConfig(addr), upstream.Options{})
			waitReady(t, c)
			_, err := c.Export(t.Context(), traces.Signal, body(), upstream.ExportOptions{})
			check(t, err, tc.class, tc.unknown, tc.waits)
		})
	}
}

// serveStatus answers every call with err.
func serveStatus(t *testing.T, err error) (addr string) {
	t.Helper()
	l, listenErr := net.Listen("tcp", "127.0.0.1:0")
	if listenErr != nil {
		t.Fatal(listenErr)
	}
	srv := grpc.NewServer(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return err }))
	var done sync.WaitGroup
	done.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() {
		srv.Stop()
		done.Wait()
	})
	return l.Addr().String()
}

// A server that is killed while it holds the request may have stored it.
func TestLostConnectionLeavesOutcomeUnknown(t *testing.T) {
	srv := newReplica(t, nil)
	entered := make(chan struct{})
	srv.answers(func(ctx context.Context, _ signal.Request) (signal.Result, error) {
		close(entered)
		<-ctx.Done()
		return signal.Result{}, ctx.Err()
	})
	p := newProxy(t, srv.addr)
	c := newClient(t, testConfig(p.addr), upstream.Options{})
	waitReady(t, c)
	failed := make(chan error, 1)
	go func() {
		_, err := c.Export(t.Context(), traces.Signal, body(), upstream.ExportOptions{})
		failed <- err
	}()
	<-entered
	p.cut()
	check(t, <-failed, fault.Retryable, true, false)
}

// The caller owns the body once Export returns, even if the call was cancelled
// while the connection was stuck. The server must never receive its next
// contents.
func TestBodyIsNotReadAfterReturn(t *testing.T) {
	srv := newReplica(t, nil)
	var garbled atomic.Int64
	srv.answers(func(_ context.Context, req signal.Request) (signal.Result, error) {
		for _, b := range req.Body {
			if b != req.Body[0] {
				garbled.Add(1)
				break
			}
		}
		return signal.Result{}, nil
	})
	cfg := testConfig(srv.addr)
	c := newClient(t, cfg, upstream.Options{})
	waitReady(t, c)
	var senders sync.WaitGroup
	for s := range 4 {
		senders.Go(func() {
			buf := make([]byte, 3<<20)
			for i := range 40 {
				for j := range buf {
					buf[j] = byte(s*40 + i)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%8)*time.Millisecond)
				_, _ = c.Export(ctx, traces.Signal, buf, upstream.ExportOptions{Compress: i%5 == 0})
				cancel()
			}
		})
	}
	senders.Wait()
	if n := garbled.Load(); n > 0 {
		t.Errorf("%d requests arrived corrupted", n)
	}
	if _, err := c.Export(t.Context(), traces.Signal, body(), upstream.ExportOptions{}); err != nil {
		t.Errorf("the client does not work afterwards: %v", err)
	}
}

func TestNewReportsAllProblems(t *testing.T) {
	tests := map[string]struct {
		change func(*upstream.Config)
		want   []string
	}{
		"every value invalid": {
			func(c *upstream.Config) { *c = upstream.Config{} },
			[]string{"addresses: at least one", "timeout: 0s", "connect_timeout: 0s", "max_backoff: 0s", "resolve_interval: 0s", "keepalive.time: 0s", "keepalive.timeout: 0s"},
		},
		"addresses": {
			func(c *upstream.Config) {
				c.Addresses = []string{"server", ":20035", "server:http", "server:0", "10.0.0.1:20035"}
			},
			[]string{"addresses[0]", "addresses[1]", "addresses[2]", "addresses[3]"},
		},
		"key file missing": {func(c *upstream.Config) { c.TLS.CertFile = "/no/cert" }, []string{"tls.cert_file"}},
		"CA file missing":  {func(c *upstream.Config) { c.TLS.Enabled, c.TLS.CAFile = true, "/no/ca" }, []string{"tls", "ca_file", "/no/ca"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := upstream.DefaultConfig()
			tc.change(&cfg)
			c, err := upstream.New(cfg, upstream.Options{})
			if err == nil {
				c.Close()
				t.Fatal("New accepted the configuration")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error does not contain %q: %v", want, err)
				}
			}
			if strings.Contains(err.Error(), "addresses["+strconv.Itoa(4)) {
				t.Errorf("error names a valid address: %v", err)
			}
		})
	}
}
