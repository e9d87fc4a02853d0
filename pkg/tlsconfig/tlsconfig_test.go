package tlsconfig_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/testkit/certs"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

// dir holds the files of one side.
type dir string

func newDir(t *testing.T, a *certs.Authority, leaf string) dir {
	t.Helper()
	d := dir(t.TempDir())
	d.fill(t, a, leaf)
	return d
}

// fill writes the files of one side.
func (d dir) fill(t *testing.T, a *certs.Authority, leaf string) {
	t.Helper()
	l := a.Leaf(t, leaf)
	d.write(t, "ca.pem", a.PEM)
	d.write(t, "cert.pem", l.Cert)
	d.write(t, "key.pem", l.Key)
}

func (d dir) path(name string) string { return filepath.Join(string(d), name) }

func (d dir) write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(d.path(name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (d dir) client() tlsconfig.Client {
	return tlsconfig.Client{Enabled: true, CAFile: d.path("ca.pem"), CertFile: d.path("cert.pem"), KeyFile: d.path("key.pem")}
}

func (d dir) server() tlsconfig.Server {
	return tlsconfig.Server{ClientCAFile: d.path("ca.pem"), CertFile: d.path("cert.pem"), KeyFile: d.path("key.pem")}
}

// side is the configuration of both sides of a connection.
type side struct {
	client *tlsconfig.Source
	server *tls.Config
	log    *bytes.Buffer
}

func newSide(t *testing.T, client tlsconfig.Client, server tlsconfig.Server) side {
	t.Helper()
	s := side{log: new(bytes.Buffer)}
	log := slog.New(slog.NewTextHandler(s.log, nil))
	var err error
	if s.client, err = client.Source("tls", log); err != nil {
		t.Fatal(err)
	}
	if s.server, err = server.Config("tls", log); err != nil {
		t.Fatal(err)
	}
	return s
}

// handshake connects and returns the names in the certificates that the sides presented.
func (s side) handshake() (client, server string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // not a pipe: an alert is written while nobody reads
	if err != nil {
		return "", "", err
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return "", "", err
	}
	defer a.Close()
	b, err := l.Accept()
	if err != nil {
		return "", "", err
	}
	defer b.Close()
	far := tls.Server(b, s.server)
	done := make(chan error, 1)
	go func() {
		err := far.Handshake()
		if err != nil {
			b.Close()
		} else { // a refusal arrives after the client's own part of the handshake
			_, err = far.Write([]byte("!"))
		}
		done <- err
	}()
	near, err := s.client.Encrypt(context.Background(), a, l.Addr().String())
	if err == nil {
		_, err = near.Read(make([]byte, 1))
	}
	if err != nil {
		a.Close()
		return "", "", errors.Join(err, <-done)
	}
	if err := <-done; err != nil {
		return "", "", err
	}
	return far.ConnectionState().PeerCertificates[0].Subject.CommonName, near.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName, nil
}

func (s side) expect(t *testing.T, client, server string) {
	t.Helper()
	gotClient, gotServer, err := s.handshake()
	if err != nil || gotClient != client || gotServer != server {
		t.Errorf("handshake of %q and %q, %v; want %q and %q", gotClient, gotServer, err, client, server)
	}
}

func TestBothSidesPresentTheirCertificates(t *testing.T) {
	a := certs.NewAuthority(t)
	near, far := newDir(t, a, "near"), newDir(t, a, "far")
	newSide(t, near.client(), far.server()).expect(t, "near", "far")

	named := near.client()
	named.ServerName = "far"
	newSide(t, named, far.server()).expect(t, "near", "far")

	named.ServerName = "elsewhere"
	if _, _, err := newSide(t, named, far.server()).handshake(); err == nil || !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("a server of another name: %v", err)
	}
	stranger := newDir(t, certs.NewAuthority(t), "stranger")
	trusting := stranger.client()
	trusting.InsecureSkipVerify = true
	for name, client := range map[string]tlsconfig.Client{"trusts others": stranger.client(), "is trusted by others": trusting} {
		if _, _, err := newSide(t, client, far.server()).handshake(); err == nil {
			t.Errorf("a client that %s was accepted", name)
		}
	}
}

// laterLook advances virtual time until the files are checked again.
func laterLook() { time.Sleep(5 * time.Second) } //nolint:forbidigo // in a bubble of synctest it costs no time

// Authority, certificates and keys of both sides are replaced, as when a mounted secret
// changes.
func TestReplacedFilesAreUsedAfterAFewSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, fresh := certs.NewAuthority(t), certs.NewAuthority(t)
		near, far := newDir(t, old, "near"), newDir(t, old, "far")
		s := newSide(t, near.client(), far.server())
		s.expect(t, "near", "far")

		near.fill(t, fresh, "new near")
		far.fill(t, fresh, "new far")
		s.expect(t, "near", "far") // not checked yet
		laterLook()
		s.expect(t, "new near", "new far")
	})
}

func TestFilesThatCannotBeUsedChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := certs.NewAuthority(t)
		near, far := newDir(t, a, "near"), newDir(t, a, "far")
		s := newSide(t, near.client(), far.server())

		fresh := a.Leaf(t, "new far")
		far.write(t, "cert.pem", fresh.Cert) // with the key of the old one
		for range 3 {
			laterLook()
			s.expect(t, "near", "far")
		}
		if n := strings.Count(s.log.String(), "cannot be used"); n != 1 {
			t.Errorf("logged %d times, want once:\n%s", n, s.log)
		}
		far.write(t, "key.pem", fresh.Key)
		laterLook()
		s.expect(t, "near", "new far")

		for _, broken := range []string{"", "garbage"} {
			near.write(t, "ca.pem", []byte(broken))
			laterLook()
			s.expect(t, "near", "new far")
		}
		if err := os.Remove(far.path("key.pem")); err != nil {
			t.Fatal(err)
		}
		laterLook()
		s.expect(t, "near", "new far")
	})
}

func TestMistakesShowAtTheStart(t *testing.T) {
	a := certs.NewAuthority(t)
	d := newDir(t, a, "near")
	d.write(t, "garbage.pem", []byte("garbage"))
	client, server := d.client(), d.server()
	other := newDir(t, a, "other")
	tests := map[string]struct {
		err  error
		want []string
	}{
		"no CA":          {sourceError(client, func(c *tlsconfig.Client) { c.CAFile = "/no/ca" }), []string{"ca_file", "/no/ca"}},
		"CA of garbage":  {sourceError(client, func(c *tlsconfig.Client) { c.CAFile = d.path("garbage.pem") }), []string{"ca_file", "holds no PEM certificate"}},
		"another's key":  {sourceError(client, func(c *tlsconfig.Client) { c.KeyFile = other.path("key.pem") }), []string{"cert_file", "key_file", "does not match"}},
		"no certificate": {serverError(server, func(s *tlsconfig.Server) { s.CertFile = "/no/cert" }), []string{"cert_file", "/no/cert"}},
		"no key":         {serverError(server, func(s *tlsconfig.Server) { s.KeyFile = "/no/key" }), []string{"key_file", "/no/key"}},
		"no client CA":   {serverError(server, func(s *tlsconfig.Server) { s.ClientCAFile = "/no/ca" }), []string{"client_ca_file", "/no/ca"}},
		"half a pair":    {tlsconfig.Client{CertFile: "c"}.Validate("tls"), []string{`tls.cert_file and tls.key_file: "c" and ""`}},
		"two at once":    {tlsconfig.Server{KeyFile: "k", ClientCAFile: "ca"}.Validate("grpc.tls"), []string{`grpc.tls.key_file: "" and "k"`, `grpc.tls.client_ca_file: "ca" needs grpc.tls.cert_file`}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if tc.err == nil {
				t.Fatal("no error")
			}
			for _, want := range tc.want {
				if !strings.Contains(tc.err.Error(), want) {
					t.Errorf("error does not name %q: %v", want, tc.err)
				}
			}
		})
	}
}

func sourceError(c tlsconfig.Client, change func(*tlsconfig.Client)) error {
	change(&c)
	_, err := c.Source("tls", nil)
	return err
}

func serverError(s tlsconfig.Server, change func(*tlsconfig.Server)) error {
	change(&s)
	_, err := s.Config("tls", nil)
	return err
}

func TestOffIsPlainText(t *testing.T) {
	source, err := tlsconfig.Client{CAFile: "/not/read"}.Source("tls", nil)
	if err != nil || source.Config() != nil {
		t.Errorf("client: %v, %v", source.Config(), err)
	}
	plain, _ := net.Pipe()
	if conn, err := source.Encrypt(t.Context(), plain, "anywhere"); conn != plain || err != nil {
		t.Errorf("client: %v, %v", conn, err)
	}
	cfg, err := tlsconfig.Server{}.Config("tls", nil)
	if err != nil || cfg != nil {
		t.Errorf("server: %v, %v", cfg, err)
	}
	if err := errors.Join(tlsconfig.Client{}.Validate("tls"), tlsconfig.Server{}.Validate("tls")); err != nil {
		t.Error(err)
	}
}

// Each configuration belongs to its caller.
func TestConfigurationsAreNotShared(t *testing.T) {
	source, err := newDir(t, certs.NewAuthority(t), "near").client().Source("tls", nil)
	if err != nil {
		t.Fatal(err)
	}
	source.Config().ServerName = "changed"
	if got := source.Config().ServerName; got != "" {
		t.Errorf("server name is %q", got)
	}
}
