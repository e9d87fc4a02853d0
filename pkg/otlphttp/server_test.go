package otlphttp_test

import (
	"bytes"
	"compress/zlib"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/otlphttp"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
)

// compressors encode a body, by Content-Encoding.
var compressors = map[string]struct {
	encoding string
	open     func(io.Writer) io.WriteCloser
}{
	"none":         {"", nil},
	"identity":     {"identity", nil},
	"gzip":         {"gzip", func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }},
	"gzip, upper":  {" GZIP ", func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }},
	"zstd":         {"zstd", func(w io.Writer) io.WriteCloser { z, _ := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1)); return z }},
	"deflate":      {"deflate", func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) }},
	"deflate, raw": {"deflate", func(w io.Writer) io.WriteCloser { f, _ := flate.NewWriter(w, flate.DefaultCompression); return f }},
}

func compress(t testing.TB, open func(io.Writer) io.WriteCloser, body []byte) []byte {
	t.Helper()
	if open == nil {
		return body
	}
	var out bytes.Buffer
	w := open(&out)
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestRequestsReachTheConsumerUnchanged(t *testing.T) {
	got := make(chan signal.Request, 1)
	reg := prometheus.NewRegistry()
	r := start(t, testConfig(), consumerFunc(func(_ context.Context, req signal.Request) (signal.Result, error) {
		req.Body = bytes.Clone(req.Body)
		got <- req
		return signal.Result{}, nil
	}), otlphttp.Options{Metrics: otlphttp.NewMetrics(reg)})
	for name, c := range compressors {
		// The last is larger than every initial buffer.
		for _, size := range []int{0, 100, 5000, 100_000, 3 << 20} {
			t.Run(name, func(t *testing.T) {
				body := encoded(t, otlptest.Sized(size))
				for _, path := range []string{"/v1/traces", "/api/v1/otel/trace"} {
					for _, announced := range []bool{true, false} {
						var src io.Reader = bytes.NewReader(compress(t, c.open, body))
						if !announced {
							src = io.MultiReader(src) // hides the length from the client
						}
						a := r.send(t, http.MethodPost, "http://"+r.Addr().String()+path, protobufType, c.encoding, src)
						a.accepted(t)
						if len(a.body) != 0 || a.header.Get("Content-Type") != protobufType {
							t.Errorf("success has body %q of %s", a.body, a.header.Get("Content-Type"))
						}
						req := <-got
						if !bytes.Equal(req.Body, body) {
							t.Fatalf("the consumer got %d bytes, not the %d sent", len(req.Body), len(body))
						}
						if req.Peer.Addr() != netip.MustParseAddr("127.0.0.1") || req.Peer.Port() == 0 {
							t.Errorf("the peer is %s", req.Peer)
						}
					}
				}
			})
		}
	}
	if got := prom.Value(t, reg, "metaflow_otlphttp_requests_total", "200"); got != float64(len(compressors)*5*4) {
		t.Errorf("counted %v requests", got)
	}
	for _, gauge := range []string{"bytes_in_flight", "requests_in_flight"} {
		if got := prom.Value(t, reg, "metaflow_otlphttp_"+gauge); got != 0 {
			t.Errorf("%s is %v when nothing is in flight", gauge, got)
		}
	}
}

// retryAfter is an error with a retry delay.
type retryAfter struct{ error }

func (retryAfter) RetryAfter() time.Duration { return 40 * time.Second }

func (e retryAfter) Unwrap() error { return e.error }

// usedUp is an error about a quota.
type usedUp struct{ error }

func (usedUp) ExhaustedFor() time.Duration { return 40 * time.Second }

func TestConsumersErrorSelectsTheStatus(t *testing.T) {
	tests := map[string]struct {
		err   error
		want  int
		delay [2]string // of Retry-After: minimum and maximum
	}{
		"rejected":                {fault.As(fault.Rejected, errors.New("the cause")), 400, [2]string{}},
		"overload":                {fault.As(fault.Overload, errors.New("the cause")), 503, [2]string{"1", "3"}},
		"no class":                {errors.New("the cause"), 503, [2]string{"1", "3"}},
		"overload with a time":    {retryAfter{fault.As(fault.Overload, errors.New("the cause"))}, 503, [2]string{"20", "60"}},
		"a used-up quota":         {fault.As(fault.Overload, usedUp{errors.New("the cause")}), 429, [2]string{"20", "60"}},
		"a class nobody knows":    {fault.As(200, errors.New("the cause")), 500, [2]string{}},
		"a cause of strange text": {fault.As(fault.Rejected, errors.New("the cause \xff"+strings.Repeat("long ", 1000))), 400, [2]string{}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := start(t, testConfig(), consumerFunc(func(context.Context, signal.Request) (signal.Result, error) {
				return signal.Result{}, tc.err
			}), otlphttp.Options{})
			for contentType, body := range map[string]string{protobufType: "", jsonType: "{}"} {
				a := r.post(t, contentType, "", []byte(body))
				a.refused(t, tc.want, "the cause")
				if got := a.header.Get("Content-Type"); got != contentType {
					t.Errorf("request in %s, response in %s", contentType, got)
				}
				got := a.header.Get("Retry-After")
				if len(got) != len(tc.delay[0]) || got < tc.delay[0] || got > tc.delay[1] {
					t.Errorf("Retry-After %q, want %q to %q", got, tc.delay[0], tc.delay[1])
				}
			}
		})
	}
}

