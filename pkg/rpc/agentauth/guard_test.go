package agentauth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
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
			here, elsewhere := caughtUp(), caughtUp()
			value, _ := bind(caller(t, tc.first.secret, tc.first.certificate, ""), t, here, now)
			elsewhere.Observe(fleet.BindingKey("a"), value)
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

func caughtUp(tokens ...string) *Guard {
	g := New(Options{Tokens: knows(tokens...)})
	g.CaughtUp()
	return g
}

// knows returns the look-up of tokens, each GROUP:TOKEN or for all groups.
func knows(tokens ...string) func(string, ...string) (known, good bool) {
	if len(tokens) == 0 {
		return nil
	}
	return func(token string, groups ...string) (known, good bool) {
		for _, t := range tokens {
			group, of, grouped := strings.Cut(t, ":")
			switch {
			case !grouped && t == token:
				return true, true
			case grouped && of == token:
				known, good = true, good || slices.Contains(groups, group)
			}
		}
		return known, good
	}
}

// bind binds the id "a", which has to work.
func bind(ctx context.Context, t *testing.T, g *Guard, now time.Time) (value []byte, news bool) {
	t.Helper()
	value, news, err := g.Bind(ctx, "a", now)
	if err != nil {
		t.Fatal(err)
	}
	return value, news
}

func TestABindingGetsStronger(t *testing.T) {
	g := caughtUp()
	if _, news := bind(caller(t, "", "", ""), t, g, time.Unix(1000, 0)); !news {
		t.Error("the first registration is no news")
	}
	if _, news := bind(caller(t, "", "", ""), t, g, time.Unix(2000, 0)); news {
		t.Error("nothing new is news")
	}
	bound, news := bind(caller(t, "s", "", ""), t, g, time.Unix(2000, 0))
	if !news {
		t.Error("a secret is no news")
	}
	if again, news := bind(caller(t, "s", "", ""), t, g, time.Unix(3000, 0)); news || string(again) != string(bound) {
		t.Errorf("a second registration: %s, %v; the first one: %s", again, news, bound)
	}
	if at, _ := g.Joined("a"); at.Unix() != 1000 {
		t.Errorf("joined %v after it was bound again", at)
	}
	if g.Check(caller(t, "", "", ""), "a") == nil {
		t.Error("the id is still anybody's")
	}
	g.Forget()
	g.CaughtUp()
	if g.Check(caller(t, "", "", ""), "a") != nil {
		t.Error("a forgotten binding holds")
	}
}

// A server that has just started has read none of the bindings, or some.
func TestNobodySpeaksForAnAgentBeforeItIsKnownWhoseItIs(t *testing.T) {
	owner, stranger, now := caller(t, "s", "", ""), caller(t, "t", "", ""), time.Unix(1000, 0)
	record, _ := bind(owner, t, caughtUp(), now)
	g := New(Options{})
	for _, moment := range []string{"after the start", "after the topic was made anew"} {
		for who, ctx := range map[string]context.Context{"the owner": owner, "a stranger": stranger} {
			if err := g.Check(ctx, "a"); status.Code(err) != codes.Unavailable {
				t.Errorf("%s, Check of %s = %v, want UNAVAILABLE", moment, who, err)
			}
			if _, _, err := g.Bind(ctx, "a", now); status.Code(err) != codes.Unavailable {
				t.Errorf("%s, Bind of %s = %v, want UNAVAILABLE", moment, who, err)
			}
		}
		if err := g.Check(stranger, ""); err != nil {
			t.Errorf("%s, a collector, which speaks for no agent: %v", moment, err)
		}
		g.CaughtUp()
		if err := g.Check(stranger, "a"); err != nil {
			t.Errorf("an id that nobody has: %v", err)
		}
		// The binding comes between the check and the registration.
		g.Observe(fleet.BindingKey("a"), record)
		if _, _, err := g.Bind(stranger, "a", now); status.Code(err) != codes.PermissionDenied {
			t.Errorf("Bind of a stranger = %v, want PERMISSION_DENIED", err)
		}
		if err := g.Check(owner, "a"); err != nil {
			t.Errorf("Check of the owner = %v", err)
		}
		if err := g.Check(stranger, "a"); status.Code(err) != codes.PermissionDenied {
			t.Errorf("Check of a stranger = %v, want PERMISSION_DENIED", err)
		}
		g.Forget()
	}
}

func TestTokens(t *testing.T) {
	g := caughtUp("old", "new")
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
		if got := New(Options{Mutual: tc.mutual}).Authenticated(caller(t, "", tc.certificate, "")); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestWhoMayJoinAGroup(t *testing.T) {
	for name, tc := range map[string]struct {
		opts  Options
		token string
		org   string
		group []string
		want  codes.Code
	}{
		"nothing is configured":                     {Options{}, "", "", []string{"shop"}, codes.OK},
		"a token of the installation":               {Options{Tokens: knows("all")}, "all", "", []string{"shop"}, codes.OK},
		"a token of the group":                      {Options{Tokens: knows("shop:s")}, "s", "", []string{"shop"}, codes.OK},
		"a token of the group by its id":            {Options{Tokens: knows("g-1:s")}, "s", "", []string{"shop", "g-1", "shop"}, codes.OK},
		"one token of two groups":                   {Options{Tokens: knows("a:s", "b:s")}, "s", "", []string{"b"}, codes.OK},
		"another group's token":                     {Options{Tokens: knows("shop:s", "bank:b")}, "s", "", []string{"bank"}, codes.PermissionDenied},
		"an unknown token":                          {Options{Tokens: knows("shop:s")}, "x", "", []string{"shop"}, codes.Unauthenticated},
		"no token":                                  {Options{Tokens: knows("shop:s")}, "", "", []string{"shop"}, codes.Unauthenticated},
		"a certificate where it counts for nothing": {Options{Tokens: knows("shop:s"), Mutual: true}, "", "shop", []string{"shop"}, codes.Unauthenticated},
		"a certificate of the group":                {Options{Mutual: true, CertificateGroups: true}, "", "shop", []string{"shop"}, codes.OK},
		"a certificate of another group":            {Options{Mutual: true, CertificateGroups: true}, "", "shop", []string{"bank"}, codes.PermissionDenied},
		"a certificate of no group":                 {Options{Mutual: true, CertificateGroups: true}, "", "none", []string{"bank"}, codes.Unauthenticated},
		"a token beside certificates":               {Options{Mutual: true, CertificateGroups: true, Tokens: knows("bank:b")}, "b", "shop", []string{"bank"}, codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			g := New(tc.opts)
			g.CaughtUp()
			ctx := caller(t, "s", "", tc.token)
			if tc.org != "" {
				leaf := &x509.Certificate{Subject: pkix.Name{CommonName: "c"}}
				if tc.org != "none" {
					leaf.Subject.Organization = []string{tc.org}
				}
				ctx = peer.NewContext(ctx, &peer.Peer{AuthInfo: secured{state: tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{leaf}}}}})
			}
			if err := g.MayJoin(ctx, "a", tc.group...); status.Code(err) != tc.want {
				t.Errorf("MayJoin = %v, want %s", err, tc.want)
			}
			if err := g.Check(ctx, "a"); (status.Code(err) == codes.Unauthenticated) != (tc.want == codes.Unauthenticated) {
				t.Errorf("Check = %v", err)
			}
		})
	}
}

func FuzzObserve(f *testing.F) {
	f.Add("agent-binding/a", []byte(`{"credential":"x","joined":1}`))
	f.Add("agent/a", []byte(nil))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		g := New(Options{})
		g.Observe([]byte(key), value)
		_ = g.Check(t.Context(), "a")
	})
}
