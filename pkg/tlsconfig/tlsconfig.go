package tlsconfig

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
)

// Client configures TLS for outgoing connections. The zero value is plain text.
type Client struct {
	// Enabled: use TLS; the addresses must be TLS ports.
	Enabled bool `mapstructure:"enabled" doc:"use TLS; the addresses must be TLS ports"`
	// CAFile: PEM file of trusted authorities; empty means the system's.
	CAFile string `mapstructure:"ca_file" doc:"PEM file of trusted authorities; empty means the system's"`
	// CertFile: PEM file of the client's certificate; needs key_file.
	CertFile string `mapstructure:"cert_file" doc:"PEM file of the client's certificate; needs key_file"`
	// KeyFile: PEM file of the client's key; needs cert_file.
	KeyFile string `mapstructure:"key_file" doc:"PEM file of the client's key; needs cert_file"`
	// ServerName: expected name in the server's certificate; empty means
	// the host of the address.
	ServerName string `mapstructure:"server_name" doc:"expected name in the server's certificate; empty means the host of the address"`
	// InsecureSkipVerify: accept any certificate; for experiments only.
	InsecureSkipVerify bool `mapstructure:"insecure_skip_verify" doc:"accept any certificate; for experiments only"`
}

// Validate reports problems by keys under key. It does no I/O.
func (c Client) Validate(key string) error {
	return checkPair(key, c.CertFile, c.KeyFile)
}

// Source reads the files once, so that a mistake shows at the start, and returns the
// source of later configurations. Errors name keys under key. It returns nil if TLS is
// disabled. A nil logger discards.
func (c Client) Source(key string, log *slog.Logger) (*Source, error) {
	if !c.Enabled {
		return nil, nil //nolint:nilnil // nil means plain text, as in libraries that take a *tls.Config
	}
	s := &Source{files: newFiles(log, c.CAFile, c.CertFile, c.KeyFile)}
	s.files.build = func(r reading) (*tls.Config, error) {
		cfg := &tls.Config{
			MinVersion:         tls.VersionTLS12,
			ServerName:         c.ServerName,
			InsecureSkipVerify: c.InsecureSkipVerify, //nolint:gosec // the operator asked for it by that name
		}
		var err error
		if cfg.RootCAs, err = r.pool(key+".ca_file", c.CAFile); err != nil {
			return nil, err
		}
		cfg.Certificates, err = r.pair(key, c.CertFile, c.KeyFile)
		return cfg, err
	}
	if err := s.files.first(); err != nil {
		return nil, err
	}
	return s, nil
}

// Source provides the configuration of each new connection.
type Source struct{ files *files }

// Config returns a configuration for one connection, which the caller may change. Call it
// again for the next connection, because certificates may have changed. A nil Source
// returns nil.
func (s *Source) Config() *tls.Config {
	if s == nil {
		return nil
	}
	return s.files.now().Clone()
}

// Encrypt performs the TLS handshake on conn, a connection to addr, and returns the
// encrypted connection. It closes conn on error. A nil Source returns conn.
func (s *Source) Encrypt(ctx context.Context, conn net.Conn, addr string) (net.Conn, error) {
	if s == nil {
		return conn, nil
	}
	cfg := s.Config()
	if cfg.ServerName == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			_ = conn.Close()
			return nil, err
		}
		cfg.ServerName = host
	}
	encrypted := tls.Client(conn, cfg)
	if err := encrypted.HandshakeContext(ctx); err != nil {
		_ = encrypted.Close()
		return nil, err
	}
	return encrypted, nil
}

// Server configures TLS for a listener. The zero value is plain text. With a certificate,
// TLS is required; with client authorities, clients must present a certificate signed by
// one of them.
type Server struct {
	// CertFile: PEM certificate chain of the server; empty means plain
	// text.
	CertFile string `mapstructure:"cert_file" doc:"PEM certificate chain of the server; empty means plain text"`
	// KeyFile: PEM private key of cert_file.
	KeyFile string `mapstructure:"key_file" doc:"PEM private key of cert_file"`
	// ClientCAFile: PEM certificates of client authorities; if set, clients
	// need a certificate.
	ClientCAFile string `mapstructure:"client_ca_file" doc:"PEM certificates of client authorities; if set, clients need a certificate"`
}

// Validate reports every problem at once, by keys under key. It does no I/O.
func (s Server) Validate(key string) error {
	err := checkPair(key, s.CertFile, s.KeyFile)
	if s.ClientCAFile != "" && s.CertFile == "" {
		err = errors.Join(err, fmt.Errorf("%s.client_ca_file: %q needs %s.cert_file", key, s.ClientCAFile, key))
	}
	return err
}

// Acceptor reads the files once, so that a mistake shows at the start. Errors name keys
// under key. It returns nil if no certificate is configured. A nil logger discards.
// protocols are offered by ALPN, most preferred first.
func (s Server) Acceptor(key string, log *slog.Logger, protocols ...string) (*Acceptor, error) {
	if s.CertFile == "" {
		return nil, nil //nolint:nilnil // nil means plain text
	}
	f := newFiles(log, s.ClientCAFile, s.CertFile, s.KeyFile)
	f.build = func(r reading) (*tls.Config, error) {
		cfg := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols}
		var err error
		if cfg.ClientCAs, err = r.pool(key+".client_ca_file", s.ClientCAFile); err != nil {
			return nil, err
		}
		if cfg.ClientCAs != nil {
			cfg.ClientAuth = tls.RequireAndVerifyClientCert
		}
		cfg.Certificates, err = r.pair(key, s.CertFile, s.KeyFile)
		return cfg, err
	}
	if err := f.first(); err != nil {
		return nil, err
	}
	return &Acceptor{files: f, log: f.log, protocols: protocols, standing: make(map[*standing]struct{})}, nil
}

// Config returns the configuration of an Acceptor, for listeners that do not close
// connections. Nil means plain text.
func (s Server) Config(key string, log *slog.Logger, protocols ...string) (*tls.Config, error) {
	a, err := s.Acceptor(key, log, protocols...)
	if a == nil || err != nil {
		return nil, err
	}
	return a.Config(), nil
}

func checkPair(key, certFile, keyFile string) error {
	if (certFile == "") == (keyFile == "") {
		return nil
	}
	return fmt.Errorf("%s.cert_file and %s.key_file: %q and %q, but one needs the other", key, key, certFile, keyFile)
}
