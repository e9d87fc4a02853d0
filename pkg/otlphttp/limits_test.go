package otlphttp_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/otlphttp"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
)

// checking is a consumer that validates requests like an agent's.
var checking = consumerFunc(func(_ context.Context, req signal.Request) (signal.Result, error) {
	_, _, err := traces.AddHostAddress(nil, req.Body, "10.1.2.3")
	return signal.Result{}, fault.As(fault.Rejected, err)
})

func TestBadRequestsGetAClearStatus(t *testing.T) {
	good := encoded(t, otlptest.Sized(5000))
	gzipped := compress(t, compressors["gzip"].open, good)
	zstded := compress(t, compressors["zstd"].open, good)
	deflated := compress(t, compressors["deflate"].open, good)
	const traceID, spanID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	span := func(trace, id string) []byte {
		return fmt.Appendf(nil, `{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":%q,"spanId":%q}]}]}]}`, trace, id)
	}
	flipped := bytes.Clone(gzipped)
	flipped[len(flipped)/2] ^= 0xff
	tests := map[string]struct {
		contentType, encoding string
		body                  []byte
		want                  int
		words                 string
	}{
		"garbage":                     {protobufType, "", []byte("GET / HTTP/1.1"), 400, "malformed protobuf"},
		"JSON said to be protobuf":    {protobufType, "", []byte("{}"), 400, "malformed protobuf"},
		"garbage said to be gzip":     {protobufType, "gzip", []byte("garbage"), 400, "decompress gzip"},
		"garbage said to be zstd":     {protobufType, "zstd", []byte("garbage"), 400, "decompress zstd"},
		"garbage said to be deflate":  {protobufType, "deflate", []byte("garbage"), 400, "decompress deflate"},
		"nothing said to be gzip":     {protobufType, "gzip", nil, 400, "decompress gzip"},
		"truncated gzip":              {protobufType, "gzip", gzipped[:len(gzipped)-9], 400, "decompress gzip: unexpected EOF"},
		"gzip truncated in its head":  {protobufType, "gzip", gzipped[:5], 400, "decompress gzip: unexpected EOF"},
		"gzip with a bit flipped":     {protobufType, "gzip", flipped, 400, "decompress gzip"},
		"gzip with garbage behind":    {protobufType, "gzip", append(bytes.Clone(gzipped), "garbage"...), 400, "decompress gzip"},
		"truncated zstd":              {protobufType, "zstd", zstded[:len(zstded)-9], 400, "decompress zstd: unexpected EOF"},
		"truncated deflate":           {protobufType, "deflate", deflated[:len(deflated)-9], 400, "decompress deflate: unexpected EOF"},
		"zstd of a window of 2 GiB":   {protobufType, "zstd", []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00}, 400, "decompress zstd: window size exceeded"},
		"unknown encoding":            {protobufType, "br", good, 415, `content encoding "br" is not supported, send one of gzip, zstd, deflate, identity`},
		"two encodings":               {protobufType, "gzip, gzip", good, 415, "not supported"},
		"wrong content type":          {"text/plain", "", good, 415, `content type "text/plain" is not supported, send application/x-protobuf or application/json`},
		"no content type":             {"", "", good, 415, `content type "" is not supported`},
		"malformed content type":      {";;", "", good, 415, `content type ";;"`},
		"the content type of gRPC":    {"application/grpc", "", good, 415, "not supported"},
		"no JSON":                     {jsonType, "", []byte("garbage"), 400, "read JSON: byte 1: invalid character 'g'"},
		"empty JSON":                  {jsonType, "", nil, 400, "read JSON"},
		"protobuf said to be JSON":    {jsonType, "", good, 400, "read JSON"},
		"truncated JSON":              {jsonType, "", []byte(`{"resourceSpans":[{`), 400, "read JSON: byte 19"},
		"JSON with garbage behind":    {jsonType, "", []byte(`{} {}`), 400, "read JSON: byte 4"},
		"JSON that is a list":         {jsonType, "", []byte(`[1]`), 400, "read JSON"},
		"JSON of another kind":        {jsonType, "", []byte(`{"resourceSpans":7}`), 400, "read JSON"},
		"JSON nested deeply":          {jsonType, "", []byte(strings.Repeat(`[`, 1<<20)), 400, "exceeded max depth"},
		"values nested deeply":        {jsonType, "", deepJSON(12_000), 400, "exceeded max depth"},
		"truncated gzip inside JSON":  {jsonType, "gzip", gzipped[:20], 400, "decompress gzip"},
		"gzip of JSON that is broken": {jsonType, "gzip", compress(t, compressors["gzip"].open, []byte("{")), 400, "read JSON"},
	}
	reg := prometheus.NewRegistry()
	r := start(t, testConfig(), checking, otlphttp.Options{Metrics: otlphttp.NewMetrics(reg)})
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			for range 3 { // pooled decoders survive bad input
				a := r.post(t, tc.contentType, tc.encoding, tc.body)
				a.refused(t, tc.want, tc.words)
				if protobuf := tc.contentType == protobufType; protobuf != (a.header.Get("Content-Type") == protobufType) {
					t.Errorf("asked in %q, answered in %s", tc.contentType, a.header.Get("Content-Type"))
				}
			}
			for _, c := range compressors {
				r.post(t, protobufType, c.encoding, compress(t, c.open, good)).accepted(t)
			}
			r.post(t, jsonType+"; charset=utf-8", "", span(traceID, spanID)).accepted(t)
		})
	}
	if got := prom.Value(t, reg, "metaflow_otlphttp_bytes_in_flight"); got != 0 {
		t.Errorf("%v bytes remain in flight", got)
	}
}

