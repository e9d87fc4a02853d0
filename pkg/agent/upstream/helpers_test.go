package upstream_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(sinkListen); addr != "" {
		serveSink(addr)
		return
	}
	goleak.VerifyTestMain(m)
}

// replica is one server with a configurable consumer.
type replica struct {
	addr string
	cfg  rpc.Config
	stop func() // stops the server gracefully and waits

	mu       sync.Mutex
	requests []signal.Request // bodies are copies
	answer   func(ctx context.Context, req signal.Request) (signal.Result, error)
}

func (r *replica) Consume(ctx context.Context, req signal.Request) (signal.Result, error) {
	r.mu.Lock()
	kept := req
	kept.Body = slices.Clone(req.Body)
	r.requests = append(r.requests, kept)
	answer := r.answer
	r.mu.Unlock()
	if answer == nil {
		return signal.Result{}, nil
	}
	return answer(ctx, req)
}

// answers sets what the consumer does; nil accepts everything.
func (r *replica) answers(f func(context.Context, signal.Request) (signal.Result, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = f
}

func (r *replica) received() []signal.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// newReplica starts a server on a free port of 127.0.0.1, or on cfg's.
func newReplica(t *testing.T, change func(*rpc.Config)) *replica {
	t.Helper()
	r := &replica{cfg: rpc.DefaultConfig()}
	r.cfg.Listen = "127.0.0.1:0"
	if change != nil {
		change(&r.cfg)
	}
	r.start(t, rpc.Options{ShutdownGrace: time.Second})
	return r
}

// start serves; after stop it serves again on the same port.
func (r *replica) start(t *testing.T, opts rpc.Options) {
	t.Helper()
	srv, err := rpc.New(r.cfg, r, opts)
	if err != nil {
		t.Fatal(err)
	}
	r.addr = srv.Addr().String()
	r.cfg.Listen = r.addr
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := srv.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	r.stop = func() {
		cancel()
		done.Wait()
	}
	t.Cleanup(r.stop)
}

func testConfig(addrs ...string) upstream.Config {
	cfg := upstream.DefaultConfig()
	cfg.Addresses = addrs
	cfg.Timeout = 10 * time.Second
	cfg.MaxBackoff = 100 * time.Millisecond
	return cfg
}

func newClient(t *testing.T, cfg upstream.Config, opts upstream.Options) *upstream.Client {
	t.Helper()
	c, err := upstream.New(cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func waitReady(t *testing.T, c *upstream.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

// eventually polls f, which may do I/O, until it returns true.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting: %s", what)
		}
		<-tick.C
	}
}

func body() []byte { return otlptest.New(1, otlptest.Options{}).RequestBytes(8) }

// metric returns the value of a counter or gauge.
func metric(t *testing.T, reg prometheus.Gatherer, name, label string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() != name || label != "" && m.GetLabel()[0].GetValue() != label {
				continue
			}
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s{%s}", name, label)
	return 0
}

// authority signs certificates for one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its certificate
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a := authority{}
	a.cert, a.key = a.issue(t, template)
	a.file = writePEM(t, filepath.Join(t.TempDir(), "ca.pem"), "CERTIFICATE", a.cert.Raw)
	return a
}

// issue signs template with the authority, or with itself when that is zero.
func (a authority) issue(t *testing.T, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// leaf returns the files of a certificate for 127.0.0.1 and server.test, valid
// for clients and servers.
func (a authority) leaf(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	cert, key := a.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "leaf"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"server.test"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return writePEM(t, filepath.Join(dir, "cert.pem"), "CERTIFICATE", cert.Raw), writePEM(t, filepath.Join(dir, "key.pem"), "PRIVATE KEY", der)
}

func writePEM(t *testing.T, file, kind string, der []byte) string {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
