// Package agentauth decides whether who calls may speak for an agent.
//
// An agent shows what it has: the token of the installation (control.agent_tokens), a certificate that
// TLS has verified, and a secret that it made at its first start and keeps in its state directory. An id is
// bound to the secret it was first registered with, or else to the name in the certificate; from then on
// nobody without it may use the id. Bindings are records of metaflow.resources beside those of agents, so every
// replica of every role knows them. A deleted agent's id is free again.
//
// The package keeps no secret, only hashes. It does no I/O: somebody who follows the topic gives it the
// records, and somebody with a producer writes those that it makes. A Guard may be used by many goroutines.
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

// Guard knows the bindings. Make one with New.
type Guard struct {
	tokens [][sha256.Size]byte
	mutual bool

	mu     sync.RWMutex
	caught bool               // bound is complete: the records were read to their end
	bound  map[string]binding // by agent id
}

// binding is the value of a record.
type binding struct {
	// Credential is a hash in hexadecimal, empty for an agent that showed nothing.
	Credential string `json:"credential"`
	// Joined is when the id was registered first, in seconds since the Unix epoch.
	Joined int64 `json:"joined"`
}

// New returns a Guard that knows no binding, and lets nobody speak for an agent before CaughtUp. With tokens, who speaks for an agent must show one of them.
// mutual says that TLS lets in only clients with a certificate.
func New(tokens []string, mutual bool) *Guard {
	g := &Guard{mutual: mutual, bound: make(map[string]binding)}
	for _, t := range tokens {
		g.tokens = append(g.tokens, sha256.Sum256([]byte(t)))
	}
	return g
}

// Observe takes a record of the topic; those of other kinds change nothing.
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
	if json.Unmarshal(value, &b) == nil { // else it is of a newer server
		g.bound[id] = b
	}
}

// CaughtUp says that Observe was given every record there is.
func (g *Guard) CaughtUp() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.caught = true
}

// Forget goes back to before the first record.
func (g *Guard) Forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.caught = false
	clear(g.bound)
}

// Check returns nil when the caller of a gRPC call may speak for an agent, else a status: UNAVAILABLE while
// it is not known what ids are bound. An empty agent is nobody's, and may always be spoken for.
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

// judge returns nil when who shows credentials may speak for an agent.
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

// Authenticated tells whether the caller has proved to belong to the installation. Where nothing is
// configured to prove it by, everybody counts as such.
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

// Bind binds an agent that is let in to the strongest that it shows, at once for this replica. It returns the
// record of the binding, and whether that is news to write for the others. It fails as Check does, and changes
// nothing then: the id may have been bound since Check was asked.
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

// Joined returns when an agent was registered first; ok is false when that is not known.
func (g *Guard) Joined(agent string) (at time.Time, ok bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	b, ok := g.bound[agent]
	return time.Unix(b.Joined, 0), ok && b.Joined > 0
}

// credentialsOf returns the hashes of what a caller shows, the strongest first.
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

// certificateOf returns what TLS has verified, nil when there is nothing.
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

// nameOf returns what stays the same when a certificate is renewed.
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
