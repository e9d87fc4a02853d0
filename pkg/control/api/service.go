package api

import (
	"context"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
)

// States of an agent.
const (
	// StateRunning: the agent has applied the configuration of its group.
	StateRunning = "running"
	// StatePending: it has not. Its group does not exist, or it has not confirmed the
	// last change yet.
	StatePending = "pending"
	// StateLost: the agent has sent no heartbeat for a minute.
	StateLost = "lost"
)

// Agent is the state of one agent.
type Agent struct {
	ID            string        `json:"id"`
	Name          string        `json:"name"`
	Host          string        `json:"host"`
	Addresses     []string      `json:"addresses"`
	Version       string        `json:"version"`
	Cluster       string        `json:"cluster"`  // empty on hosts without Kubernetes
	Group         string        `json:"group"`    // the name; if there is no such group, the one that the agent asked for
	GroupID       string        `json:"group_id"` // empty if there is no such group
	State         string        `json:"state"`
	Exceptions    []string      `json:"exceptions"` // text for operators, worst first
	Seen          time.Time     `json:"seen,omitzero"`
	Started       time.Time     `json:"started,omitzero"`
	ClockOffset   time.Duration `json:"clock_offset_ns"` // the agent's clock minus the server's
	Revision      uint64        `json:"revision"`        // of the configuration that the agent has applied
	GroupRevision uint64        `json:"group_revision"`
	Peer          string        `json:"peer"`    // the address it connects from
	Replica       string        `json:"replica"` // the server it is connected to
}

// Group is an agent group.
type Group struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Agents   int       `json:"agents"`
	Revision uint64    `json:"revision"`
	Created  time.Time `json:"created,omitzero"`
}

// Configuration is the configuration of a group.
type Configuration struct {
	GroupID   string `json:"group_id"`
	GroupName string `json:"group_name"`
	Revision  uint64 `json:"revision"`
	// YAML is the text of agentconfig.Document.YAML with the group's id.
	YAML string `json:"yaml"`
}

// UpdateOptions select how a configuration is set.
type UpdateOptions struct {
	Replace bool // remove every key that the text does not set
	Create  bool // fail with Conflict if the group already sets any key
	DryRun  bool // only report what would change
}

// Update is the effect of a configuration change.
type Update struct {
	GroupID   string `json:"group_id"`
	GroupName string `json:"group_name"`
	Revision  uint64 `json:"revision"` // after the change
	// Changes are empty if agents see no difference.
	Changes []agentconfig.Change `json:"changes"`
	DryRun  bool                 `json:"dry_run"`
}

// Service handles operators' requests. When a method returns nil, its change is stored
// for good. Errors that the caller can act on are of type *Problem: NotFound if the
// object does not exist, Conflict if it already exists or the change is not allowed,
// Invalid if the request is malformed. After Unavailable the change may or may not have
// been made, and it is safe to retry.
//
// Agents and groups are addressed by id or by name. Lists are in display order.
type Service interface {
	Agents(ctx context.Context) ([]Agent, error)
	Agent(ctx context.Context, idOrName string) (Agent, error)
	// DeleteAgent forgets an agent that is not connected. Otherwise it returns Conflict: the
	// agent would come back with its next heartbeat.
	DeleteAgent(ctx context.Context, idOrName string) error
	Groups(ctx context.Context) ([]Group, error)
	// CreateGroup creates a group. If id is empty, the service chooses one.
	CreateGroup(ctx context.Context, name, id string) (Group, error)
	DeleteGroup(ctx context.Context, idOrName string) error
	Configurations(ctx context.Context) ([]Configuration, error)
	Configuration(ctx context.Context, group string) (Configuration, error)
	// UpdateConfiguration parses text with agentconfig.Parse and sets its keys. It
	// returns Invalid if the text names another group.
	UpdateConfiguration(ctx context.Context, group string, text []byte, opts UpdateOptions) (Update, error)
	// DeleteConfiguration removes all keys, so that every key has its default.
	DeleteConfiguration(ctx context.Context, group string) (Update, error)
}