// One bad value in JSON rejects only its span: the others reach the consumer, and the
// response names the span.
func TestBadValueInJSONIsPartialSuccess(t *testing.T) {
	var spans int
	counting := consumerFunc(func(_ context.Context, req signal.Request) (signal.Result, error) {
		spans = traces.Signal.Count(req.Body)
		return signal.Result{Rejected: 1, Message: "1 spans rejected: too old"}, nil
	})
	reg := prometheus.NewRegistry()
	r := start(t, testConfig(), counting, otlphttp.Options{Metrics: otlphttp.NewMetrics(reg)})
	a := r.post(t, jsonType, "", []byte(`{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"a"},{"name":"b","traceId":"xyz"},{"name":"c","parentSpanId":null}]}]}]}`))
	for _, want := range []string{`"rejectedSpans":"2"`, `span 1 `, `\"b\"`, `traceId: \"xyz\" is not hexadecimal`, "too old"} {
		if a.status != 200 || !strings.Contains(string(a.body), want) {
			t.Errorf("answered %d %s, want %s in it", a.status, a.body, want)
		}
	}
	if got := prom.Value(t, reg, "metaflow_otlphttp_json_left_out_total", "spans"); spans != 2 || got != 1 {
		t.Errorf("%d spans reached the consumer, %v are counted as rejected", spans, got)
	}
}

// deepJSON returns a request with an attribute value of nested lists.
func deepJSON(depth int) []byte {
	const open, closing = `{"arrayValue":{"values":[`, `]}}`
	depth /= 3 // an object, an object and a list each
	return []byte(`{"resourceSpans":[{"resource":{"attributes":[{"key":"k","value":` +
		strings.Repeat(open, depth) + strings.Repeat(closing, depth) + `}]}}]}`)
}

func TestOtherPathsAndMethodsAreRefused(t *testing.T) {
	r := start(t, testConfig(), refuseAll(t), otlphttp.Options{})
	base := "http://" + r.Addr().String()
	for _, path := range []string{"", "/", "/v1/trace", "/v1/traces/x", "/v1/v1/traces", "/v1/../v1/traces/", "/v1/metrics", "/v1/logs", "/%ff\"<script>"} {
		a := r.send(t, http.MethodPost, base+path, protobufType, "", strings.NewReader("x"))
		a.refused(t, http.StatusNotFound, "send traces to /v1/traces or /api/v1/otel/trace")
	}
	if a := r.send(t, http.MethodHead, r.url(), "", "", nil); a.status != http.StatusMethodNotAllowed || a.header.Get("Allow") != http.MethodPost {
		t.Errorf("HEAD: status %d with Allow %q", a.status, a.header.Get("Allow"))
	}
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete, http.MethodOptions} {
		a := r.send(t, method, r.url(), "", "", nil)
		a.refused(t, http.StatusMethodNotAllowed, "method "+method+" is not supported, send POST")
		if got := a.header.Get("Allow"); got != http.MethodPost {
			t.Errorf("Allow %q", got)
		}
	}
}

