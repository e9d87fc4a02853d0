// Package otlp reads OTLP trace requests as protobuf wire bytes, without
// building messages from them.
//
// [Check], [AddHostAddress] and [Splitter.Split] accept exactly the byte strings
// that the official protobuf runtime unmarshals into an ExportTraceServiceRequest
// (fuzz tests hold them to it). [AddHostAddress] is for an agent beside the
// senders: it adds their address where a request does not say it. [Splitter.Split]
// judges every span by its ids and times and regroups the bytes of those it accepts by
// Kafka partition. [Next] is the loop that all of them, and the decoder in
// pkg/columns, are built on.
//
// The field numbers are those of opentelemetry/proto/trace/v1/trace.proto,
// common/v1/common.proto and resource/v1/resource.proto.
//
// The package does no I/O, reads no clock and starts no goroutine.
package otlp
