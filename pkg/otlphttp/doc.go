// Package otlphttp receives OTLP traces over HTTP/1.1 and HTTP/2, with or without TLS,
// and passes each request as protobuf bytes to a [Consumer].
//
// It owns everything between the network and those bytes: connections, the form of
// requests (paths, content types, encodings), limits, and the status and body of every
// response. It does not look into protobuf, which is the consumer's task. It converts
// JSON to protobuf.
//
// Beyond the OTLP specification it guarantees to clients:
//   - A success response is sent only after the consumer returned without error.
//   - Every 4xx and 5xx response has a google.rpc.Status body in the form of the
//     request, whose message names the problem and the remedy. Retrying the same
//     request after 400, 405, 408, 413 or 415 does not help; 503 has Retry-After.
//     (net/http answers what is not HTTP at all.)
//   - A request over Config.MaxRequestBytes, before or after decompression, gets
//     413. If its headers announce the size, the response precedes the body.
//   - Over Config.MaxBytesInFlight or Config.MaxRequestsInFlight the response is
//     503 at once. No request waits in a queue.
//   - One address gets at most Config.PeerShare of what others leave free of
//     these bounds, and Config.MaxConnectionsPerPeer connections.
//   - A client that sends too slowly gets 408. An idle client loses its
//     connection when others need it: above Config.MaxConnections, an idle
//     connection of the address with the most connections is closed.
//   - Web pages may send from the origins of Config.CORS, and from no other.
//   - A panic in the consumer is 500 for its request and does not affect others.
//
// Memory: pkg/inflight counts the bytes in flight, whose sum never exceeds
// MaxBytesInFlight. A body is read completely, into a buffer that grows with the received
// bytes, before it is decompressed, so a slow client holds no decoder. At most one
// request per processor decompresses at a time. JSON counts as the memory that its
// messages take, several times its size.
//
// Concurrency: each request calls the consumer from its own goroutine. Locks are held for
// a few instructions and never during calls.
package otlphttp
