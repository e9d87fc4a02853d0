// Package traces is all that knows the wire form of OTLP traces: [Signal], the
// keys of spans, and [AddHostAddress], which lets an agent beside the senders
// add their address where a request does not say it.
//
// Signal.Check accepts exactly the byte strings that the official protobuf
// runtime unmarshals into an ExportTraceServiceRequest. The Splitter and
// AddHostAddress also accept those that the runtime refuses only because a text
// is not UTF-8, and repair the text. Fuzz tests hold all of them to that.
//
// The field numbers are those of opentelemetry/proto/trace/v1/trace.proto and
// resource/v1/resource.proto.
//
// The package does no I/O, reads no clock and starts no goroutine.
package traces
