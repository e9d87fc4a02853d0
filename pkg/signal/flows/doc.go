// Package flows is all that knows the wire form of flow data, which is
// ExportFlowsRequest of metaflow.agent.v1: [Signal], the keys of flows, what
// reads a request, and what an agent writes one with.
//
// Signal.Check accepts the byte strings that the official protobuf runtime
// unmarshals. The Splitter also accepts those that the runtime refuses only
// because a text is not UTF-8, and repairs the text.
//
// The package does no I/O, reads no clock and starts no goroutine.
package flows
