package rpc

import (
	"context"
	"time"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Controller decides about agents. It is declared here because this package is
// its caller.
type Controller interface {
	// Join takes an agent in that connects from peer. It may wait a few seconds, at most until
	// ctx ends. The class of an error (pkg/fault) decides the status of the stream:
	// Fenced is ALREADY_EXISTS, Rejected INVALID_ARGUMENT, Overload RESOURCE_EXHAUSTED,
	// Retryable UNAVAILABLE. The error's text goes to the agent.
	Join(ctx context.Context, r *agentv1.Registration, peer string) (Session, error)
}

// Session is an agent that is connected. No method blocks.
type Session interface {
	// Heartbeat takes what the agent says of itself, which becomes the session's, and
	// returns the server's clock.
	Heartbeat(h *agentv1.Heartbeat) time.Time
	// Configuration returns what the agent is to have; nil when there is nothing to tell it.
	// The result must not be changed.
	Configuration() *agentv1.Configuration
	// Changed receives a value after Configuration may have another result.
	Changed() <-chan struct{}
	// Ended is closed when the stream has to end, and Err says why, with a class as
	// Join's errors have.
	Ended() <-chan struct{}
	Err() error
	// Leave says that the stream has ended.
	Leave()
}
