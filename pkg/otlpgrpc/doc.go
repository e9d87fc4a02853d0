// Package otlpgrpc receives OTLP traces over gRPC and hands each request, as the
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
//   - Over Config.MaxBytesInFlight or Config.MaxRequestsInFlight the answer is
//     UNAVAILABLE with RetryInfo, at once, and where possible before the request
//     is read. Nothing waits in a queue.
//   - Other failures follow the class that the consumer gave (pkg/fault).
//   - A panic in the consumer is INTERNAL for that request and nothing for the others.
//
// Memory: pkg/inflight counts what is in flight, and the sum never exceeds
// MaxBytesInFlight. Decompression runs in as many requests at a time as there are
// processors, each holding at most MaxRequestBytes.
//
// Concurrency: the consumer is called from many goroutines, one a request. No lock
// is held meanwhile.
package otlpgrpc