func TestPartialSuccessHasTheFormOfTheRequest(t *testing.T) {
	r := start(t, testConfig(), consumerFunc(func(context.Context, signal.Request) (signal.Result, error) {
		return signal.Result{Rejected: 1 << 40, Message: "too early"}, nil
	}), otlphttp.Options{})
	a := r.post(t, jsonType, "", []byte("{}"))
	a.accepted(t)
	if got, want := string(a.body), `{"partialSuccess":{"errorMessage":"too early","rejectedSpans":"1099511627776"}}`; got != want {
		t.Errorf("JSON response %s, want %s", got, want)
	}
	a = r.post(t, protobufType, "", nil)
	a.accepted(t)
	var resp coltracepb.ExportTraceServiceResponse
	if err := proto.Unmarshal(a.body, &resp); err != nil {
		t.Fatal(err)
	}
	if p := resp.GetPartialSuccess(); p.GetRejectedSpans() != 1<<40 || p.GetErrorMessage() != "too early" {
		t.Errorf("protobuf response %v", &resp)
	}
}

func TestPanicAffectsOneRequest(t *testing.T) {
	reg := prometheus.NewRegistry()
	first := true
	r := start(t, testConfig(), consumerFunc(func(context.Context, signal.Request) (signal.Result, error) {
		if first {
			first = false
			panic("a bug")
		}
		return signal.Result{}, nil
	}), otlphttp.Options{Metrics: otlphttp.NewMetrics(reg)})
	r.post(t, protobufType, "", []byte("x")).refused(t, http.StatusInternalServerError, "internal error")
	r.post(t, protobufType, "", []byte("x")).accepted(t)
	if got := prom.Value(t, reg, "metaflow_otlphttp_panics_total"); got != 1 {
		t.Errorf("counted %v panics", got)
	}
	if got := prom.Value(t, reg, "metaflow_otlphttp_bytes_in_flight"); got != 0 {
		t.Errorf("%v bytes remain in flight", got)
	}
}

func TestPortInUseIsAnErrorOfNew(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg := testConfig()
	cfg.Listen = taken.Addr().String()
	if _, err := otlphttp.New(cfg, accept, otlphttp.Options{}); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("New on a port in use = %v", err)
	}
}

