// Package agentauth decides whether a caller may speak for an agent.
//
// An agent presents its credentials: the installation's token (control.agent_tokens), a
// certificate verified by TLS, and a secret that it generates at its first start and
// keeps in its state directory. An id is bound to the secret with which it was first
// registered, or else to the name in the certificate; from then on no client without it
// may use the id. Bindings are records of metaflow.resources next to those of agents, so
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
	tokens [][sha256.Size]byte
	mutual bool

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

// New returns a Guard without bindings, which admits no agent before CaughtUp. With
// tokens, a caller that speaks for an agent must present one of them. mutual means that
// TLS accepts only clients with a certificate.
func New(tokens []string, mutual bool) *Guard {
	g := &Guard{mutual: mutual, bound: make(map[string]binding)}
	for _, t := range tokens {
		g.tokens = append(g.tokens, sha256.Sum256([]byte(t)))
	}
	return g
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
	if len(g.tokens) > 0 && !g.knows(first(ctx, schema.MetadataToken)) {
		return status.Errorf(codes.Unauthenticated,
			"agent %q shows no token of this installation: give it one of control.agent_tokens as server.token", agent)
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
		"the agent id %q belongs to an agent with another secret or certificate; 'metaflow-ctl agent release' frees it", agent)
}

// Authenticated reports whether the caller has proved that it belongs to the
// installation. Without configured credentials, every caller counts as authenticated.
func (g *Guard) Authenticated(ctx context.Context) bool {
	if len(g.tokens) > 0 {
		return g.knows(first(ctx, schema.MetadataToken))
	}
	return !g.mutual || certificateOf(ctx) != nil
}

func (g *Guard) knows(token string) bool {
	sum := sha256.Sum256([]byte(token))
	found := 0
	for _, t := range g.tokens {
		found |= subtle.ConstantTimeCompare(sum[:], t[:])
	}
	return found == 1
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
	if secret := first(ctx, schema.MetadataSecret); secret != "" {
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

func first(ctx context.Context, key string) string {
	if values := metadata.ValueFromIncomingContext(ctx, key); len(values) > 0 {
		return values[0]
	}
	return ""
}
