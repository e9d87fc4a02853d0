package control

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Config is what an operator may set. Start from DefaultConfig.
type Config struct {
	// Token: what metaflow-ctl must show (--token); empty lets everybody
	// read who reaches the HTTP port, and takes changes only over loopback.
	Token string `mapstructure:"token" doc:"what metaflow-ctl must show (--token); empty lets everybody read who reaches the HTTP port, and takes changes only over loopback" secret:"true"`
	// AllowAnonymousWrites: without a token, take changes from everybody
	// who reaches the HTTP port: whoever does can open any port of every
	// agent.
	AllowAnonymousWrites bool `mapstructure:"allow_anonymous_writes" doc:"without a token, take changes from everybody who reaches the HTTP port: whoever does can open any port of every agent"`
	// AgentTokens: tokens of which agents must show one (server.token of
	// the agent); several while they are replaced, none lets in every
	// agent. Servers of all roles need them.
	AgentTokens []string `mapstructure:"agent_tokens" doc:"tokens of which agents must show one (server.token of the agent); several while they are replaced, none lets in every agent. Servers of all roles need them" secret:"true"`
	// MaxStreams: agents connected to this server at a time; more are told
	// to try another one.
	MaxStreams int `mapstructure:"max_streams" doc:"agents connected to this server at a time; more are told to try another one"`
	// MaxAgents: agents known, lost ones included; new ones beyond it are
	// refused.
	MaxAgents int `mapstructure:"max_agents" doc:"agents known, lost ones included; new ones beyond it are refused"`
	// NewAgentsPerMinute: agents not known yet that may register in a
	// minute from one IPv4 address or IPv6 /64, and at once; more are told
	// to come back.
	NewAgentsPerMinute int `mapstructure:"new_agents_per_minute" doc:"agents not known yet that may register in a minute from one IPv4 address or IPv6 /64, and at once; more are told to come back"`
	// ForgetAfter: how long an agent may be lost before it is forgotten, so
	// that nodes that are gone for good are not listed for ever; 0 is
	// never.
	ForgetAfter time.Duration `mapstructure:"forget_after" doc:"how long an agent may be lost before it is forgotten, so that nodes that are gone for good are not listed for ever; 0 is never"`
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
