package rpc

import (
	"context"
	"time"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Controller manages agents. It is declared here because this package calls it.
type Controller interface {
	// Join admits an agent that connects from peer. It may wait a few seconds, at most
	// until ctx ends. The fault class of an error selects the status of the stream:
	// Fenced is ALREADY_EXISTS, Rejected INVALID_ARGUMENT, Overload RESOURCE_EXHAUSTED,
	// Retryable UNAVAILABLE. The agent receives the error's text.
	Join(ctx context.Context, r *agentv1.Registration, peer string) (Session, error)
	// Check returns the group that Join would admit an agent to, empty if there is none
	// of that name, or Join's error. It admits nobody.
	Check(ctx context.Context, r *agentv1.Registration) (*agentv1.CheckResponse, error)
}

// Session is a connected agent. No method blocks.
type Session interface {
	// Heartbeat records the agent's heartbeat, which the session then owns, and returns
	// the server's clock.
	Heartbeat(h *agentv1.Heartbeat) time.Time
	// Configuration returns the agent's configuration, or nil if there is nothing to
	// send. The result must not be changed.
	Configuration() *agentv1.Configuration
	// Changed receives a value after Configuration may have changed.
	Changed() <-chan struct{}
	// Ended is closed when the stream must end. Err returns the reason, classified like
	// Join's errors.
	Ended() <-chan struct{}
	Err() error
	// Leave reports that the stream has ended.
	Leave()
}
