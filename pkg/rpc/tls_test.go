package rpc_test

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/testkit/certs"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

func TestWhoMayConnect(t *testing.T) {
	ours, theirs := certs.NewAuthority(t), certs.NewAuthority(t)
	certFile, keyFile := ours.Leaf(t, "leaf").Files(t)
	caFile := ours.File(t)
	withClientCert := func(a *certs.Authority) credentials.TransportCredentials {
		return credentials.NewTLS(&tls.Config{RootCAs: ours.Pool(), Certificates: []tls.Certificate{a.Leaf(t, "leaf").TLS(t)}})
	}
	anonymous := credentials.NewTLS(&tls.Config{RootCAs: ours.Pool()})

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
		"TLS that trusts another CA":   {oneWay, credentials.NewTLS(&tls.Config{RootCAs: theirs.Pool()}), codes.Unavailable},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.TLS = tc.server
			srv := start(t, cfg, accept, rpc.Options{})
			conn := dial(t, srv.Addr(), grpc.WithTransportCredentials(tc.client))
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := coltracepb.NewTraceServiceClient(conn).Export(ctx, otlptest.Sized(100))
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
	staying, leaving := certs.NewAuthority(t), certs.NewAuthority(t)
	cfg := testConfig()
	cfg.TLS.CertFile, cfg.TLS.KeyFile = staying.Leaf(t, "leaf").Files(t)
	cfg.TLS.ClientCAFile = staying.File(t)
	if err := os.WriteFile(cfg.TLS.ClientCAFile, slices.Concat(staying.PEM, leaving.PEM), 0o600); err != nil {
		t.Fatal(err)
	}
	srv := start(t, cfg, accept, rpc.Options{})
	certificate := leaving.Leaf(t, "leaf").TLS(t)
	secured := credentials.NewTLS(&tls.Config{RootCAs: staying.Pool(), Certificates: []tls.Certificate{certificate}})
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
		_, err := coltracepb.NewTraceServiceClient(conn).Export(t.Context(), otlptest.Sized(100))
		ended <- err
	}()
	<-slow.first
	if err := os.WriteFile(cfg.TLS.ClientCAFile, staying.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, "the removal is in force", func() bool {
		_, err := coltracepb.NewTraceServiceClient(dial(t, srv.Addr(), grpc.WithTransportCredentials(secured))).Export(t.Context(), otlptest.Sized(100))
		return err != nil
	})
	close(slow.may)
	if err := <-ended; status.Code(err) != codes.Unavailable {
		t.Errorf("Export = %v, want UNAVAILABLE", err)
	}
}