// Bodies over the limit are refused for good, whether their length is announced or not,
// at little cost and without harm to others. They are sent to their end, as most clients
// do before they read.
func TestLargeBodiesCostLittle(t *testing.T) {
	const size = 100 << 20
	cfg := testConfig()
	cfg.MaxRequestBytes = 8 << 20
	r := start(t, cfg, accept, otlphttp.Options{})
	r.post(t, protobufType, "", make([]byte, cfg.MaxRequestBytes)).accepted(t)
	for name, announced := range map[string]bool{"announced": true, "not announced": false} {
		t.Run(name, func(t *testing.T) {
			body := io.LimitReader(zeros{}, size)
			if announced {
				body = bytes.NewReader(make([]byte, size))
			}
			before := allocated()
			a := r.send(t, http.MethodPost, r.url(), protobufType, "", body)
			grew := allocated() - before
			a.refused(t, http.StatusRequestEntityTooLarge, "the limit is 8388608 bytes")
			// The limit of 8 MiB, the smaller buffers before it, and the client's memory.
			if grew > 32<<20 {
				t.Errorf("refusing %d MiB allocated %d MiB", size>>20, grew>>20)
			}
			r.post(t, protobufType, "", []byte("x")).accepted(t)
		})
	}
}

// A real client library against the limit: the response arrives although the server sends
// it before it has read the body, and the connection is reused.
func TestRefusedBodyIsReadSoThatTheAnswerArrives(t *testing.T) {
	cfg := testConfig()
	cfg.MaxRequestBytes = 1000
	reg := prometheus.NewRegistry()
	r := start(t, cfg, accept, otlphttp.Options{Metrics: otlphttp.NewMetrics(reg)})
	body := make([]byte, 10<<20)
	for range 20 {
		r.post(t, protobufType, "", body).refused(t, http.StatusRequestEntityTooLarge, "too large")
	}
	if got := prom.Value(t, reg, "metaflow_otlphttp_connections"); got > 2 {
		t.Errorf("%v connections for one client", got)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func TestCompressionBombCostsAtMostTheLimit(t *testing.T) {
	const bombBytes = 256 << 20
	bombs := map[string]func(io.Writer) io.WriteCloser{
		"gzip":    compressors["gzip"].open,
		"deflate": compressors["deflate"].open,
		"zstd": func(w io.Writer) io.WriteCloser {
			z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
			if err != nil {
				t.Fatal(err)
			}
			return z
		},
	}
	for encoding, open := range bombs {
		t.Run(encoding, func(t *testing.T) {
			var bomb bytes.Buffer
			w := open(&bomb)
			if _, err := io.CopyN(w, zeros{}, bombBytes); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			cfg := testConfig()
			cfg.MaxRequestBytes = 4 << 20
			r := start(t, cfg, refuseAll(t), otlphttp.Options{})
			before := allocated()
			a := r.post(t, protobufType, encoding, bomb.Bytes())
			grew := allocated() - before
			a.refused(t, http.StatusRequestEntityTooLarge, "the limit is 4194304 bytes")
			// The limit, the smaller buffers before it, and the window.
			if grew > 16<<20 {
				t.Errorf("a bomb of %d KiB allocated %d MiB, limit 4 MiB", bomb.Len()>>10, grew>>20)
			}
		})
	}
}

// Objects of two letters become spans of two hundred bytes: JSON counts as the memory it
// may take.
func TestJSONBombIsRefused(t *testing.T) {
	cfg := testConfig()
	cfg.MaxRequestBytes, cfg.MaxBytesInFlight = 8<<20, 64<<20
	r := start(t, cfg, refuseAll(t), otlphttp.Options{})
	bomb := []byte(`{"resourceSpans":[{"scopeSpans":[{"spans":[{}` + strings.Repeat(",{}", 2<<20) + `]}]}]}`)
	before := allocated()
	a := r.post(t, jsonType, "", bomb)
	grew := allocated() - before
	a.refused(t, http.StatusRequestEntityTooLarge, "send smaller batches, or protobuf")
	if grew > 32<<20 {
		t.Errorf("a bomb of %d MiB allocated %d MiB", len(bomb)>>20, grew>>20)
	}
}

// While requests up to a bound are in flight, the next is refused at once, and accepted
// as soon as one of them is answered.
func TestOverTheBoundClientsAreAskedToRetry(t *testing.T) {
	body := encoded(t, otlptest.Sized(800_000))
	gzipped := compress(t, func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }, body)
	tests := map[string]struct {
		bound    func(*otlphttp.Config)
		encoding string
		body     []byte
		label    string
	}{
		"requests in flight": {func(c *otlphttp.Config) { c.MaxRequestsInFlight = 1 }, "", body, "requests_in_flight"},
		"bytes in flight": {func(c *otlphttp.Config) {
			c.MaxRequestBytes, c.MaxBytesInFlight = 1<<20, 1<<20
		}, "", body, "bytes_in_flight"},
		"bytes in flight, once decompressed": {func(c *otlphttp.Config) {
			c.MaxRequestBytes, c.MaxBytesInFlight = 1<<20, 1<<20
		}, "gzip", gzipped, "bytes_in_flight"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			tc.bound(&cfg)
			entered, release := make(chan struct{}), make(chan struct{})
			reg := prometheus.NewRegistry()
			r := start(t, cfg, consumerFunc(func(context.Context, signal.Request) (signal.Result, error) {
				entered <- struct{}{}
				<-release
				return signal.Result{}, nil
			}), otlphttp.Options{Metrics: otlphttp.NewMetrics(reg)})
			first := make(chan answer, 1)
			for range 2 {
				go func() { first <- r.post(t, protobufType, tc.encoding, tc.body) }()
				<-entered
				began := time.Now()
				r.post(t, protobufType, tc.encoding, tc.body).refused(t, http.StatusServiceUnavailable, "limit of")
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("the refusal took %s", took)
				}
				release <- struct{}{}
				(<-first).accepted(t)
			}
			if got := prom.Value(t, reg, "metaflow_otlphttp_refused_requests_total", tc.label); got != 2 {
				t.Errorf("counted %v refusals by %s, want 2", got, tc.label)
			}
			for _, gauge := range []string{"bytes_in_flight", "requests_in_flight"} {
				if got := prom.Value(t, reg, "metaflow_otlphttp_"+gauge); got != 0 {
					t.Errorf("%s is %v when nothing is in flight", gauge, got)
				}
			}
		})
	}
}

