package control

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
)

// Config is what an operator may set. Start from DefaultConfig.
type Config struct {
	// Token: token required from metaflow-ctl (--token); if empty,
	// everybody who reaches the HTTP port may read, and changes are
	// accepted only over loopback.
	Token string `mapstructure:"token" doc:"token required from metaflow-ctl (--token); if empty, everybody who reaches the HTTP port may read, and changes are accepted only over loopback" secret:"true"`
	// TokenFile: file with tokens that count as control.token, one a line;
	// read again within seconds when it changes.
	TokenFile string `mapstructure:"token_file" doc:"file with tokens that count as control.token, one a line; read again within seconds when it changes"`
	// ReadTokens: tokens of metaflow-ctl that may read and change nothing;
	// they need control.token or control.token_file.
	ReadTokens []string `mapstructure:"read_tokens" doc:"tokens of metaflow-ctl that may read and change nothing; they need control.token or control.token_file" secret:"true"`
	// ReadTokensFile: file with further read_tokens, one a line; read again
	// when it changes.
	ReadTokensFile string `mapstructure:"read_tokens_file" doc:"file with further read_tokens, one a line; read again when it changes"`
	// AllowAnonymousWrites: without a token, accept changes from everybody
	// who reaches the HTTP port: they can open any port on every agent.
	AllowAnonymousWrites bool `mapstructure:"allow_anonymous_writes" doc:"without a token, accept changes from everybody who reaches the HTTP port: they can open any port on every agent"`
	// AgentTokens: accepted agent tokens (server.token of the agent), good
	// for every agent group; list several during a rotation. Without tokens
	// every agent is admitted. Servers of all roles need them.
	AgentTokens []string `mapstructure:"agent_tokens" doc:"accepted agent tokens (server.token of the agent), good for every agent group; list several during a rotation. Without tokens every agent is admitted. Servers of all roles need them" secret:"true"`
	// AgentTokensFile: file with further agent_tokens, one a line; read
	// again when it changes. Agents of a removed token are disconnected
	// within seconds.
	AgentTokensFile string `mapstructure:"agent_tokens_file" doc:"file with further agent_tokens, one a line; read again when it changes. Agents of a removed token are disconnected within seconds"`
	// GroupTokens: accepted agent tokens of one agent group each, as
	// GROUP:TOKEN with the group's id or name. An agent with such a token
	// may join no other group.
	GroupTokens []string `mapstructure:"group_tokens" doc:"accepted agent tokens of one agent group each, as GROUP:TOKEN with the group's id or name. An agent with such a token may join no other group" secret:"true"`
	// GroupTokensFile: file with further group_tokens, one a line; read
	// again when it changes.
	GroupTokensFile string `mapstructure:"group_tokens_file" doc:"file with further group_tokens, one a line; read again when it changes"`
	// CertificateGroups: a client certificate admits an agent to the agent
	// groups that its subject names as organizations (O), in place of a
	// token, and to no other; needs grpc.tls.client_ca_file.
	CertificateGroups bool `mapstructure:"certificate_groups" doc:"a client certificate admits an agent to the agent groups that its subject names as organizations (O), in place of a token, and to no other; needs grpc.tls.client_ca_file"`
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

// operators returns where the tokens of metaflow-ctl come from.
func (c Config) operators() []tokens.List {
	write := tokens.List{Key: "token", File: c.TokenFile, Label: api.RoleWrite}
	if c.Token != "" {
		write.Values = []string{c.Token}
	}
	return []tokens.List{write, {Key: "read_tokens", Values: c.ReadTokens, File: c.ReadTokensFile, Label: api.RoleRead}}
}

// agents returns where the tokens of agents come from.
func (c Config) agents() []tokens.List {
	return []tokens.List{
		{Key: "agent_tokens", Values: c.AgentTokens, File: c.AgentTokensFile},
		{Key: "group_tokens", Values: c.GroupTokens, File: c.GroupTokensFile, Grouped: true},
	}
}

// OperatorTokens reads the tokens of metaflow-ctl. It returns nil if there are none. A
// nil logger discards.
func (c Config) OperatorTokens(log *slog.Logger) (*tokens.Set, error) {
	return tokens.Open(log, named(c.operators())...)
}

// TokensOfAgents reads the tokens of agents, as OperatorTokens does.
func (c Config) TokensOfAgents(log *slog.Logger) (*tokens.Set, error) {
	return tokens.Open(log, named(c.agents())...)
}

// AgentsNeedTokens reports whether tokens of agents are configured.
func (c Config) AgentsNeedTokens() bool {
	return len(c.AgentTokens) > 0 || c.AgentTokensFile != "" || len(c.GroupTokens) > 0 || c.GroupTokensFile != ""
}

// named makes the lists' keys those of the file.
func named(lists []tokens.List) []tokens.List {
	for i := range lists {
		lists[i].Key = "control." + lists[i].Key
	}
	return lists
}

// leastForgetting is well above the duration of any restart of Kafka or of all servers.
const leastForgetting = time.Hour

// Validate reports every problem at once, each by its key.
func (c Config) Validate() error {
	var errs []error
	for _, l := range append(c.operators(), c.agents()...) {
		errs = append(errs, l.Validate())
	}
	if len(c.ReadTokens) > 0 || c.ReadTokensFile != "" {
		if c.Token == "" && c.TokenFile == "" {
			errs = append(errs, errors.New("read_tokens: they need token or token_file, or nobody could make changes"))
		}
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
	if c.AllowAnonymousWrites && (c.Token != "" || c.TokenFile != "") {
		errs = append(errs, errors.New("allow_anonymous_writes: true, but a token is set, which every request needs"))
	}
	return errors.Join(errs...)
}
