// Package integration tests whole programs over real engines: the server as
// installed, a broker and a ClickHouse that serve their protocols on real
// ports, and as clients the OpenTelemetry SDK and the collector. Faults such as
// kill -9 or an engine that goes down happen to processes here as they do in
// production.
//
// The folders below it contain programs that measure: bench the cost of a span
// and of a query, lab the storage variants and the sizing.
package integration
