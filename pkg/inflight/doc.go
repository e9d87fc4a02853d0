// Package inflight bounds the memory of a server that receives requests: a [Budget]
// decides which requests to admit, and [Buffers] hold their bodies.
//
// A request counts as an estimate, the largest recent size, until its size is known, and
// as its size from then until it is answered. The estimate keeps a thousand clients that
// reconnect in the same second from being read all at once. Nothing waits: a request that
// is not admitted is to be refused with a request to retry.
//
// The package does not depend on the protocol; pkg/rpc and pkg/otlphttp use it. Budget
// and Buffers are safe for concurrent use; the Budget calls nothing while it holds its
// lock.
package inflight
