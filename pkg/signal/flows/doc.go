// Package flows reads flow data, ExportFlowsRequest of metaflow.agent.v1, as
// protobuf wire bytes, without building messages from them.
//
// Check accepts the byte strings that the official protobuf runtime unmarshals; Repair and
// Splitter.Split also accept those that the runtime refuses only because a text is not UTF-8, and
// repair the text. Splitter.Split additionally judges every flow and regroups the
// bytes of those it accepts by Kafka partition; a record is itself an
// ExportFlowsRequest. Head and Flow read what stands in one.
//
// The package does no I/O, reads no clock and starts no goroutine.
package flows
