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

// Acceptor is what a listener needs: a configuration that follows the files, and which of the
// connections made under it are still trusted.
type Acceptor struct {
	files     *files
	log       *slog.Logger
	protocols []string

	mu       sync.Mutex
	standing map[*standing]struct{}
	judged   *tls.Config // what trusts is about
	trusts   map[*x509.Certificate]time.Time
}

// rememberedTrusts bounds the certificates of connections that Trusted knows to be good; it is some times what
// a server has connections, at two words each.
const rememberedTrusts = 1 << 14

// standing is a connection whose client showed a certificate.
type standing struct {
	conn  io.Closer
	chain []*x509.Certificate
}

var errNoCertificate = errors.New("the client showed no certificate")

// Config is good for any number of connections, and follows the files.
func (a *Acceptor) Config() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		NextProtos:         a.protocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return a.files.now(), nil },
	}
}

// Trusted tells whether a client of that connection would be let in now: nil, or why not. It may be asked for
// every request: the answer for a connection is worked out anew only when the files have changed, or when one of its
// certificates may have expired.
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

// trustedFor bounds how long an answer holds although an authority may have expired.
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

// Track has Run close conn when its client is trusted no longer. Call forget when it has ended. It fails when the
// client is not trusted now: the authority may have been removed since the handshake began. Then conn is the
// caller's to close.
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
	// Only now: what changes from here on is for Run.
	if err := a.Trusted(state); err != nil {
		forget()
		return nil, err
	}
	return forget, nil
}

// Run looks at the files every few seconds until ctx ends. When they have changed, it closes the
// connections whose clients would not be let in any more.
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
		a.log.Warn("connections closed whose certificates are trusted no longer", slog.Int("connections", len(gone)))
	}
}
