// Package columns decodes OTLP spans straight from the wire into the columns
// of the table spans_local, in the format in which ClickHouse receives them.
//
// No span is built on the way: a value goes from the request's bytes to its
// column's buffer, ids as hexadecimal text, attributes as text without loss. What
// a resource says is decoded once for each distinct resource of a block; its
// spans then share dictionary keys. A warm block allocates nothing per span.
//
// The package does no I/O, reads no clock and starts no goroutine. Names and
// types of the columns are those of migrations/0001_spans.sql; a test in
// pkg/clickhouse holds the two together.
package columns
