package upstream_test

import (
	"context"
	"crypto/x509"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/certs"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// names is a DNS resolver whose names can be changed.
type names struct {
	mu    sync.Mutex
	hosts map[string][]string
}

func (n *names) set(host string, ips ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hosts == nil {
		n.hosts = map[string][]string{}
	}
	n.hosts[host] = ips
}

func (n *names) lookup(_ context.Context, host string) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ips := n.hosts[host]; len(ips) > 0 {
		return ips, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

// A headless service gains a pod and loses another, as in an upgrade.
func TestNewReplicasAreFound(t *testing.T) {
	a := newReplica(t, nil)
	_, port, err := net.SplitHostPort(a.addr)
	if err != nil {
		t.Fatal(err)
	}
	second := func(c *rpc.Config) { c.Listen = net.JoinHostPort("127.0.0.2", port) }
	if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.2", port)); err != nil {
		t.Skipf("needs a second loopback address: %v", err)
	} else {
		l.Close()
	}
	var dns names
	dns.set("server.test", "127.0.0.1")
	cfg := testConfig(net.JoinHostPort("server.test", port))
	cfg.ResolveInterval = time.Second
	c := newClient(t, cfg, upstream.Options{LookupHost: dns.lookup})
	waitReady(t, c)
	export := func() error {
		_, err := c.Export(t.Context(), traces.Signal, body(), upstream.ExportOptions{})
		return err
	}
	if err := export(); err != nil {
		t.Fatal(err)
	}
	b := newReplica(t, second)
	dns.set("server.test", "127.0.0.1", "127.0.0.2")
	wait.Until(t, "the new replica receives a request", func() bool { return export() == nil && len(b.received()) > 0 })

	dns.set("server.test", "127.0.0.2")
	a.stop()
	wait.Until(t, "the old replica is dropped", func() bool { return export() == nil })

	dns.set("server.test") // the name is gone; its addresses stay in use
	before := len(b.received())
	wait.Until(t, "lookups have failed", func() bool { return export() == nil && len(b.received()) > before+500 })
}

func TestUnknownNameIsReported(t *testing.T) {
	var dns names
	c := newClient(t, testConfig("server.test:20035"), upstream.Options{LookupHost: dns.lookup})
	wait.Until(t, "the error contains the name", func() bool {
		_, err := c.Export(t.Context(), traces.Signal, body(), upstream.ExportOptions{})
		return err != nil && !upstream.OutcomeUnknown(err) && strings.Contains(err.Error(), "lookup server.test: no such host")
	})
}

func TestTLS(t *testing.T) {
	ours, theirs := certs.NewAuthority(t), certs.NewAuthority(t)
	ourCA, theirCA := ours.File(t), theirs.File(t)
	certFile, keyFile := ours.Leaf(t, "server.test").Files(t)
	ourCert, ourKey := ours.Leaf(t, "client.test").Files(t)
	theirCert, theirKey := theirs.Leaf(t, "client.test").Files(t)
	server := tlsOf(certFile, keyFile, "")
	mutual := tlsOf(certFile, keyFile, ourCA)
	tests := map[string]struct {
		server func(*rpc.Config)
		client tlsconfig.Client
		name   string // of the server, instead of its address
		want   string // in the error; empty means success
	}{
		"one way":                  {server, tlsconfig.Client{Enabled: true, CAFile: ourCA}, "", ""},
		"mutual":                   {mutual, tlsconfig.Client{Enabled: true, CAFile: ourCA, CertFile: ourCert, KeyFile: ourKey}, "", ""},
		"by name":                  {server, tlsconfig.Client{Enabled: true, CAFile: ourCA}, "server.test", ""},
		"by another name":          {server, tlsconfig.Client{Enabled: true, CAFile: ourCA}, "other.test", "not other.test"},
		"by a configured name":     {server, tlsconfig.Client{Enabled: true, CAFile: ourCA, ServerName: "server.test"}, "other.test", ""},
		"unknown server authority": {server, tlsconfig.Client{Enabled: true, CAFile: theirCA}, "", "unknown authority"},
		"without verification":     {server, tlsconfig.Client{Enabled: true, CAFile: theirCA, InsecureSkipVerify: true}, "other.test", ""},
		"no certificate":           {mutual, tlsconfig.Client{Enabled: true, CAFile: ourCA}, "", "certificate required"},
		"unknown client authority": {mutual, tlsconfig.Client{Enabled: true, CAFile: ourCA, CertFile: theirCert, KeyFile: theirKey}, "", "unknown certificate authority"},
		"plain text":               {server, tlsconfig.Client{}, "", "it does not answer in gRPC"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			srv := newReplica(t, tc.server)
			addr := srv.addr
			var dns names
			if tc.name != "" {
				_, port, _ := net.SplitHostPort(srv.addr)
				addr = net.JoinHostPort(tc.name, port)
				dns.set(tc.name, "127.0.0.1")
			}
			cfg := testConfig(addr)
			cfg.TLS = tc.client
			c := newClient(t, cfg, upstream.Options{LookupHost: dns.lookup})
			var err error
			wait.Until(t, "a reply", func() bool {
				_, err = c.Export(t.Context(), traces.Signal, body(), upstream.ExportOptions{})
				if tc.want == "" {
					return err == nil
				}
				if err == nil {
					t.Fatal("connected")
				}
				return strings.Contains(err.Error(), tc.want)
			})
		})
	}
}

