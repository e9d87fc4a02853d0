package tlsconfig

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
)

// Client is how connections that we make are encrypted. The zero value is plain
// text.
type Client struct {
	Enabled            bool   `mapstructure:"enabled" doc:"use TLS; the addresses then name ports that speak it"`
	CAFile             string `mapstructure:"ca_file" doc:"PEM file of the authorities to trust; empty trusts the system's"`
	CertFile           string `mapstructure:"cert_file" doc:"PEM file of the client's certificate; needs key_file"`
	KeyFile            string `mapstructure:"key_file" doc:"PEM file of the client's key; needs cert_file"`
	ServerName         string `mapstructure:"server_name" doc:"name to expect in the server's certificate; empty expects the host of the address"`
	InsecureSkipVerify bool   `mapstructure:"insecure_skip_verify" doc:"accept any certificate; only for trying out"`
}

// Validate reports what is wrong, by keys under key. It reads no file.
func (c Client) Validate(key string) error {
	return checkPair(key, c.CertFile, c.KeyFile)
}

// Source reads the files once, so that a mistake shows at the start, and returns what
// makes configurations from then on. Errors name keys under key. It returns nil when
// TLS is off. A nil logger logs nothing.
func (c Client) Source(key string, log *slog.Logger) (*Source, error) {
	if !c.Enabled {
		return nil, nil //nolint:nilnil // nil is plain text, for every library that takes a *tls.Config too
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

// Source makes the configuration of each new connection.
type Source struct{ files *files }

// Config returns the configuration for one connection, which is the caller's to
// change. Ask again for the next one: it may have newer certificates. A nil
// Source returns nil.
func (s *Source) Config() *tls.Config {
	if s == nil {
		return nil
	}
	return s.files.now().Clone()
}

// Encrypt makes conn, a connection to addr, an encrypted one, handshake included;
// after an error conn is closed. A nil Source returns conn itself.
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

// Server is how connections that we accept are encrypted. The zero value is plain
// text. With a certificate, TLS is required; with authorities for clients too, clients
// must show a certificate signed by one of them.
type Server struct {
	CertFile     string `mapstructure:"cert_file" doc:"PEM certificate chain of the server; empty means plain text"`
	KeyFile      string `mapstructure:"key_file" doc:"PEM private key of cert_file"`
	ClientCAFile string `mapstructure:"client_ca_file" doc:"PEM certificates that sign clients; set, a client without a certificate is refused"`
}

// Validate reports every problem at once, by keys under key. It reads no file.
func (s Server) Validate(key string) error {
	err := checkPair(key, s.CertFile, s.KeyFile)
	if s.ClientCAFile != "" && s.CertFile == "" {
		err = errors.Join(err, fmt.Errorf("%s.client_ca_file: %q needs %s.cert_file", key, s.ClientCAFile, key))
	}
	return err
}

// Acceptor reads the files once, so that a mistake shows at the start. Errors name keys
// under key. It returns nil when no certificate is given. A nil logger logs nothing.
// protocols are offered by ALPN, the best first; none offers nothing.
func (s Server) Acceptor(key string, log *slog.Logger, protocols ...string) (*Acceptor, error) {
	if s.CertFile == "" {
		return nil, nil //nolint:nilnil // nil is plain text
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

// Config is the configuration of an Acceptor, for listeners that do not end connections; nil
// is plain text.
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
