// Package integration tests whole programs over real engines: the server as it
// is installed, a broker and a ClickHouse that speak their protocols on real ports, clients that
// are the OpenTelemetry SDK and the collector. What happens to a process here (kill -9,
// an engine that goes away) is what happens to it in production.
//
// The folders below it are programs that measure: bench the cost of a
// span and of an answer, lab the ways to store a span and what a rate of them needs.
package integration
