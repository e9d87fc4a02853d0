package upstream_test

import (
	"context"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/testkit/certs"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// admission knows one token and one group.
type admission struct {
	agentv1.UnimplementedControlServiceServer
}

func (admission) Check(ctx context.Context, r *agentv1.CheckRequest) (*agentv1.CheckResponse, error) {
	if tokens := metadata.ValueFromIncomingContext(ctx, schema.MetadataToken); !slices.Equal(tokens, []string{"right"}) {
		return nil, status.Error(codes.Unauthenticated, "shows no token of this installation")
	}
	if r.GetRegistration().GetGroup() != "shop" {
		return &agentv1.CheckResponse{}, nil
	}
	return &agentv1.CheckResponse{GroupId: "g-1", GroupName: "shop"}, nil
}

// withAdmission makes the server of r answer Check.
func withAdmission(t *testing.T, r *replica) {
	t.Helper()
	r.stop()
	r.start(t, rpc.Options{ShutdownGrace: time.Second, Services: []func(grpc.ServiceRegistrar){
		func(s grpc.ServiceRegistrar) { agentv1.RegisterControlServiceServer(s, admission{}) },
	}})
}

// mentions reports whether text contains one of the alternatives in want.
func mentions(text, want string) bool {
	return slices.ContainsFunc(strings.Split(want, "|"), func(one string) bool { return strings.Contains(text, one) })
}

// Each way in which no server is reached has its own words, and what to do.
func TestProbe(t *testing.T) {
	authority := certs.NewAuthority(t)
	ca, other := authority.File(t), certs.NewAuthority(t).File(t)
	certFile, keyFile := authority.Leaf(t, "server.test").Files(t)
	plain, secure, mutual := newReplica(t, nil), newReplica(t, tlsOf(certFile, keyFile, "")), newReplica(t, tlsOf(certFile, keyFile, ca))
	for _, r := range []*replica{plain, secure, mutual} {
		withAdmission(t, r)
	}
	gatewayOnly := newReplica(t, nil)
	web := ports.Serve(t, func(conn net.Conn) {
		_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")) // the prober may be gone
	})
	silent := ports.Serve(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	trusting := tlsconfig.Client{Enabled: true, CAFile: ca}
	var dns names

	tests := map[string]struct {
		addr, token, group string
		tls                tlsconfig.Client
		step, want         string // of the last finding; an empty want is success
	}{
		"all is well":           {addr: plain.addr, token: "right", group: "shop", step: upstream.StepGroup},
		"all is well with TLS":  {addr: secure.addr, token: "right", group: "shop", tls: trusting, step: upstream.StepGroup},
		"unknown name":          {addr: "server.test:20035", step: upstream.StepName, want: "server.addresses"},
		"nothing listens":       {addr: ports.FreeAddress(t), step: upstream.StepPort, want: "connection refused: nothing listens"},
		"a web server":          {addr: web, step: upstream.StepServer, want: "not a MetaFlow server, or it uses TLS"},
		"a silent program":      {addr: silent, step: upstream.StepServer, want: "not a MetaFlow server|nothing answers"},
		"the server wants TLS":  {addr: secure.addr, step: upstream.StepServer, want: "server.tls.enabled"},
		"the server has no TLS": {addr: plain.addr, tls: trusting, step: upstream.StepTLS, want: "server.tls.enabled: false"},
		"another authority":     {addr: secure.addr, tls: tlsconfig.Client{Enabled: true, CAFile: other}, step: upstream.StepTLS, want: "server.tls.ca_file"},
		"another name":          {addr: secure.addr, tls: tlsconfig.Client{Enabled: true, CAFile: ca, ServerName: "x.test"}, step: upstream.StepTLS, want: "server.tls.server_name"},
		"no client certificate": {addr: mutual.addr, tls: trusting, step: upstream.StepServer, want: "server.tls.cert_file"},
		"no token":              {addr: plain.addr, step: upstream.StepToken, want: "no token"},
		"wrong token":           {addr: plain.addr, token: "wrong", step: upstream.StepToken, want: "no token"},
		"unknown group":         {addr: plain.addr, token: "right", group: "shpo", step: upstream.StepGroup, want: `no agent group "shpo"`},
		"an OTLP server":        {addr: gatewayOnly.addr, step: upstream.StepServer, want: "another program answers"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(tc.addr)
			cfg.TLS, cfg.Token = tc.tls, tc.token
			cfg.ConnectTimeout = 10 * time.Second
			if name == "a silent program" {
				cfg.ConnectTimeout = 500 * time.Millisecond
			}
			c := newClient(t, cfg, upstream.Options{LookupHost: dns.lookup})
			agent := &agentv1.Registration{AgentId: "a", InstanceId: "i", Name: "n", Group: tc.group}
			found := c.Probe(t.Context(), agent)
			last := found[len(found)-1]
			text := ""
			if last.Err != nil {
				text = last.Err.Error()
			}
			if last.Step != tc.step || (text == "") != (tc.want == "") || !mentions(text, tc.want) {
				t.Errorf("ends with %+v, want step %s, error %q", last, tc.step, tc.want)
			}
			for _, f := range found[:len(found)-1] {
				if f.Err != nil {
					t.Errorf("goes on after %+v", f)
				}
			}
			trouble := c.Trouble(t.Context(), agent)
			if wanted := tc.want != ""; (trouble != nil) != wanted || wanted && !mentions(trouble.Error(), tc.want) {
				t.Errorf("trouble: %v", trouble)
			}
		})
	}
}
