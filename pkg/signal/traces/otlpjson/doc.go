// Package otlpjson turns a trace request in OTLP's JSON into protobuf.
//
// It follows proto3's JSON mapping with OTLP's changes: ids are hexadecimal, enums may be numbers, unknown
// fields are ignored, names may be in lowerCamelCase or as in the .proto files. null means that a field is
// absent. Integers may be numbers or strings, also with a fraction or exponent as long as they are whole (42.0,
// 4.2e1); doubles may be "NaN", "Infinity" and "-Infinity"; bytes may be in either alphabet of base64, padded or not.
//
// One bad value costs only itself: in a span it costs the span, in a resource or scope the attribute or field that
// has it. [Problems] says which. What is no JSON, or has no list where a request has its lists of
// resources, scopes and spans, is refused as a whole.
//
// Time and memory are proportional to the bytes: the protobuf is written once without the lengths of messages,
// which are known only at their ends, and copied once with them. The package does no I/O, reads no clock and starts
// no goroutine.
package otlpjson
