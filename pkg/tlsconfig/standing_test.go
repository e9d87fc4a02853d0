package tlsconfig_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/testkit/certs"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

// Of two clients with certificates of two authorities, only the one whose authority is
// removed from the file loses its connection.
func TestRemovedAuthorityEndsConnections(t *testing.T) {
	leaving, staying := certs.NewAuthority(t), certs.NewAuthority(t)
	server := newDir(t, staying, "server")
	server.write(t, "ca.pem", slices.Concat(leaving.PEM, staying.PEM))
	acceptor, err := server.server().Acceptor("tls", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { acceptor.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })

	connect := func(a *certs.Authority) (accepted, dialed net.Conn) {
		pair := a.Leaf(t, "client").TLS(t)
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		raw, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		other, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c := tls.Client(raw, &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true})
		s := tls.Server(other, acceptor.Config())
		shaken := make(chan error, 1)
		go func() { shaken <- s.Handshake() }()
		if err := errors.Join(c.Handshake(), <-shaken); err != nil {
			t.Fatal(err)
		}
		if _, err := acceptor.Track(s, s.ConnectionState()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(); s.Close() })
		return s, c
	}
	serverOfLeaving, left := connect(leaving)
	serverOfStaying, stays := connect(staying)
	for _, s := range []net.Conn{serverOfLeaving, serverOfStaying} {
		state := s.(*tls.Conn).ConnectionState()
		if err := acceptor.Trusted(state); err != nil {
			t.Errorf("a client of an authority in the file: %v", err)
		}
		if n := testing.AllocsPerRun(100, func() { _ = acceptor.Trusted(state) }); n > 0 {
			t.Errorf("a repeated call allocates %v times, so it verifies the certificate for every request", n)
		}
	}
	server.write(t, "ca.pem", staying.PEM)
	_ = left.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := left.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection under the removed authority ends with %v", err)
	}
	if err := acceptor.Trusted(serverOfLeaving.(*tls.Conn).ConnectionState()); err == nil {
		t.Error("a client of the removed authority is trusted")
	}
	if _, err := acceptor.Track(serverOfLeaving, serverOfLeaving.(*tls.Conn).ConnectionState()); err == nil {
		t.Error("a handshake that began before the authority was removed succeeded after it")
	}
	go func() { _, _ = serverOfStaying.Write([]byte("x")) }()
	if _, err := io.ReadFull(stays, make([]byte, 1)); err != nil {
		t.Errorf("the connection under the remaining authority: %v", err)
	}
}

func TestPlainTextHasNoAcceptor(t *testing.T) {
	if a, err := (tlsconfig.Server{}).Acceptor("tls", nil); a != nil || err != nil {
		t.Errorf("Acceptor = %v, %v", a, err)
	}
}
