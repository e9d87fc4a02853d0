package agentauth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/fleet"
	"github.com/metaflowys/metaflow-server/schema"
)

type secured struct {
	credentials.AuthInfo
	state tls.ConnectionState
}

func (s secured) TLS() tls.ConnectionState { return s.state }

// caller is who calls with a secret, a certificate's name and a token, each as far as given.
func caller(t *testing.T, secret, certificate, token string) context.Context {
	t.Helper()
	md := metadata.MD{}
	if secret != "" {
		md.Set(schema.MetadataSecret, secret)
	}
	if token != "" {
		md.Set(schema.MetadataToken, token)
	}
	ctx := metadata.NewIncomingContext(t.Context(), md)
	if certificate != "" {
		leaf := &x509.Certificate{Subject: pkix.Name{CommonName: certificate}}
		ctx = peer.NewContext(ctx, &peer.Peer{AuthInfo: secured{state: tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{leaf}}}}})
	}
	return ctx
}

func TestAnIDBelongsToWhoCameFirst(t *testing.T) {
	now := time.Unix(1000, 0)
	type who struct{ secret, certificate string }
	tests := map[string]struct {
		first, second who
		want          codes.Code
	}{
		"the same secret":                        {who{"s", ""}, who{"s", ""}, codes.OK},
		"another secret":                         {who{"s", ""}, who{"t", ""}, codes.PermissionDenied},
		"no secret":                              {who{"s", ""}, who{"", ""}, codes.PermissionDenied},
		"a certificate in place of the secret":   {who{"s", ""}, who{"", "a"}, codes.PermissionDenied},
		"the same certificate":                   {who{"", "a"}, who{"", "a"}, codes.OK},
		"another certificate":                    {who{"", "a"}, who{"", "b"}, codes.PermissionDenied},
		"an upgrade: a secret beside it":         {who{"", "a"}, who{"s", "a"}, codes.OK},
		"an old agent, which shows nothing":      {who{}, who{}, codes.OK},
		"an old agent that is upgraded":          {who{}, who{"s", ""}, codes.OK},
		"the secret alone, of a renewed machine": {who{"s", "a"}, who{"s", "b"}, codes.OK},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			here, elsewhere := New(nil, false), New(nil, false)
			elsewhere.Observe(fleet.BindingKey("a"), here.Bind(caller(t, tc.first.secret, tc.first.certificate, ""), "a", now))
			for _, g := range []*Guard{here, elsewhere} {
				if err := g.Check(caller(t, tc.second.secret, tc.second.certificate, ""), "a"); status.Code(err) != tc.want {
					t.Errorf("Check = %v, want %s", err, tc.want)
				}
				if err := g.Check(t.Context(), "b"); err != nil {
					t.Errorf("an id that nobody has: %v", err)
				}
				if at, ok := g.Joined("a"); !ok || !at.Equal(now) {
					t.Errorf("joined at %v, %v", at, ok)
				}
			}
			here.Observe(fleet.BindingKey("a"), nil)
			if err := here.Check(caller(t, "new", "", ""), "a"); err != nil {
				t.Errorf("after the id was released: %v", err)
			}
		})
	}
}

func TestABindingGetsStronger(t *testing.T) {
	g := New(nil, false)
	if g.Bind(caller(t, "", "", ""), "a", time.Unix(1000, 0)) == nil {
		t.Error("the first registration makes no record")
	}
	if g.Bind(caller(t, "", "", ""), "a", time.Unix(2000, 0)) != nil {
		t.Error("nothing new makes a record")
	}
	if g.Bind(caller(t, "s", "", ""), "a", time.Unix(2000, 0)) == nil {
		t.Error("a secret makes no record")
	}
	if at, _ := g.Joined("a"); at.Unix() != 1000 {
		t.Errorf("joined %v after it was bound again", at)
	}
	if g.Check(caller(t, "", "", ""), "a") == nil {
		t.Error("the id is still anybody's")
	}
	g.Forget()
	if g.Check(caller(t, "", "", ""), "a") != nil {
		t.Error("a forgotten binding holds")
	}
}

func TestTokens(t *testing.T) {
	g := New([]string{"old", "new"}, false)
	for token, want := range map[string]codes.Code{"old": codes.OK, "new": codes.OK, "": codes.Unauthenticated, "x": codes.Unauthenticated} {
		ctx := caller(t, "s", "", token)
		if err := g.Check(ctx, "a"); status.Code(err) != want {
			t.Errorf("with the token %q: %v, want %s", token, err, want)
		}
		if got := g.Authenticated(ctx); got != (want == codes.OK) {
			t.Errorf("authenticated with the token %q: %v", token, got)
		}
	}
	if err := g.Check(t.Context(), ""); err != nil {
		t.Errorf("a collector, which speaks for no agent: %v", err)
	}
}

func TestWhoIsAuthenticated(t *testing.T) {
	for name, tc := range map[string]struct {
		mutual      bool
		certificate string
		want        bool
	}{
		"nothing is configured": {false, "", true},
		"a certificate":         {true, "a", true},
		"none":                  {true, "", false},
	} {
		if got := New(nil, tc.mutual).Authenticated(caller(t, "", tc.certificate, "")); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func FuzzObserve(f *testing.F) {
	f.Add("agent-binding/a", []byte(`{"credential":"x","joined":1}`))
	f.Add("agent/a", []byte(nil))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		g := New(nil, false)
		g.Observe([]byte(key), value)
		_ = g.Check(t.Context(), "a")
	})
}
