package kafka_test

import (
	"context"
	"crypto/tls"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/certs"
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
	ca := certs.NewAuthority(t)
	caFile, otherCA := ca.File(t), certs.NewAuthority(t).File(t)
	server := ca.Leaf(t, "server")
	_, serverKey := server.Files(t)
	clientCert, clientKey := ca.Leaf(t, "client").Files(t)
	secure := kfake.TLS(&tls.Config{
		Certificates: []tls.Certificate{server.TLS(t)}, ClientCAs: ca.Pool(), ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS12,
	})
	good := tlsconfig.Client{Enabled: true, CAFile: caFile}
	tests := map[string]struct {
		edit func(*tlsconfig.Client)
		want string // in the error; empty for success
	}{
		"trusted authority":   {func(*tlsconfig.Client) {}, ""},
		"client certificate":  {func(c *tlsconfig.Client) { c.CertFile, c.KeyFile = clientCert, clientKey }, ""},
		"unknown authority":   {func(c *tlsconfig.Client) { c.CAFile = otherCA }, "certificate signed by unknown authority"},
		"other server name":   {func(c *tlsconfig.Client) { c.ServerName = "kafka.example" }, "kafka.example"},
		"nothing is verified": {func(c *tlsconfig.Client) { c.CAFile, c.InsecureSkipVerify = otherCA, true }, ""},
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
		"ca_file is missing":       func(c *tlsconfig.Client) { c.CAFile = filepath.Join(t.TempDir(), "none.pem") },
		"ca_file is not PEM":       func(c *tlsconfig.Client) { c.CAFile = clientKey },
		"key of another cert_file": func(c *tlsconfig.Client) { c.CertFile, c.KeyFile = clientCert, serverKey },
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
