package kafka

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

// config reads the files that t names. It returns nil when TLS is off.
func (t TLS) config() (*tls.Config, error) {
	if !t.Enabled {
		return nil, nil //nolint:nilnil // the library takes nil for "no TLS"
	}
	cfg := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         t.ServerName,
		InsecureSkipVerify: t.InsecureSkipVerify, //nolint:gosec // the operator asked for it by that name
	}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read tls.ca_file: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read tls.ca_file: %s holds no certificate", t.CAFile)
		}
	}
	if t.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read tls.cert_file and tls.key_file: %w", err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}

// mechanism returns nil when s does not log in.
func (s SASL) mechanism() (sasl.Mechanism, error) {
	switch s.Mechanism {
	case "":
		return nil, nil //nolint:nilnil // the library takes nil for "no login"
	case mechanismPlain:
		return plain.Mechanism{Username: s.Username, Password: s.Password}, nil
	case mechanismScram256, mechanismScram512:
		algorithm := scram.SHA256
		if s.Mechanism == mechanismScram512 {
			algorithm = scram.SHA512
		}
		m, err := scram.Mechanism(algorithm, s.Username, s.Password)
		if err != nil {
			return nil, fmt.Errorf("prepare sasl.username and sasl.password for %s: %w", s.Mechanism, err)
		}
		return m, nil
	default:
		return nil, fmt.Errorf("sasl.mechanism: %q is unknown", s.Mechanism)
	}
}
