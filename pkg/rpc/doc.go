// Package rpc is the gRPC server: it receives the requests of signals and hands
// each, as the bytes that came, to the [Consumer] of its [Sink]; and it serves
// agents, which report what they see of Kubernetes ([ResourceService]) and hold
// a stream open for their configuration ([ControlService]).
//
// It owns what lies between the network and a consumer: TLS, connections,
// compression, limits, the gRPC status of every answer, health and reflection. It
// does not look into a request; the consumer does. Who an agent is, where it
// belongs and how it is configured is decided by a [Controller].
//
// Promises about exports, the methods that take the requests of signals:
//   - Success is answered only after the consumer returned without an error.
//   - A request over Config.MaxRequestBytes is RESOURCE_EXHAUSTED without RetryInfo.
//     Uncompressed, it is refused at its length prefix; compressed, it costs at
//     most the limit.
//   - Over Config.MaxBytesInFlight or Config.MaxRequestsInFlight, or over a peer's
//     share of them, the answer is UNAVAILABLE with RetryInfo, at once, and before
//     the request is read. Nothing waits in a queue.
//   - A request that does not arrive within Config.BodyTimeout is DEADLINE_EXCEEDED.
//   - Other failures follow the class that the consumer gave (pkg/fault).
//   - A panic in the consumer is INTERNAL for that request and nothing for the others.
//
// Promises about the streams of agents:
//   - A stream that does not register within [RegistrationTimeout] is
//     DEADLINE_EXCEEDED. So is one that says nothing for [IdleTimeout] afterwards,
//     or does not take what is sent to it for [SendTimeout].
//   - A message that is too large or makes no sense is INVALID_ARGUMENT, and ends
//     the stream. Texts in heartbeats are cut and cleaned instead: a malformed error
//     text must not disconnect an agent.
//   - Beyond the number of streams allowed the answer is RESOURCE_EXHAUSTED, at once.
//   - A Session that was given out is left exactly once, when its stream ends.
//   - Only the newest configuration is sent. One that was overtaken while the agent
//     was slow is never sent.
//
// Promises about the answers of Options.Services, with Options.Answers: a message
// counts from when it is encoded until the connection has taken it, also after its
// handler has returned. The connection of a client that does not take one within
// Options.ReadTime is closed, which ends its streams.
//
// Memory: pkg/inflight counts what is in flight, and the sum never exceeds
// MaxBytesInFlight. gRPC collects a message before anybody sees it, so [conn]
// follows the frames of each connection, charges a message when its length has
// come, and refuses it there. Calls of other services are charged to a budget of
// their own. Beside the budgets there are: for each connection its buffers, for
// each call the headers and a window of what a client may send unasked (256 KiB),
// and for as many requests at a time as there are processors, each at most
// MaxRequestBytes, what is being decompressed and what is being copied.
//
// Concurrency: a consumer is called from many goroutines, one a request, and no
// lock is held meanwhile. Each stream of an agent has the goroutine that gRPC gave
// it, which alone uses the Session, and one each that receives and sends and does
// nothing else. These two end a moment after the stream, when gRPC releases them.
package rpc
