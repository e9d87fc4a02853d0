// Package inflight bounds the memory of a server that receives requests: a
// [Budget] decides which requests are let in, [Buffers] hold the bodies of those that
// were.
//
// A request counts as an estimate, the largest seen lately, from its start until
// its size is known, and as its size from then until it is answered. The
// estimate is what keeps a thousand clients that come back in the same second from
// being read all at once. Nothing here waits: who is not let in is to be told to
// come back.
//
// The package does not know which protocol the requests came by; pkg/rpc and
// pkg/otlphttp do. A Budget and Buffers may be used by many goroutines; nothing is
// called while the Budget's lock is held.
package inflight
