package rpc

import (
	"context"
	"net/netip"
	"time"
)

// Request is one ExportTraceServiceRequest, or ExportFlowsRequest, as it came.
type Request struct {
	// Body holds the protobuf bytes, decompressed and not checked. It belongs to
	// the consumer until its method returns, and to other requests afterwards.
	Body []byte
	// Agent is the id that the client gave in its metadata, empty when none.
	Agent string
	// Resend says that the client may have delivered the same before.
	Resend bool
	// Received is when the client says that it took the request from its own sender, zero when it
	// does not say.
	Received time.Time
	// Peer is the client's address, invalid when it is not an IP's.
	Peer netip.AddrPort
}

// Result is what the consumer did with a request that it accepted. The zero
// value is full success.
type Result struct {
	Rejected int64  // spans or flows that were not stored and must not be sent again
	Message  string // why, or a warning when Rejected is zero
}

// Consumer takes requests. It is declared here because this package is its
// caller.
//
// ConsumeTraces returns nil only when the spans are safe. It is called from many
// goroutines, must return soon after ctx ends, and must not keep req.Body. The class
// of its error (pkg/fault) decides the answer: Rejected is INVALID_ARGUMENT, all
// others are UNAVAILABLE with RetryInfo. The error's text goes to the client.
type Consumer interface {
	ConsumeTraces(ctx context.Context, req Request) (Result, error)
}

// FlowConsumer takes the flow data of agents. Its contract is that of Consumer.
type FlowConsumer interface {
	ConsumeFlows(ctx context.Context, req Request) (Result, error)
}
