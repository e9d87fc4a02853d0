// Package query answers questions about stored traces for every interface that people use:
// Tempo's and Jaeger's, MCP and the page of our own, each in a package below this one.
//
// A [Reader] turns a question into bounded SQL with parameters and the rows into OTLP. What
// the network did to a span comes from the view traces_network. The Reader never writes, and
// relies on its [DB] for limits of time, memory and rows.
//
// Attributes are stored as text. [Value] gives those of the semantic conventions that are
// numbers, truth values or lists their type back; all others are strings.
//
// A Reader is safe for concurrent use and starts goroutines only within a call.
package query

import "context"

// DB runs read-only queries. pkg/clickhouse has one.
type DB interface {
	// Query calls row for each row of the result, with $1, $2 and so on for args. It
	// returns soon after ctx has ended.
	Query(ctx context.Context, query string, row func(scan func(...any) error) error, args ...any) error
	// TooLarge reports whether an error of Query says that the result had more rows or bytes
	// than it may.
	TooLarge(err error) bool
}
