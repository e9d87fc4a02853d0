// Package otlphttp receives OTLP traces over HTTP/1.1 and HTTP/2, with TLS and without,
// and hands each request, as protobuf bytes, to a [Consumer].
//
// It owns what lies between the network and those bytes: connections, the form
// of requests (paths, content types, encodings), limits, and the status and body of
// every answer. Protobuf it does not look into: that is the consumer's work. JSON it
// turns into protobuf.
//
// What it promises to clients, besides the OTLP specification's rules:
//   - Success is answered only after the consumer returned without an error.
//   - Whatever is answered with 4xx or 5xx has a google.rpc.Status as its body, in the
//     form of the request, whose message says what is wrong and what would be right.
//     400, 405, 408, 413 and 415 will not be better when the same is sent again;
//     503 carries Retry-After. (What is not HTTP at all is answered by net/http.)
//   - A request over Config.MaxRequestBytes, before or after decompression, is 413. When
//     its headers say so, it is answered before its body is read.
//   - Over Config.MaxBytesInFlight or Config.MaxRequestsInFlight the answer is 503 at
//     once. Nothing waits in a queue.
//   - One address gets at most Config.PeerShare of what others leave free of these bounds, and
//     Config.MaxConnectionsPerPeer connections.
//   - Who sends too slowly is answered 408. Who sends nothing loses the connection
//     when others need it: of more than Config.MaxConnections, one without a request is closed,
//     of the address that has the most.
//   - Web pages may send from the origins of Config.CORS, and from no other.
//   - A panic in the consumer is 500 for that request and nothing for the others.
//
// Memory: pkg/inflight counts what is in flight, and the sum never exceeds
// MaxBytesInFlight. A body is read whole, into a buffer that grows with what has really
// come, before it is decompressed, so that who sends slowly holds no decoder.
// Decompression runs in as many requests at a time as there are processors. JSON
// is counted at what its messages take in memory, several times its size.
//
// Concurrency: the consumer is called from many goroutines, one a request. Locks
// are held for a few instructions, never while anything is called.
package otlphttp
