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
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// names is a resolver of names that can be changed.
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
func TestNewReplicasOfANameAreFound(t *testing.T) {
	a := newReplica(t, nil)
	_, port, err := net.SplitHostPort(a.addr)
	if err != nil {
		t.Fatal(err)
	}
	second := func(c *rpc.Config) { c.Listen = net.JoinHostPort("127.0.0.2", port) }
	if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.2", port)); err != nil {
		t.Skipf("a second address of this machine is needed: %v", err)
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
		_, err := c.Export(t.Context(), body(), upstream.ExportOptions{})
		return err
	}
	if err := export(); err != nil {
		t.Fatal(err)
	}
	b := newReplica(t, second)
	dns.set("server.test", "127.0.0.1", "127.0.0.2")
	eventually(t, "the new replica has had a request", func() bool { return export() == nil && len(b.received()) > 0 })

	dns.set("server.test", "127.0.0.2")
	a.stop()
	eventually(t, "the old replica is forgotten", func() bool { return export() == nil })

	dns.set("server.test") // the name is gone, its addresses stay in use
	before := len(b.received())
	eventually(t, "lookups have failed", func() bool { return export() == nil && len(b.received()) > before+500 })
}

func TestNameThatNeverExistedIsTheCause(t *testing.T) {
	var dns names
	c := newClient(t, testConfig("server.test:20035"), upstream.Options{LookupHost: dns.lookup})
	eventually(t, "the error names the name", func() bool {
		_, err := c.Export(t.Context(), body(), upstream.ExportOptions{})
		return err != nil && !upstream.Doubtful(err) && strings.Contains(err.Error(), "lookup server.test: no such host")
	})
}

func TestTLS(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	certFile, keyFile := ours.leaf(t)
	ourCert, ourKey := ours.leaf(t)
	theirCert, theirKey := theirs.leaf(t)
	server := tlsOf(certFile, keyFile, "")
	mutual := tlsOf(certFile, keyFile, ours.file)
	tests := map[string]struct {
		server func(*rpc.Config)
		client tlsconfig.Client
		name   string // of the server, instead of its address
		want   string // in the error; empty means success
	}{
		"one way":                  {server, tlsconfig.Client{Enabled: true, CAFile: ours.file}, "", ""},
		"mutual":                   {mutual, tlsconfig.Client{Enabled: true, CAFile: ours.file, CertFile: ourCert, KeyFile: ourKey}, "", ""},
		"by name":                  {server, tlsconfig.Client{Enabled: true, CAFile: ours.file}, "server.test", ""},
		"by another name":          {server, tlsconfig.Client{Enabled: true, CAFile: ours.file}, "other.test", "not other.test"},
		"by a name that is given":  {server, tlsconfig.Client{Enabled: true, CAFile: ours.file, ServerName: "server.test"}, "other.test", ""},
		"a stranger's server":      {server, tlsconfig.Client{Enabled: true, CAFile: theirs.file}, "", "unknown authority"},
		"whatever it is":           {server, tlsconfig.Client{Enabled: true, CAFile: theirs.file, InsecureSkipVerify: true}, "other.test", ""},
		"no certificate":           {mutual, tlsconfig.Client{Enabled: true, CAFile: ours.file}, "", "certificate required"},
		"a stranger's certificate": {mutual, tlsconfig.Client{Enabled: true, CAFile: ours.file, CertFile: theirCert, KeyFile: theirKey}, "", "unknown certificate authority"},
		"plain text":               {server, tlsconfig.Client{}, "", "error reading server preface"},
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
			eventually(t, "an answer", func() bool {
				_, err = c.Export(t.Context(), body(), upstream.ExportOptions{})
				if tc.want == "" {
					return err == nil
				}
				if err == nil {
					t.Fatal("the connection was made")
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

// A server comes back with a certificate of another authority: the client takes it
// once its own file has that authority too.
func TestAuthorityIsReplacedWithoutARestart(t *testing.T) {
	old, fresh := newAuthority(t), newAuthority(t)
	certFile, keyFile := old.leaf(t)
	srv := newReplica(t, tlsOf(certFile, keyFile, ""))
	cfg := testConfig(srv.addr)
	cfg.TLS = tlsconfig.Client{Enabled: true, CAFile: old.file}
	c := newClient(t, cfg, upstream.Options{})
	waitReady(t, c)

	srv.stop()
	srv.cfg.TLS.CertFile, srv.cfg.TLS.KeyFile = fresh.leaf(t)
	srv.start(t, rpc.Options{ShutdownGrace: time.Second})
	eventually(t, "the new certificate is refused", func() bool {
		_, err := c.Export(t.Context(), body(), upstream.ExportOptions{})
		return err != nil && strings.Contains(err.Error(), x509.UnknownAuthorityError{}.Error())
	})
	pem, err := os.ReadFile(fresh.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(old.file, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
}

// control answers every heartbeat with its time.
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
			return nil //nolint:nilerr // the agent has gone
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
		Register:      func(r grpc.ServiceRegistrar) { agentv1.RegisterControlServiceServer(r, svc) },
	})
	c := newClient(t, testConfig(srv.addr), upstream.Options{AgentID: "agent-7"})
	waitReady(t, c)
	stream, err := c.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if id := <-svc.agents; id != "agent-7" {
		t.Errorf("the stream is of agent %q", id)
	}
	for i := range uint64(3) {
		err := stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Heartbeat{Heartbeat: &agentv1.Heartbeat{TimeUnixNano: i}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Export(t.Context(), body(), upstream.ExportOptions{}); err != nil {
			t.Fatal(err)
		}
		resp, err := stream.Recv()
		if err != nil || resp.GetHeartbeatReply().GetAgentTimeUnixNano() != i {
			t.Fatalf("Recv = %v, %v", resp, err)
		}
	}
	srv.stop()
	if _, err := stream.Recv(); err == nil {
		t.Error("the stream goes on although the server has gone")
	}
}
