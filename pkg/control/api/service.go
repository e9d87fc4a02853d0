package api

import (
	"context"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
)

// States of an agent.
const (
	// StateRunning is an agent that has the configuration of its group.
	StateRunning = "running"
	// StatePending is an agent that has not: its group does not exist, or it did not
	// confirm the last change yet.
	StatePending = "pending"
	// StateLost is an agent that has not been heard of for a minute.
	StateLost = "lost"
)

// Agent is what is known about one.
type Agent struct {
	ID            string        `json:"id"`
	Name          string        `json:"name"`
	Host          string        `json:"host"`
	Addresses     []string      `json:"addresses"`
	Version       string        `json:"version"`
	Cluster       string        `json:"cluster"`  // empty on plain hosts
	Group         string        `json:"group"`    // the name; what the agent asked for when there is no such group
	GroupID       string        `json:"group_id"` // empty when there is no such group
	State         string        `json:"state"`
	Exceptions    []string      `json:"exceptions"` // sentences for operators, the worst first
	Seen          time.Time     `json:"seen,omitzero"`
	Started       time.Time     `json:"started,omitzero"`
	ClockOffset   time.Duration `json:"clock_offset_ns"` // the agent's clock minus the server's
	Revision      uint64        `json:"revision"`        // of the configuration in force at the agent
	GroupRevision uint64        `json:"group_revision"`
	Peer          string        `json:"peer"`    // where it connects from
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

// Configuration is what a group sets.
type Configuration struct {
	GroupID   string `json:"group_id"`
	GroupName string `json:"group_name"`
	Revision  uint64 `json:"revision"`
	// YAML is the text of agentconfig.Document.YAML with the group's id.
	YAML string `json:"yaml"`
}

// UpdateOptions say how a configuration is set.
type UpdateOptions struct {
	Replace bool // take away every key that the text does not set
	Create  bool // a Conflict when the group sets any key already
	DryRun  bool // change nothing, only tell what would change
}

// Update is what a change of a configuration did.
type Update struct {
	GroupID   string `json:"group_id"`
	GroupName string `json:"group_name"`
	Revision  uint64 `json:"revision"` // after the change
	// Changes are empty when agents see no difference.
	Changes []agentconfig.Change `json:"changes"`
	DryRun  bool                 `json:"dry_run"`
}

// Service answers what operators ask. A change is stored for good when its method
// returns nil. Errors that the caller can do something about are of type *Problem: what
// does not exist is NotFound, what exists already or may not be done is Conflict, what
// cannot be understood is Invalid. Unavailable leaves open whether a change was made, and
// it is safe to repeat.
//
// Agents and groups are named by id or by name. Lists are in the order in which they are
// shown.
type Service interface {
	Agents(ctx context.Context) ([]Agent, error)
	Agent(ctx context.Context, idOrName string) (Agent, error)
	// DeleteAgent forgets an agent. One that is alive comes back with its next heartbeat.
	DeleteAgent(ctx context.Context, idOrName string) error
	Groups(ctx context.Context) ([]Group, error)
	// CreateGroup makes a group; with an empty id, the service chooses one.
	CreateGroup(ctx context.Context, name, id string) (Group, error)
	DeleteGroup(ctx context.Context, idOrName string) error
	Configurations(ctx context.Context) ([]Configuration, error)
	Configuration(ctx context.Context, group string) (Configuration, error)
	// UpdateConfiguration reads text with agentconfig.Parse and sets its keys. A text that
	// names another group than the one it is to be set for is Invalid.
	UpdateConfiguration(ctx context.Context, group string, text []byte, opts UpdateOptions) (Update, error)
	// DeleteConfiguration sets no key, so that all have their defaults.
	DeleteConfiguration(ctx context.Context, group string) (Update, error)
}
