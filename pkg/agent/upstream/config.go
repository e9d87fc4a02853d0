package upstream

import (
	"errors"
	"fmt"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
	"github.com/metaflowys/metaflow-server/pkg/values"
)

// Config is what an operator may set. Start from DefaultConfig.
type Config struct {
	// Addresses: host:port of the servers; a name with several addresses,
	// such as a headless service, means all of them.
	Addresses []string `mapstructure:"addresses" doc:"host:port of the servers; a name with several addresses, such as a headless service, means all of them"`
	// Timeout: timeout of one request; keep it above the server's
	// kafka.produce_timeout. A short timeout sends stored requests again, a
	// long one holds up senders while a server hangs.
	Timeout time.Duration `mapstructure:"timeout" doc:"timeout of one request; keep it above the server's kafka.produce_timeout. A short timeout sends stored requests again, a long one holds up senders while a server hangs"`
	// ConnectTimeout: timeout of one connection attempt, including TLS.
	ConnectTimeout time.Duration `mapstructure:"connect_timeout" doc:"timeout of one connection attempt, including TLS"`
	// MaxBackoff: longest pause between two attempts to connect to one
	// server; pauses start below a second and grow.
	MaxBackoff time.Duration `mapstructure:"max_backoff" doc:"longest pause between two attempts to connect to one server; pauses start below a second and grow"`
	// ResolveInterval: interval between lookups of server names, which find
	// new servers.
	ResolveInterval time.Duration `mapstructure:"resolve_interval" doc:"interval between lookups of server names, which find new servers"`
	Keepalive       Keepalive     `mapstructure:"keepalive"`
	// Token: one of the servers' control.group_tokens of the agent's group
	// (without GROUP:), or of their control.agent_tokens; use it with TLS.
	Token string `mapstructure:"token" doc:"one of the servers' control.group_tokens of the agent's group (without GROUP:), or of their control.agent_tokens; use it with TLS" secret:"true"`
	// TokenFile: file that holds the token, in place of token; read again
	// within seconds when it changes.
	TokenFile string           `mapstructure:"token_file" doc:"file that holds the token, in place of token; read again within seconds when it changes"`
	TLS       tlsconfig.Client `mapstructure:"tls"`
}

// Keepalive configures the detection of dead connections.
type Keepalive struct {
	// Time: the agent pings a connection that was idle for this long;
	// servers disconnect clients that ping more often than their
	// grpc.keepalive.min_client_interval.
	Time time.Duration `mapstructure:"time" doc:"the agent pings a connection that was idle for this long; servers disconnect clients that ping more often than their grpc.keepalive.min_client_interval"`
	// Timeout: the agent closes a connection whose ping is not answered
	// within this time.
	Timeout time.Duration `mapstructure:"timeout" doc:"the agent closes a connection whose ping is not answered within this time"`
}

// leastKeepalive is the least that grpc-go accepts and that servers allow by
// default.
const leastKeepalive = 10 * time.Second

// DefaultConfig returns the configuration for a server on this machine.
func DefaultConfig() Config {
	return Config{
		Addresses:       []string{"127.0.0.1:20035"},
		Timeout:         20 * time.Second,
		ConnectTimeout:  5 * time.Second,
		MaxBackoff:      10 * time.Second,
		ResolveInterval: 15 * time.Second,
		Keepalive: Keepalive{
			Time:    15 * time.Second, // above the server's minimum, because pings may arrive early
			Timeout: 10 * time.Second,
		},
	}
}

// Validate reports all problems, each by its key. It reads no file and looks up
// no name.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(len(c.Addresses) > 0, "addresses: at least one is required")
	for i, addr := range c.Addresses {
		if err := values.CheckDial(addr); err != nil {
			errs = append(errs, fmt.Errorf("addresses[%d]: %q %w", i, addr, err))
		}
	}
	check(c.Timeout >= 100*time.Millisecond, "timeout: %s is less than 100ms", c.Timeout)
	check(c.ConnectTimeout >= 100*time.Millisecond, "connect_timeout: %s is less than 100ms", c.ConnectTimeout)
	check(c.MaxBackoff >= 100*time.Millisecond, "max_backoff: %s is less than 100ms", c.MaxBackoff)
	check(c.ResolveInterval >= time.Second, "resolve_interval: %s is less than 1s", c.ResolveInterval)
	check(c.Keepalive.Time >= leastKeepalive, "keepalive.time: %s is less than %s", c.Keepalive.Time, leastKeepalive)
	check(c.Keepalive.Timeout >= time.Second, "keepalive.timeout: %s is less than 1s", c.Keepalive.Timeout)
	check(c.Token == "" || c.TokenFile == "", "token_file: %q, but token is set too: give one of them", c.TokenFile)
	return errors.Join(append(errs, c.TLS.Validate("tls"))...)
}
