package rpc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

// authority signs certificates for one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	a := authority{}
	a.cert, a.key = issue(t, a, &x509.Certificate{
		Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// issue signs template with the authority, or with itself when that is zero.
func issue(t *testing.T, a authority, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
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

// leaf returns files with a certificate for 127.0.0.1, usable on both sides.
func (a authority) leaf(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	cert, key := issue(t, a, &x509.Certificate{
		Subject: pkix.Name{CommonName: "leaf"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return writePEM(t, "CERTIFICATE", cert.Raw), writePEM(t, "PRIVATE KEY", der)
}

func writePEM(t *testing.T, kind string, der []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func (a authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func TestWhoMayConnect(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	certFile, keyFile := ours.leaf(t)
	caFile := writePEM(t, "CERTIFICATE", ours.cert.Raw)
	withClientCert := func(a authority) credentials.TransportCredentials {
		cert, err := tls.LoadX509KeyPair(a.leaf(t))
		if err != nil {
			t.Fatal(err)
		}
		return credentials.NewTLS(&tls.Config{RootCAs: ours.pool(), Certificates: []tls.Certificate{cert}})
	}
	anonymous := credentials.NewTLS(&tls.Config{RootCAs: ours.pool()})

	plain := tlsconfig.Server{}
	oneWay := tlsconfig.Server{CertFile: certFile, KeyFile: keyFile}
	mutual := tlsconfig.Server{CertFile: certFile, KeyFile: keyFile, ClientCAFile: caFile}
	tests := map[string]struct {
		server tlsconfig.Server
		client credentials.TransportCredentials
		want   codes.Code
	}{
		"plain text to plain text":     {plain, insecure.NewCredentials(), codes.OK},
		"TLS to plain text":            {plain, anonymous, codes.Unavailable},
		"plain text to TLS":            {oneWay, insecure.NewCredentials(), codes.Unavailable},
		"TLS to TLS":                   {oneWay, anonymous, codes.OK},
		"plain text to mutual TLS":     {mutual, insecure.NewCredentials(), codes.Unavailable},
		"no certificate to mutual TLS": {mutual, anonymous, codes.Unavailable},
		"a stranger's certificate":     {mutual, withClientCert(theirs), codes.Unavailable},
		"our certificate":              {mutual, withClientCert(ours), codes.OK},
		"TLS that trusts another CA":   {oneWay, credentials.NewTLS(&tls.Config{RootCAs: theirs.pool()}), codes.Unavailable},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.TLS = tc.server
			srv := start(t, cfg, accept, rpc.Options{})
			conn := dial(t, srv.Addr(), grpc.WithTransportCredentials(tc.client))
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := coltracepb.NewTraceServiceClient(conn).Export(ctx, requestOf(100))
			if status.Code(err) != tc.want {
				t.Errorf("Export = %v, want %s", err, tc.want)
			}
		})
	}
}

// pausing is a connection whose client sends the first flight of its handshake, and the rest when it may.
type pausing struct {
	net.Conn
	began bool
	first chan struct{} // closed when the first flight is sent
	may   chan struct{}
}

func (p *pausing) Write(b []byte) (int, error) {
	if p.began {
		<-p.may
		return p.Conn.Write(b)
	}
	n, err := p.Conn.Write(b)
	p.began = true
	close(p.first)
	return n, err
}

// A client has begun its handshake when its authority is removed, and ends it afterwards.
func TestAHandshakeDoesNotOutliveItsAuthority(t *testing.T) {
	staying, leaving := newAuthority(t), newAuthority(t)
	cfg := testConfig()
	cfg.TLS.CertFile, cfg.TLS.KeyFile = staying.leaf(t)
	cfg.TLS.ClientCAFile = writePEM(t, "CERTIFICATE", staying.cert.Raw)
	both := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: staying.cert.Raw}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaving.cert.Raw})...)
	only, err := os.ReadFile(cfg.TLS.ClientCAFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.TLS.ClientCAFile, both, 0o600); err != nil {
		t.Fatal(err)
	}
	srv := start(t, cfg, accept, rpc.Options{})
	certificate, err := tls.LoadX509KeyPair(leaving.leaf(t))
	if err != nil {
		t.Fatal(err)
	}
	secured := credentials.NewTLS(&tls.Config{RootCAs: staying.pool(), Certificates: []tls.Certificate{certificate}})
	slow := &pausing{first: make(chan struct{}), may: make(chan struct{})}
	dials := 0
	conn := dial(t, srv.Addr(), grpc.WithTransportCredentials(secured), grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		if dials++; dials > 1 {
			return nil, net.ErrClosed
		}
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		slow.Conn = c
		return slow, err
	}))
	ended := make(chan error, 1)
	go func() {
		_, err := coltracepb.NewTraceServiceClient(conn).Export(t.Context(), requestOf(100))
		ended <- err
	}()
	<-slow.first
	if err := os.WriteFile(cfg.TLS.ClientCAFile, only, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removal is in force", func() bool {
		_, err := coltracepb.NewTraceServiceClient(dial(t, srv.Addr(), grpc.WithTransportCredentials(secured))).Export(t.Context(), requestOf(100))
		return err != nil
	})
	close(slow.may)
	if err := <-ended; status.Code(err) != codes.Unavailable {
		t.Errorf("Export = %v, want UNAVAILABLE", err)
	}
}
