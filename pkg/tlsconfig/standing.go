package tlsconfig

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
)

// Acceptor is a listener's TLS: a configuration that follows the files, and the
// connections that are still trusted under it.
type Acceptor struct {
	files     *files
	log       *slog.Logger
	protocols []string

	mu       sync.Mutex
	standing map[*standing]struct{}
	judged   *tls.Config // the configuration that trusts was computed for
	trusts   map[*x509.Certificate]time.Time
}

// rememberedTrusts bounds the cached certificates. It is several times the connections of
// a server, at two words each.
const rememberedTrusts = 1 << 14

// standing is a connection whose client presented a certificate.
type standing struct {
	conn  io.Closer
	chain []*x509.Certificate
}

var errNoCertificate = errors.New("the client presented no certificate")

// Config returns a configuration that follows the files. It can serve any number of
// connections.
func (a *Acceptor) Config() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		NextProtos:         a.protocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return a.files.now(), nil },
	}
}

// Trusted returns nil if the connection's client would be accepted now, otherwise the
// reason. It is cheap enough for every request: the result for a connection is cached
// until the files change or one of its certificates may have expired.
func (a *Acceptor) Trusted(state tls.ConnectionState) error {
	cfg, chain := a.files.now(), state.PeerCertificates
	if cfg.ClientCAs == nil || len(chain) == 0 {
		return trusted(cfg, chain)
	}
	now := time.Now()
	a.mu.Lock()
	if a.judged != cfg || len(a.trusts) >= rememberedTrusts {
		a.judged, a.trusts = cfg, make(map[*x509.Certificate]time.Time)
	}
	until := a.trusts[chain[0]]
	a.mu.Unlock()
	if now.Before(until) {
		return nil
	}
	if err := trusted(cfg, chain); err != nil {
		return err
	}
	until = now.Add(trustedFor)
	for _, c := range chain {
		if c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.judged == cfg {
		a.trusts[chain[0]] = until
	}
	return nil
}

// trustedFor bounds how long a cached result outlives the expiry of an authority.
const trustedFor = time.Minute

func trusted(cfg *tls.Config, chain []*x509.Certificate) error {
	if cfg.ClientCAs == nil {
		return nil
	}
	if len(chain) == 0 {
		return errNoCertificate
	}
	opts := x509.VerifyOptions{
		Roots: cfg.ClientCAs, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(opts); err != nil {
		return fmt.Errorf("verify the client's certificate again: %w", err)
	}
	return nil
}

// Track registers conn to be closed by Run when its client is no longer trusted. Call
// forget when conn has ended. Track fails if the client is not trusted now, because the
// authority may have been removed since the handshake began; then the caller must close
// conn.
func (a *Acceptor) Track(conn io.Closer, state tls.ConnectionState) (forget func(), err error) {
	s := &standing{conn: conn, chain: state.PeerCertificates}
	a.mu.Lock()
	a.standing[s] = struct{}{}
	a.mu.Unlock()
	forget = func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.standing, s)
	}
	// Check only now: Run handles changes from here on.
	if err := a.Trusted(state); err != nil {
		forget()
		return nil, err
	}
	return forget, nil
}

// Run checks the files every few seconds until ctx ends. When they have changed, it
// closes the connections of clients that would no longer be accepted.
func (a *Acceptor) Run(ctx context.Context) {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	last := a.files.now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if now := a.files.now(); now != last {
			last = now
			a.closeUntrusted(now)
		}
	}
}

func (a *Acceptor) closeUntrusted(cfg *tls.Config) {
	a.mu.Lock()
	var gone []*standing
	for s := range a.standing {
		if trusted(cfg, s.chain) != nil {
			gone = append(gone, s)
			delete(a.standing, s)
		}
	}
	a.mu.Unlock()
	for _, s := range gone {
		_ = s.conn.Close() // it may have ended by itself
	}
	if len(gone) > 0 {
		a.log.Warn("closed connections whose client certificates are no longer trusted", slog.Int("connections", len(gone)))
	}
}
