// Package otlp reads OTLP trace requests as protobuf wire bytes, without
// building messages from them.
//
// [Check] and [Splitter.Split] accept exactly the byte strings that the official
// protobuf runtime unmarshals into an ExportTraceServiceRequest (a fuzz test
// holds them to it). [Splitter.Split] additionally judges every span by its ids and
// times and regroups the bytes of those it accepts by Kafka partition.
// [Next] is the loop that both, and the decoder in pkg/columns, are built on.
//
// The field numbers are those of opentelemetry/proto/trace/v1/trace.proto,
// common/v1/common.proto and resource/v1/resource.proto.
//
// The package does no I/O, reads no clock and starts no goroutine.
package otlp
