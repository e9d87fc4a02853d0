package otlphttp_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/otlphttp"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(loadTarget); addr != "" {
		generateLoad(addr)
		return
	}
	goleak.VerifyTestMain(m)
}

const (
	protobufType = "application/x-protobuf"
	jsonType     = "application/json"
)

type consumerFunc func(context.Context, signal.Request) (signal.Result, error)

func (f consumerFunc) Consume(ctx context.Context, req signal.Request) (signal.Result, error) {
	return f(ctx, req)
}

var accept = consumerFunc(func(context.Context, signal.Request) (signal.Result, error) {
	return signal.Result{}, nil
})

// refuseAll returns a consumer that must not be called.
func refuseAll(t *testing.T) consumerFunc {
	return func(context.Context, signal.Request) (signal.Result, error) {
		t.Error("consumer called for a request that should have been refused")
		return signal.Result{}, nil
	}
}

func testConfig() otlphttp.Config {
	cfg := otlphttp.DefaultConfig()
	cfg.Listen = "127.0.0.1:0"
	return cfg
}

// running is a server whose Run is in the background.
type running struct {
	*otlphttp.Server
	client *http.Client
	stop   func()     // asks Run to end without waiting
	done   chan error // Run's result
}

func (r *running) url() string { return "http://" + r.Addr().String() + "/v1/traces" }

// wait returns the result of Run.
func (r *running) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(wait.Patience):
		t.Fatal("Run did not return")
		return nil
	}
}

func start(t *testing.T, cfg otlphttp.Config, consumer otlphttp.Consumer, opts otlphttp.Options) *running {
	t.Helper()
	srv, err := otlphttp.New(cfg, consumer, opts)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 16}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Server: srv, client: &http.Client{Transport: transport, Timeout: wait.Patience}, stop: cancel, done: make(chan error, 1)}
	var finished sync.WaitGroup
	finished.Go(func() { r.done <- srv.Run(ctx) })
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		finished.Wait()
	})
	return r
}

// answer is a response as the client sees it.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (r *running) post(t *testing.T, contentType, encoding string, body []byte) answer {
	t.Helper()
	return r.send(t, http.MethodPost, r.url(), contentType, encoding, bytes.NewReader(body))
}

// send returns the zero answer, neither accepted nor refused, if there is no response. It
// is safe for concurrent use.
func (r *running) send(t *testing.T, method, url, contentType, encoding string, body io.Reader) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Error(err)
		return answer{}
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		t.Errorf("%s %s: %v", method, url, err)
		return answer{}
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
		return answer{}
	}
	return answer{resp.StatusCode, resp.Header, got}
}

// message returns the message of the google.rpc.Status in the body of a refusal.
func (a answer) message(t *testing.T) string {
	t.Helper()
	var st status.Status
	switch got := a.header.Get("Content-Type"); got {
	case protobufType:
		if err := proto.Unmarshal(a.body, &st); err != nil {
			t.Fatalf("body %q is no Status: %v", a.body, err)
		}
	case jsonType:
		var fields struct {
			Code    int32
			Message string
		}
		if err := json.Unmarshal(a.body, &fields); err != nil {
			t.Fatalf("body %q is no Status: %v", a.body, err)
		}
		st.Code, st.Message = fields.Code, fields.Message
	default:
		t.Fatalf("content type %q", got)
	}
	if st.GetCode() == 0 || st.GetMessage() == "" {
		t.Fatalf("a Status of code %d with message %q", st.GetCode(), st.GetMessage())
	}
	return st.GetMessage()
}

// refused fails the test unless a has this status and a message with these words.
func (a answer) refused(t *testing.T, want int, words string) {
	t.Helper()
	if a.status != want {
		t.Fatalf("status %d %q, want %d", a.status, a.body, want)
	}
	if got := a.message(t); !strings.Contains(got, words) {
		t.Errorf("%d has message %q, want %q in it", a.status, got, words)
	}
	seconds, err := strconv.Atoi(a.header.Get("Retry-After"))
	if retry := want == http.StatusServiceUnavailable || want == http.StatusTooManyRequests; retry != (err == nil && seconds > 0) {
		t.Errorf("%d has Retry-After %q", a.status, a.header.Get("Retry-After"))
	}
}

func (a answer) accepted(t *testing.T) {
	t.Helper()
	if a.status != http.StatusOK {
		t.Fatalf("status %d %q, want 200", a.status, a.body)
	}
}

func encoded(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// inUse returns the memory that is obtained from the system and in use.
func inUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
