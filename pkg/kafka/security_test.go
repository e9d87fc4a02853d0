package kafka_test

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
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

// useEverything produces, fetches and joins a group.
func useEverything(t *testing.T, client *kafka.Client) {
	t.Helper()
	if err := client.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	createTopic(t, client, 1)
	if err := startProducer(t, client, kafka.ProducerOptions{}).Produce(t.Context(), numbered(0, "a", 2)); err != nil {
		t.Fatal(err)
	}
	m := startMember(t, client, nil)
	claim := m.await(1)[0]
	b, err := claim.Fetch(t.Context(), 0, 1<<20, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a-0", "a-1"}, values(b.Records)); diff != "" {
		t.Errorf("fetched (-want +got):\n%s", diff)
	}
	if err := commit(t.Context(), claim, 2, ""); err != nil {
		t.Error(err)
	}
	m.stop()
}

func TestSASL(t *testing.T) {
	for _, mechanism := range []string{"plain", "scram-sha-256", "scram-sha-512"} {
		t.Run(mechanism, func(t *testing.T) {
			cluster := startCluster(t, kfake.EnableSASL(), kfake.Superuser(strings.ToUpper(mechanism), "metaflow", "secret"))
			login := func(password string) *kafka.Client {
				return newClient(t, cluster, func(c *kafka.Config) {
					c.SASL = kafka.SASL{Mechanism: mechanism, Username: "metaflow", Password: password}
				})
			}
			useEverything(t, login("secret"))

			err := login("guess").Ping(t.Context())
			if err == nil || !strings.Contains(strings.ToLower(err.Error()), "authentication") {
				t.Errorf("Ping with a wrong password = %v, want an authentication error", err)
			}
			if err != nil && strings.Contains(err.Error(), "guess") {
				t.Errorf("the error shows the password: %v", err)
			}
		})
	}
}

func TestSASLIsRequired(t *testing.T) {
	cluster := startCluster(t, kfake.EnableSASL(), kfake.Superuser("PLAIN", "metaflow", "secret"))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := newClient(t, cluster, nil).EnsureTopics(ctx, kafka.Topic{Name: topic}); err == nil {
		t.Error("a topic was created without login")
	}
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	ca := newCA(t, dir, "ca")
	newCA(t, dir, "other")
	server := ca.issue(t, dir, "server")
	ca.issue(t, dir, "client")
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	secure := kfake.TLS(&tls.Config{
		Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS12,
	})
	file := func(name string) string { return filepath.Join(dir, name) }
	good := tlsconfig.Client{Enabled: true, CAFile: file("ca.pem")}
	tests := map[string]struct {
		edit func(*tlsconfig.Client)
		want string // in the error; empty for success
	}{
		"trusted authority":   {func(*tlsconfig.Client) {}, ""},
		"client certificate":  {func(c *tlsconfig.Client) { c.CertFile, c.KeyFile = file("client.pem"), file("client.key") }, ""},
		"unknown authority":   {func(c *tlsconfig.Client) { c.CAFile = file("other.pem") }, "certificate signed by unknown authority"},
		"other server name":   {func(c *tlsconfig.Client) { c.ServerName = "kafka.example" }, "kafka.example"},
		"nothing is verified": {func(c *tlsconfig.Client) { c.CAFile, c.InsecureSkipVerify = file("other.pem"), true }, ""},
		"no TLS at all":       {func(c *tlsconfig.Client) { c.Enabled = false }, "TLS"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			client := newClient(t, startCluster(t, secure), func(c *kafka.Config) {
				c.TLS = good
				tc.edit(&c.TLS)
			})
			if tc.want == "" {
				useEverything(t, client)
				return
			}
			if err := client.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Ping = %v, want %q in it", err, tc.want)
			}
		})
	}

	for name, edit := range map[string]func(*tlsconfig.Client){
		"ca_file is missing":       func(c *tlsconfig.Client) { c.CAFile = file("none.pem") },
		"ca_file is not PEM":       func(c *tlsconfig.Client) { c.CAFile = file("client.key") },
		"key of another cert_file": func(c *tlsconfig.Client) { c.CertFile, c.KeyFile = file("client.pem"), file("server.key") },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := kafka.DefaultConfig()
			cfg.TLS = good
			edit(&cfg.TLS)
			if _, err := kafka.New(cfg, kafka.Options{}); err == nil || !strings.Contains(err.Error(), "tls.c") {
				t.Errorf("New = %v, want an error that names the key", err)
			}
		})
	}
}

// authority issues certificates for 127.0.0.1.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T, dir, name string) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, name+".pem"), "CERTIFICATE", der)
	return authority{cert, key}
}

func (a authority) issue(t *testing.T, dir, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, name+".pem"), "CERTIFICATE", der)
	writePEM(t, filepath.Join(dir, name+".key"), "PRIVATE KEY", secret)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
