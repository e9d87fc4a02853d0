package clickhouse

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

// encrypted runs a TLS proxy in front of the engine. It returns its address and its CA
// file.
func encrypted(t *testing.T, server string) (addr, caFile string) {
	t.Helper()
	// Used only for its certificate, for 127.0.0.1 and example.com.
	https := httptest.NewTLSServer(nil)
	t.Cleanup(https.Close)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: https.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { relay(client, server) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: https.Certificate().Raw})
	if err := os.WriteFile(caFile, authority, 0o600); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String(), caFile
}

// relay returns when either side closes.
func relay(client net.Conn, server string) {
	defer func() { _ = client.Close() }()
	up, err := dialWire(context.Background(), server, nil)
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(client, up)
		_ = client.Close()
	})
	_, _ = io.Copy(up, client)
	_ = up.Close()
	wg.Wait()
}

func TestConnectionsAreEncrypted(t *testing.T) {
	plain := testConfig(t)
	d := migrated(t, plain)
	mustExec(t, d, "CREATE TABLE "+plain.Database+".t (n UInt64) ENGINE = MergeTree ORDER BY n")
	addr, ca := encrypted(t, engine.NativeAddr())
	tests := map[string]struct {
		tls  tlsconfig.Client
		want string // part of the error
	}{
		"the authority is trusted":      {tlsconfig.Client{Enabled: true, CAFile: ca}, ""},
		"another name is expected":      {tlsconfig.Client{Enabled: true, CAFile: ca, ServerName: "example.com"}, ""},
		"any certificate is accepted":   {tlsconfig.Client{Enabled: true, InsecureSkipVerify: true}, ""},
		"the authority is not trusted":  {tlsconfig.Client{Enabled: true}, "certificate"},
		"the certificate is of another": {tlsconfig.Client{Enabled: true, CAFile: ca, ServerName: "other.test"}, "other.test"},
		"the server wants TLS":          {tlsconfig.Client{}, "log in"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := plain
			cfg.Addresses, cfg.TLS = []string{addr}, tc.tls
			err := newInserter(t, cfg).Insert(t.Context(), 0, "t", name, numbers(0, 200_000), 200_000)
			ping := openDB(t, cfg).Ping(t.Context())
			if tc.want == "" {
				if err != nil || ping != nil {
					t.Errorf("insert: %v; ping: %v", err, ping)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || ping == nil {
				t.Errorf("insert: %v; ping: %v; want an error with %q", err, ping, tc.want)
			}
		})
	}
	if got := queryText(t, d, "SELECT count() FROM "+plain.Database+".t"); got != "600000" {
		t.Errorf("%s rows", got)
	}
}

func TestMissingTLSFilesAreNamed(t *testing.T) {
	for name, c := range map[string]tlsconfig.Client{
		"tls.ca_file":   {Enabled: true, CAFile: "no/such.pem"},
		"tls.cert_file": {Enabled: true, CertFile: "no/such.pem", KeyFile: "no/such.key"},
	} {
		cfg := DefaultConfig()
		cfg.TLS = c
		if _, err := Open(cfg, nil); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: Open = %v", name, err)
		}
		if _, err := NewInserter(cfg, InserterOptions{}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: NewInserter = %v", name, err)
		}
	}
}
