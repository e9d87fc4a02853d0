// Package rpc receives OTLP traces over gRPC and hands each request, as the
// bytes that came, to a [Consumer]. The flow data of agents, FlowService/ExportFlows, comes the
// same way to a [FlowConsumer]: what is said of an export below holds for both, and
// both share the limits.
//
// It owns what lies between the network and those bytes: TLS, connections,
// compression, limits, the gRPC status of every answer, health and reflection. It
// does not look into a request; that is the consumer's work.
//
// What it promises to clients:
//   - Success is answered only after the consumer returned without an error.
//   - A request over Config.MaxRequestBytes is RESOURCE_EXHAUSTED without RetryInfo.
//     Uncompressed, it is refused at its length prefix; compressed, it costs at
//     most the limit.
//   - Over Config.MaxBytesInFlight or Config.MaxRequestsInFlight, or over a peer's share of them, the answer is
//     UNAVAILABLE with RetryInfo, at once, and before the request is read. Nothing waits in a queue.
//   - A request that does not arrive within Config.BodyTimeout is DEADLINE_EXCEEDED.
//   - Other failures follow the class that the consumer gave (pkg/fault).
//   - A panic in the consumer is INTERNAL for that request and nothing for the others.
//
// Memory: pkg/inflight counts what is in flight, and the sum never exceeds
// MaxBytesInFlight. gRPC collects a message before anybody sees it, so [conn] follows the frames
// of each connection, charges a message when its length has come, and refuses it there. Calls of
// other services are charged to a budget of their own. Beside the budgets there are: for
// each connection its buffers, for each call the headers and a window of what a client may send unasked (256 KiB), and
// for as many requests at a time as there are processors, each at most MaxRequestBytes, what is being
// decompressed and what is being copied.
//
// Concurrency: the consumer is called from many goroutines, one a request. No lock
// is held meanwhile.
package rpc
