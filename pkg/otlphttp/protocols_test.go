package otlphttp_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/metaflowys/metaflow-server/pkg/otlphttp"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

// speak makes the client of r use exactly these protocols.
func (r *running) speak(t *testing.T, set ...func(*http.Protocols, bool)) {
	t.Helper()
	protocols := new(http.Protocols)
	for _, f := range set {
		f(protocols, true)
	}
	transport := &http.Transport{DisableCompression: true, Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	r.client.Transport = transport
}

func read(t *testing.T, resp *http.Response) answer {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return answer{resp.StatusCode, resp.Header, body}
}

// Clients with prior knowledge speak HTTP/2 without TLS: every encoding, refusals, large
// bodies, concurrent requests on one connection.
func TestHTTP2WithoutTLS(t *testing.T) {
	cfg := testConfig()
	cfg.MaxRequestBytes = 4 << 20
	reg := prometheus.NewRegistry()
	got := make(chan signal.Request, 100)
	r := start(t, cfg, consumerFunc(func(_ context.Context, req signal.Request) (signal.Result, error) {
		got <- signal.Request{Body: bytes.Clone(req.Body), Peer: req.Peer}
		return signal.Result{}, nil
	}), otlphttp.Options{Metrics: otlphttp.NewMetrics(reg)})
	r.speak(t, (*http.Protocols).SetUnencryptedHTTP2)
	body := encoded(t, otlptest.Sized(3<<20))
	for _, c := range compressors {
		a := r.post(t, protobufType, c.encoding, compress(t, c.open, body))
		a.accepted(t)
		if req := <-got; !bytes.Equal(req.Body, body) || !req.Peer.Addr().IsLoopback() {
			t.Errorf("the consumer got %d bytes of %s, not the %d sent", len(req.Body), req.Peer, len(body))
		}
	}
	r.post(t, protobufType, "", make([]byte, 5<<20)).refused(t, http.StatusRequestEntityTooLarge, "the limit is 4194304 bytes")
	r.post(t, "text/plain", "", body).refused(t, http.StatusUnsupportedMediaType, "is not supported")
	var many sync.WaitGroup
	for range 50 {
		many.Go(func() {
			if a := r.post(t, protobufType, "", []byte("x")); a.status != http.StatusOK {
				t.Errorf("status %d", a.status)
			}
		})
	}
	many.Wait()
	if n := prom.Value(t, reg, "metaflow_otlphttp_connections"); n != 1 {
		t.Errorf("%v connections of one HTTP/2 client", n)
	}
	if n := prom.Value(t, reg, "metaflow_otlphttp_bytes_in_flight"); n != 0 {
		t.Errorf("%v bytes remain in flight", n)
	}
}

// A slow HTTP/2 client is cut off like one of HTTP/1.1.
func TestHTTP2SlowBodyIsCutOff(t *testing.T) {
	cfg := testConfig()
	cfg.BodyGrace, cfg.BodyTimeout = 50*time.Millisecond, 100*time.Millisecond
	r := start(t, cfg, refuseAll(t), otlphttp.Options{})
	r.speak(t, (*http.Protocols).SetUnencryptedHTTP2)
	body, end := io.Pipe() // nothing is ever written
	defer end.Close()
	r.send(t, http.MethodPost, r.url(), protobufType, "", body).refused(t, http.StatusRequestTimeout, "too slowly")
}

// The last responses on an HTTP/2 connection arrive when the server stops.
func TestStopLetsRequestsOfHTTP2Finish(t *testing.T) {
	const requests = 20
	entered, release := make(chan struct{}, requests), make(chan struct{})
	r := start(t, testConfig(), consumerFunc(func(context.Context, signal.Request) (signal.Result, error) {
		entered <- struct{}{}
		<-release
		return signal.Result{Message: "stored"}, nil
	}), otlphttp.Options{})
	r.speak(t, (*http.Protocols).SetUnencryptedHTTP2)
	idle, err := net.Dial("tcp", r.Addr().String()) // closed when the stop has begun
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	var sending sync.WaitGroup
	for range requests {
		sending.Go(func() {
			if a := r.post(t, protobufType, "", []byte("x")); a.status != http.StatusOK || !strings.Contains(string(a.body), "stored") {
				t.Errorf("status %d %q", a.status, a.body)
			}
		})
	}
	for range requests {
		<-entered
	}
	r.stop()
	if _, err := io.ReadAll(idle); err != nil {
		t.Log(err)
	}
	close(release)
	sending.Wait()
	if err := r.wait(t); err != nil {
		t.Errorf("Run = %v", err)
	}
	r.done <- nil
}

// One port serves both protocols with TLS, with certificates that may change, and nothing
// without TLS.
func TestTLS(t *testing.T) {
	encryption, pool := encrypted(t)
	reg := prometheus.NewRegistry()
	r := start(t, testConfig(), accept, otlphttp.Options{TLS: encryption, Metrics: otlphttp.NewMetrics(reg)})
	for name, set := range map[string]func(*http.Protocols, bool){"HTTP/1.1": (*http.Protocols).SetHTTP1, "HTTP/2.0": (*http.Protocols).SetHTTP2} {
		t.Run(name, func(t *testing.T) {
			r.speak(t, set)
			r.client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
			for range 2 {
				resp, err := r.client.Post("https://"+r.Addr().String()+"/v1/traces", protobufType, http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				read(t, resp).accepted(t)
				if resp.Proto != name {
					t.Errorf("spoke %s", resp.Proto)
				}
			}
		})
	}
	if got := prom.Value(t, reg, "metaflow_otlphttp_requests_total", "200"); got != 4 {
		t.Errorf("counted %v requests", got)
	}
	r.speak(t, (*http.Protocols).SetHTTP1)
	if resp, err := r.client.Post(r.url(), protobufType, http.NoBody); err == nil {
		if a := read(t, resp); a.status != http.StatusBadRequest {
			t.Errorf("plain text on an encrypted port: status %d", a.status)
		}
	}
}

// A client that waits for 100 Continue is refused at once if its body would be, and asked
// for the body otherwise.
func TestExpectContinue(t *testing.T) {
	cfg := testConfig()
	cfg.MaxRequestBytes = 1000
	r := start(t, cfg, accept, otlphttp.Options{})
	for length, want := range map[int]string{1: "HTTP/1.1 100 Continue", 2000: "HTTP/1.1 413 Request Entity Too Large"} {
		conn, err := net.Dial("tcp", r.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(conn, "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", protobufType, length)
		in := bufio.NewReader(conn)
		line, err := in.ReadString('\n')
		if err != nil || strings.TrimSpace(line) != want {
			t.Errorf("a body of %d bytes: %q, %v; want %q", length, line, err, want)
			continue
		}
		if length > 1 { // the connection closes at once, not after a wait for the body
			if rest, err := io.ReadAll(in); err != nil || !bytes.Contains(rest, []byte("too large")) {
				t.Errorf("response %q, %v", rest, err)
			}
			continue
		}
		_, _ = in.ReadString('\n')
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		read(t, resp).accepted(t)
	}
}

// encrypted returns the TLS configuration of a server and the authorities that its
// clients trust.
func encrypted(t *testing.T) (*tls.Config, *x509.CertPool) {
	t.Helper()
	issuer := httptest.NewTLSServer(http.NotFoundHandler()) // has a certificate for 127.0.0.1
	issuer.Close()
	pair := issuer.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		name = filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	files := tlsconfig.Server{CertFile: write("cert.pem", "CERTIFICATE", pair.Certificate[0]), KeyFile: write("key.pem", "PRIVATE KEY", key)}
	encryption, err := files.Config("tls", nil, "h2", "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(issuer.Certificate())
	return encryption, pool
}

// A client whose authority was removed is refused on its open connection, which then
// closes.
func TestUntrustedClientIsRefused(t *testing.T) {
	encryption, pool := encrypted(t)
	var gone atomic.Bool
	r := start(t, testConfig(), accept, otlphttp.Options{TLS: encryption, Trusted: func(tls.ConnectionState) error {
		if gone.Load() {
			return errors.New("its authority is gone")
		}
		return nil
	}})
	for name, set := range map[string]func(*http.Protocols, bool){"HTTP/1.1": (*http.Protocols).SetHTTP1, "HTTP/2.0": (*http.Protocols).SetHTTP2} {
		t.Run(name, func(t *testing.T) {
			r.speak(t, set)
			r.client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
			for _, want := range []int{http.StatusOK, http.StatusForbidden} {
				gone.Store(want == http.StatusForbidden)
				resp, err := r.client.Post("https://"+r.Addr().String()+"/v1/traces", protobufType, http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				if resp.StatusCode != want {
					t.Errorf("status %d, want %d", resp.StatusCode, want)
				}
			}
		})
	}
}