// Ten thousand idle connections do not accumulate: the oldest are closed, and an active
// client is served all the time.
func TestIdleConnectionsAreBounded(t *testing.T) {
	connections := 10_000
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	wanted := files
	wanted.Cur = wanted.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &wanted); err == nil {
		defer func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files) }()
	}
	// Each is open at the client; the server keeps only as many as allowed.
	cfg := testConfig()
	cfg.MaxConnections = 500
	if room := int(wanted.Max) - cfg.MaxConnections - 200; room < connections {
		connections = room
		t.Logf("the limit of open files allows for %d connections only", connections)
	}
	reg := prometheus.NewRegistry()
	r := start(t, cfg, accept, otlphttp.Options{Metrics: otlphttp.NewMetrics(reg)})
	r.post(t, protobufType, "", []byte("x")).accepted(t)
	before := inUse()
	var idle []net.Conn
	defer func() {
		for _, c := range idle {
			c.Close()
		}
	}()
	for i := range connections {
		c, err := net.Dial("tcp", r.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
		if i%3 == 0 { // some have been used, as in a client's pool
			fmt.Fprintf(c, "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: 0\r\n\r\n", protobufType)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			resp.Body.Close()
		}
		if i%100 == 0 { // often enough not to become the oldest
			r.post(t, protobufType, "", []byte("x")).accepted(t)
		}
	}
	r.post(t, protobufType, "", []byte("x")).accepted(t)
	if got := prom.Value(t, reg, "metaflow_otlphttp_connections"); got > float64(cfg.MaxConnections) {
		t.Errorf("%v connections, the limit is %d", got, cfg.MaxConnections)
	}
	if got, least := prom.Value(t, reg, "metaflow_otlphttp_evicted_connections_total"), connections-cfg.MaxConnections; got < float64(least) {
		t.Errorf("%v connections closed, want at least %d", got, least)
	}
	// 500 at 20 KB each, and this test's own memory for ten thousand.
	if grew := int64(inUse()) - int64(before); grew > 32<<20 {
		t.Errorf("%d idle connections hold %d MiB", connections, grew>>20)
	}
}
