// Package jaeger serves Jaeger's remote storage API, version 2, so that a Jaeger shows the
// stored traces: TraceReader and DependencyReader of schema/jaeger, and the capabilities.
// It writes nothing: a Jaeger sends what it receives to the server's own OTLP port.
//
// Spans of calls carry what the network did to them as attributes, and a warning where it
// harmed them, which Jaeger shows without knowing either.
package jaeger