func tlsOf(certFile, keyFile, clientCA string) func(*rpc.Config) {
	return func(c *rpc.Config) {
		c.TLS.CertFile, c.TLS.KeyFile, c.TLS.ClientCAFile = certFile, keyFile, clientCA
	}
}

// A server restarts with a certificate of another authority. The client accepts
// it once its own CA file contains that authority.
func TestAuthorityIsReloaded(t *testing.T) {
	old, fresh := certs.NewAuthority(t), certs.NewAuthority(t)
	oldCA := old.File(t)
	certFile, keyFile := old.Leaf(t, "server.test").Files(t)
	srv := newReplica(t, tlsOf(certFile, keyFile, ""))
	cfg := testConfig(srv.addr)
	cfg.TLS = tlsconfig.Client{Enabled: true, CAFile: oldCA}
	c := newClient(t, cfg, upstream.Options{})
	waitReady(t, c)

	srv.stop()
	srv.cfg.TLS.CertFile, srv.cfg.TLS.KeyFile = fresh.Leaf(t, "server.test").Files(t)
	srv.start(t, rpc.Options{ShutdownGrace: time.Second})
	wait.Until(t, "the new certificate is rejected", func() bool {
		_, err := c.Export(t.Context(), traces.Signal, body(), upstream.ExportOptions{})
		return err != nil && strings.Contains(err.Error(), x509.UnknownAuthorityError{}.Error())
	})
	if err := os.WriteFile(oldCA, fresh.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
}

// control echoes the time of every heartbeat.
type control struct {
	agentv1.UnimplementedControlServiceServer
	agents chan string
}

func (s *control) Connect(stream agentv1.ControlService_ConnectServer) error {
	if ids := metadata.ValueFromIncomingContext(stream.Context(), schema.MetadataAgent); len(ids) == 1 {
		s.agents <- ids[0]
	}
	for {
		req, err := stream.Recv()
		if err != nil {
			return nil //nolint:nilerr // the agent is gone
		}
		err = stream.Send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_HeartbeatReply{
			HeartbeatReply: &agentv1.HeartbeatReply{AgentTimeUnixNano: req.GetHeartbeat().GetTimeUnixNano()},
		}})
		if err != nil {
			return err
		}
	}
}

func TestControlStreamSharesTheConnection(t *testing.T) {
	svc := &control{agents: make(chan string, 1)}
	srv := newReplica(t, nil)
	srv.stop()
	srv.start(t, rpc.Options{
		ShutdownGrace: time.Second,
		Services: []func(grpc.ServiceRegistrar){
			func(r grpc.ServiceRegistrar) { agentv1.RegisterControlServiceServer(r, svc) },
		},
	})
	c := newClient(t, testConfig(srv.addr), upstream.Options{AgentID: "agent-7"})
	waitReady(t, c)
	stream, err := c.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if id := <-svc.agents; id != "agent-7" {
		t.Errorf("the stream belongs to agent %q", id)
	}
	for i := range uint64(3) {
		err := stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Heartbeat{Heartbeat: &agentv1.Heartbeat{TimeUnixNano: i}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Export(t.Context(), traces.Signal, body(), upstream.ExportOptions{}); err != nil {
			t.Fatal(err)
		}
		resp, err := stream.Recv()
		if err != nil || resp.GetHeartbeatReply().GetAgentTimeUnixNano() != i {
			t.Fatalf("Recv = %v, %v", resp, err)
		}
	}
	srv.stop()
	if _, err := stream.Recv(); err == nil {
		t.Error("the stream outlived the server")
	}
}
