package control

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Config is what an operator may set. Start from DefaultConfig.
type Config struct {
	// Token: token required from metaflow-ctl (--token); if empty,
	// everybody who reaches the HTTP port may read, and changes are
	// accepted only over loopback.
	Token string `mapstructure:"token" doc:"token required from metaflow-ctl (--token); if empty, everybody who reaches the HTTP port may read, and changes are accepted only over loopback" secret:"true"`
	// AllowAnonymousWrites: without a token, accept changes from everybody
	// who reaches the HTTP port: they can open any port on every agent.
	AllowAnonymousWrites bool `mapstructure:"allow_anonymous_writes" doc:"without a token, accept changes from everybody who reaches the HTTP port: they can open any port on every agent"`
	// AgentTokens: accepted agent tokens (server.token of the agent); list
	// several during a rotation. If empty, every agent is admitted. Servers
	// of all roles need them.
	AgentTokens []string `mapstructure:"agent_tokens" doc:"accepted agent tokens (server.token of the agent); list several during a rotation. If empty, every agent is admitted. Servers of all roles need them" secret:"true"`
	// MaxStreams: maximum agents connected to this server; further ones are
	// told to try another server.
	MaxStreams int `mapstructure:"max_streams" doc:"maximum agents connected to this server; further ones are told to try another server"`
	// MaxAgents: maximum known agents, including lost ones; new ones beyond
	// it are refused.
	MaxAgents int `mapstructure:"max_agents" doc:"maximum known agents, including lost ones; new ones beyond it are refused"`
	// NewAgentsPerMinute: unknown agents that may register per minute, or
	// at once, from one IPv4 address or IPv6 /64; further ones are told to
	// retry.
	NewAgentsPerMinute int `mapstructure:"new_agents_per_minute" doc:"unknown agents that may register per minute, or at once, from one IPv4 address or IPv6 /64; further ones are told to retry"`
	// ForgetAfter: how long an agent may be lost before it is forgotten, so
	// that removed nodes are not listed forever; 0 means never.
	ForgetAfter time.Duration `mapstructure:"forget_after" doc:"how long an agent may be lost before it is forgotten, so that removed nodes are not listed forever; 0 means never"`
}

// DefaultConfig returns a configuration that suits most installations.
func DefaultConfig() Config {
	return Config{MaxStreams: 10_000, MaxAgents: 50_000, NewAgentsPerMinute: 300, ForgetAfter: 30 * 24 * time.Hour}
}

// leastForgetting is well above the duration of any restart of Kafka or of all servers.
const leastForgetting = time.Hour

// Validate reports every problem at once, each by its key.
func (c Config) Validate() error {
	var errs []error
	if slices.Contains(c.AgentTokens, "") {
		errs = append(errs, errors.New("agent_tokens: one of them is empty"))
	}
	if c.MaxStreams <= 0 {
		errs = append(errs, fmt.Errorf("max_streams: %d is not positive", c.MaxStreams))
	}
	if c.MaxAgents <= 0 {
		errs = append(errs, fmt.Errorf("max_agents: %d is not positive", c.MaxAgents))
	}
	if c.NewAgentsPerMinute <= 0 {
		errs = append(errs, fmt.Errorf("new_agents_per_minute: %d is not positive", c.NewAgentsPerMinute))
	}
	if c.ForgetAfter != 0 && c.ForgetAfter < leastForgetting {
		errs = append(errs, fmt.Errorf("forget_after: %s is less than %s, and not 0", c.ForgetAfter, leastForgetting))
	}
	if c.AllowAnonymousWrites && c.Token != "" {
		errs = append(errs, errors.New("allow_anonymous_writes: true, but a token is set, which every request needs"))
	}
	return errors.Join(errs...)
}
