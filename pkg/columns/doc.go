// Package columns decodes spans and flows straight from the wire into the
// columns of their tables, in the format in which ClickHouse receives them.
//
// No span is built on the way: a value goes from the request's bytes to its
// column's buffer, ids as hexadecimal text, attributes as text without loss. A
// resource is decoded once for each block; its spans then share dictionary
// keys. A warm block allocates nothing per span.
//
// A column is declared in one line, beside what it takes its values from:
// NewSpans, NewFlows, NewPods, NewServices and NewAgents are the lists. A block
// keeps the row that is appended next in variables of its own, and putRow
// appends one value to every declared column.
//
// The package does no I/O, reads no clock and starts no goroutine. Names and
// types of the columns are those of the tables in migrations; a test in
// pkg/clickhouse holds the two together.
package columns