// An agent opens and closes its port as configured. Counters continue, and gauges show
// the current server.
func TestReopenedPortKeepsItsMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	opts := otlphttp.Options{Metrics: otlphttp.NewMetrics(reg)}
	cfg := testConfig()
	cfg.Listen = ports.FreeAddress(t) // which nothing else takes between two rounds
	for round := 1; round <= 3; round++ {
		r := start(t, cfg, accept, opts)
		r.post(t, protobufType, "", nil).accepted(t)
		if got := prom.Value(t, reg, "metaflow_otlphttp_requests_total", "200"); got != float64(round) {
			t.Errorf("round %d: counted %v requests", round, got)
		}
		if got := prom.Value(t, reg, "metaflow_otlphttp_connections"); got != 1 {
			t.Errorf("round %d: %v connections", round, got)
		}
		r.stop()
		if err := r.wait(t); err != nil {
			t.Fatalf("Run = %v", err)
		}
		if got := prom.Value(t, reg, "metaflow_otlphttp_connections"); got != 0 {
			t.Errorf("round %d: %v connections after the stop", round, got)
		}
		r.done <- nil
		never, err := otlphttp.New(cfg, accept, opts)
		if err != nil {
			t.Fatal(err)
		}
		if err := never.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStopLetsRequestsFinish(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	r := start(t, testConfig(), consumerFunc(func(ctx context.Context, _ signal.Request) (signal.Result, error) {
		close(entered)
		select {
		case <-release:
			return signal.Result{}, nil
		case <-ctx.Done():
			return signal.Result{}, ctx.Err()
		}
	}), otlphttp.Options{})
	idle, err := net.Dial("tcp", r.Addr().String()) // must not delay the stop
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	answered := make(chan answer, 1)
	go func() { answered <- r.post(t, protobufType, "", []byte("x")) }()
	<-entered
	r.stop()
	if _, err := io.ReadAll(idle); err != nil { // closed: the stop has begun
		t.Log(err)
	}
	close(release)
	(<-answered).accepted(t)
	if err := r.wait(t); err != nil {
		t.Errorf("Run = %v", err)
	}
	r.done <- nil
}

func TestStopAbortsRequestsAfterTheGrace(t *testing.T) {
	entered := make(chan struct{})
	ended := false
	r := start(t, testConfig(), consumerFunc(func(ctx context.Context, _ signal.Request) (signal.Result, error) {
		close(entered)
		<-ctx.Done()
		ended = true
		return signal.Result{}, ctx.Err()
	}), otlphttp.Options{ShutdownGrace: time.Millisecond})
	failed := make(chan error, 1)
	go func() {
		resp, err := r.client.Post(r.url(), protobufType, strings.NewReader("x"))
		if err == nil {
			resp.Body.Close()
		}
		failed <- err
	}()
	<-entered
	r.stop()
	if err := r.wait(t); err != nil {
		t.Errorf("Run = %v", err)
	}
	if !ended {
		t.Error("Run returned while a request was served")
	}
	if err := <-failed; err == nil {
		t.Error("an aborted request got a response")
	}
	r.done <- nil
}

// A client that disconnects cancels its request.
func TestDisconnectEndsTheConsumersContext(t *testing.T) {
	entered, ended := make(chan struct{}), make(chan struct{})
	r := start(t, testConfig(), consumerFunc(func(ctx context.Context, _ signal.Request) (signal.Result, error) {
		close(entered)
		<-ctx.Done()
		close(ended)
		return signal.Result{}, ctx.Err()
	}), otlphttp.Options{})
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url(), strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", protobufType)
	go func() {
		<-entered
		leave()
	}()
	if resp, err := r.client.Do(req); err == nil {
		resp.Body.Close()
		t.Error("sent a response to a client that had disconnected")
	}
	<-ended
}

func TestConfigReportsEveryProblem(t *testing.T) {
	if err := otlphttp.DefaultConfig().Validate(); err != nil {
		t.Errorf("the default configuration: %v", err)
	}
	err := otlphttp.Config{MaxRequestBytes: 2, MaxBytesInFlight: 1}.Validate()
	var keys []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		key, _, _ := strings.Cut(line, ":")
		keys = append(keys, key)
	}
	want := []string{
		"listen", "max_bytes_in_flight", "max_requests_in_flight", "peer_share",
		"max_connections", "max_connections_per_peer", "min_body_rate",
		"header_timeout", "body_grace", "body_timeout", "idle_timeout", "retry_delay",
	}
	if diff := cmp.Diff(want, keys); diff != "" {
		t.Errorf("problems by key (-want +got):\n%s", diff)
	}
}
