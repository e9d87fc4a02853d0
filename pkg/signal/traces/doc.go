// Package traces reads OTLP trace requests as protobuf wire bytes, without
// building messages from them.
//
// [Check] accepts exactly the byte strings that the official protobuf runtime unmarshals into an
// ExportTraceServiceRequest. [Repair], [AddHostAddress] and [Splitter.Split] also accept those
// that the runtime refuses only because a text is not UTF-8, and repair the text. What has a
// broken wire, at whatever level, is refused as a whole, as the runtime does: no length in it can
// be trusted. Fuzz tests hold all of them to that. [AddHostAddress] is for an agent beside the
// senders: it adds their address where a request does not say it. [Splitter.Split]
// judges every span by its ids and times and regroups the bytes of those it accepts by
// Kafka partition. [Next] is the loop that all of them, and the decoder in
// pkg/columns, are built on.
//
// The field numbers are those of opentelemetry/proto/trace/v1/trace.proto,
// common/v1/common.proto and resource/v1/resource.proto.
//
// The package does no I/O, reads no clock and starts no goroutine.
package traces
