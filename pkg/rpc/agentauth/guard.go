// Package agentauth decides whether a caller may speak for an agent.
//
// An agent presents its credentials: a token of its agent group (control.group_tokens) or
// of the installation (control.agent_tokens), a certificate verified by TLS, and a secret
// that it generates at its first start and keeps in its state directory. Token and
// certificate decide which groups it may join. An id is bound to the secret with which it
// was first registered, or else to the name in the certificate; from then on no client
// without it may use the id. Bindings are records of metaflow.resources next to those of agents, so
// every replica of every role knows them. Deleting an agent frees its id.
//
// The package stores hashes, never secrets. It does no I/O: a follower of the topic
// passes it the records, and a producer writes the records that it creates. A Guard is
// safe for concurrent use.
package agentauth

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/schema"
)

// Guard holds the bindings. Create it with New.
type Guard struct {
	opts Options

	mu     sync.RWMutex
	caught bool               // bound is complete: the topic was read to its end
	bound  map[string]binding // by agent id
}

// binding is the value of a binding record.
type binding struct {
	// Credential is a hash in hexadecimal, empty for an agent without credentials.
	Credential string `json:"credential"`
	// Joined is when the id was first registered, in seconds since the Unix epoch.
	Joined int64 `json:"joined"`
}

// Options are what the configuration asks of agents. With the zero value everybody may
// speak for an agent that is not bound.
type Options struct {
	// Tokens returns whether a token is known, and whether it is good for an agent group
	// that has these names. If set, an agent must present such a token.
	Tokens func(token string, groups ...string) (known, good bool)
	// Mutual means that TLS accepts only clients with a certificate.
	Mutual bool
	// CertificateGroups means that a certificate is for the agent groups that its
	// subject's organizations name. It replaces a token.
	CertificateGroups bool
}

// New returns a Guard without bindings, which admits no agent before CaughtUp.
func New(opts Options) *Guard {
	return &Guard{opts: opts, bound: make(map[string]binding)}
}

// Observe applies a record of the topic. It ignores records of other kinds.
func (g *Guard) Observe(key, value []byte) {
	id, ok := strings.CutPrefix(string(key), schema.KeyBinding)
	if !ok {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if value == nil {
		delete(g.bound, id)
		return
	}
	var b binding
	if json.Unmarshal(value, &b) == nil { // otherwise it is from a newer server
		g.bound[id] = b
	}
}

// CaughtUp reports that Observe has received every record.
func (g *Guard) CaughtUp() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.caught = true
}

// Forget removes all bindings, as before the first record.
func (g *Guard) Forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.caught = false
	clear(g.bound)
}

// Check returns nil if the caller of a gRPC call may speak for an agent, otherwise a
// status: UNAVAILABLE while the bindings are not known. Every caller may speak for an
// empty agent.
func (g *Guard) Check(ctx context.Context, agent string) error {
	if agent == "" {
		return nil
	}
	if g.asks() && !g.Authenticated(ctx) {
		return g.stranger(agent)
	}
	g.mu.RLock()
	caught, b := g.caught, g.bound[agent]
	g.mu.RUnlock()
	return judge(agent, caught, b, credentialsOf(ctx))
}

// judge returns nil if a caller with these credentials may speak for an agent.
func judge(agent string, caught bool, b binding, shown []string) error {
	if !caught {
		return status.Errorf(codes.Unavailable, "this server has not read yet whom the agent id %q belongs to", agent)
	}
	if b.Credential == "" {
		return nil
	}
	for _, c := range shown {
		if subtle.ConstantTimeCompare([]byte(c), []byte(b.Credential)) == 1 {
			return nil
		}
	}
	return status.Errorf(codes.PermissionDenied,
		"the agent id %q belongs to an agent with another secret or certificate: use the spool directory that holds its secret (spool.dir), or free the id with 'metaflow-ctl agent release %s'", agent, agent)
}

// asks reports whether agents must show a token or a certificate of a group.
func (g *Guard) asks() bool { return g.opts.Tokens != nil || g.opts.CertificateGroups }

func (g *Guard) stranger(agent string) error {
	if !g.opts.CertificateGroups {
		return status.Errorf(codes.Unauthenticated,
			"agent %q shows no token of this installation: give it one of control.group_tokens or control.agent_tokens as server.token", agent)
	}
	return status.Errorf(codes.Unauthenticated,
		"agent %q shows no token of this installation and no certificate with an agent group as organization: give it one of control.group_tokens as server.token, or another server.tls.cert_file", agent)
}

