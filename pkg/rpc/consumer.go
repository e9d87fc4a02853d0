package rpc

import (
	"context"

	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// Sink is where the requests of a signal go.
type Sink struct {
	Signal   *signal.Signal
	Consumer Consumer
}

// Consumer takes the requests of one signal. It is declared here because this
// package is its caller.
//
// Consume returns nil only when the items are safe. It is called from many
// goroutines, must return soon after ctx ends, and must not keep req.Body. The
// class of its error (pkg/fault) decides the answer: Rejected is
// INVALID_ARGUMENT, all others are UNAVAILABLE with RetryInfo. The error's text
// goes to the client. An error with a method NothingStored() that returns true
// spares agents the mark of a request that may have been stored.
type Consumer interface {
	Consume(ctx context.Context, req signal.Request) (signal.Result, error)
}
