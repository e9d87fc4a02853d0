// Package columns decodes spans and flows from the wire straight into the columns of
// their tables, in the format in which ClickHouse receives them.
//
// It builds no span objects: a value goes from the request's bytes to its column's
// buffer, ids as hexadecimal text, attributes as lossless text. A resource is decoded
// once for a block and those after it in its memory; spans share dictionary keys. A warm
// block allocates nothing per span.
//
// A column is declared in one line, together with the source of its values: NewSpans,
// NewFlows, NewPods, NewServices and NewAgents are the lists. A block keeps the row to
// append next in variables, and putRow appends one value to every declared column.
//
// The package does no I/O, reads no clock and starts no goroutine. The names and types of
// the columns are those of the tables in migrations; a test in pkg/clickhouse compares
// them.
package columns