// Authenticated reports whether the caller has proved that it belongs to the
// installation. Without configured credentials, every caller counts as authenticated.
func (g *Guard) Authenticated(ctx context.Context) bool {
	if g.opts.Tokens != nil {
		if known, _ := g.opts.Tokens(Metadata(ctx, schema.MetadataToken)); known {
			return true
		}
	}
	switch {
	case g.opts.CertificateGroups:
		c := certificateOf(ctx)
		return c != nil && len(c.Subject.Organization) > 0
	case g.opts.Tokens != nil:
		return false
	default:
		return !g.opts.Mutual || certificateOf(ctx) != nil
	}
}

// MayJoin returns nil if the caller's token or certificate is good for an agent group that
// has these names, otherwise a status.
func (g *Guard) MayJoin(ctx context.Context, agent string, group ...string) error {
	if !g.asks() {
		return nil
	}
	if g.opts.Tokens != nil {
		if _, good := g.opts.Tokens(Metadata(ctx, schema.MetadataToken), group...); good {
			return nil
		}
	}
	if c := certificateOf(ctx); g.opts.CertificateGroups && c != nil &&
		slices.ContainsFunc(group, func(name string) bool { return slices.Contains(c.Subject.Organization, name) }) {
		return nil
	}
	if !g.Authenticated(ctx) {
		return g.stranger(agent)
	}
	return status.Errorf(codes.PermissionDenied,
		"agent %q may not join the agent group %q: its token or certificate is for another group (control.group_tokens)", agent, group[0])
}

// Bind binds an admitted agent to its strongest credential, effective at once on this
// replica. It returns the binding record and whether it must be written for the other
// replicas. It fails like Check, and then changes nothing: the id may have been bound
// since Check.
func (g *Guard) Bind(ctx context.Context, agent string, now time.Time) (value []byte, news bool, err error) {
	shown := credentialsOf(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	b, known := g.bound[agent]
	if err := judge(agent, g.caught, b, shown); err != nil {
		return nil, false, err
	}
	if !known {
		b.Joined = now.Unix()
	}
	if len(shown) > 0 && shown[0] != b.Credential {
		b.Credential, news = shown[0], true
	}
	value, err = json.Marshal(b)
	if err != nil {
		return nil, false, err
	}
	g.bound[agent] = b
	return value, news || !known, nil
}

// Joined returns when an agent was first registered. ok is false if that is unknown.
func (g *Guard) Joined(agent string) (at time.Time, ok bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	b, ok := g.bound[agent]
	return time.Unix(b.Joined, 0), ok && b.Joined > 0
}

// credentialsOf returns the hashes of a caller's credentials, strongest first.
func credentialsOf(ctx context.Context) (shown []string) {
	if secret := Metadata(ctx, schema.MetadataSecret); secret != "" {
		shown = append(shown, hashed("secret", secret))
	}
	if name := nameOf(certificateOf(ctx)); name != "" {
		shown = append(shown, hashed("certificate", name))
	}
	return shown
}

func hashed(kind, text string) string {
	sum := sha256.Sum256([]byte(kind + "\x00" + text))
	return hex.EncodeToString(sum[:])
}

// certificateOf returns the certificate verified by TLS, or nil.
func certificateOf(ctx context.Context) *x509.Certificate {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	secured, ok := p.AuthInfo.(interface{ TLS() tls.ConnectionState })
	if !ok {
		return nil
	}
	if chains := secured.TLS().VerifiedChains; len(chains) > 0 {
		return chains[0][0]
	}
	return nil
}

// nameOf returns the part of a certificate that survives its renewal.
func nameOf(c *x509.Certificate) string {
	switch {
	case c == nil:
		return ""
	case len(c.URIs) > 0:
		return "uri:" + c.URIs[0].String()
	case len(c.DNSNames) > 0:
		return "dns:" + c.DNSNames[0]
	case c.Subject.CommonName != "":
		return "cn:" + c.Subject.CommonName
	default:
		return ""
	}
}

// Metadata returns the first value that a caller sent under a key, and "" without one.
func Metadata(ctx context.Context, key string) string {
	if values := metadata.ValueFromIncomingContext(ctx, key); len(values) > 0 {
		return values[0]
	}
	return ""
}
