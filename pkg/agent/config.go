package agent

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
	"github.com/metaflowys/metaflow-server/pkg/values"
)

// Config configures how the agent receives traces. The configuration of its
// agent group opens the ports.
type Config struct {
	// BindAddress: IP address of the listeners that the agent group's
	// configuration opens; if empty, all addresses of the host with tls or
	// insecure, and loopback without.
	BindAddress string `mapstructure:"bind_address" doc:"IP address of the listeners that the agent group's configuration opens; if empty, all addresses of the host with tls or insecure, and loopback without"`
	// Insecure: accept plain text from other hosts, such as the pods of the
	// node.
	Insecure bool             `mapstructure:"insecure" doc:"accept plain text from other hosts, such as the pods of the node"`
	TLS      tlsconfig.Server `mapstructure:"tls"`
	// BearerTokens: tokens of which senders to those listeners must present
	// one, as Authorization: Bearer TOKEN; list several during a rotation.
	// If empty, none is required.
	BearerTokens []string `mapstructure:"bearer_tokens" doc:"tokens of which senders to those listeners must present one, as Authorization: Bearer TOKEN; list several during a rotation. If empty, none is required" secret:"true"`
	// BearerTokensFile: file with further bearer_tokens, one a line; read
	// again within seconds when it changes.
	BearerTokensFile string `mapstructure:"bearer_tokens_file" doc:"file with further bearer_tokens, one a line; read again within seconds when it changes"`
	// LiveTimeout: how long a request waits for a server before the agent
	// spools it; keep it below the senders' timeout, which is 10s by
	// OpenTelemetry's default.
	LiveTimeout time.Duration `mapstructure:"live_timeout" doc:"how long a request waits for a server before the agent spools it; keep it below the senders' timeout, which is 10s by OpenTelemetry's default"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{LiveTimeout: 5 * time.Second} }

// Validate reports every problem, each by its key.
func (c Config) Validate() error {
	var errs []error
	if c.BindAddress != "" {
		if _, err := values.IP(c.BindAddress); err != nil {
			errs = append(errs, fmt.Errorf("bind_address: %q %w", c.BindAddress, err))
		}
	}
	if c.LiveTimeout <= 0 {
		errs = append(errs, fmt.Errorf("live_timeout: %s is not positive", c.LiveTimeout))
	}
	if c.BindAddress != "" {
		if err := values.CheckExposed(net.JoinHostPort(c.BindAddress, "0"), c.TLS.CertFile != "", c.Insecure, "otlp.tls", "otlp.insecure"); err != nil {
			errs = append(errs, fmt.Errorf("bind_address: %w", err))
		}
	}
	bearers := c.bearers()
	bearers.Key = "bearer_tokens"
	return errors.Join(append(errs, bearers.Validate(), c.TLS.Validate("tls"))...)
}

// Exposed reports whether the listeners accept plain text from other hosts.
func (c Config) Exposed() bool {
	return c.Insecure && c.TLS.CertFile == "" && (c.BindAddress == "" || !values.LoopbackHost(c.BindAddress))
}

// bind returns the address to listen on. confined means that it is loopback because
// nothing allows more.
func (c Config) bind() (address string, confined bool) {
	if c.BindAddress == "" && c.TLS.CertFile == "" && !c.Insecure {
		return "127.0.0.1", true
	}
	return c.BindAddress, false
}

// bearerKey is the key of the bearer tokens.
const bearerKey = "otlp.bearer_tokens" //nolint:gosec // the name of a key, no credential

func (c Config) bearers() tokens.List {
	return tokens.List{Key: bearerKey, Values: c.BearerTokens, File: c.BearerTokensFile}
}
