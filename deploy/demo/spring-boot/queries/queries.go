// Package queries holds the queries of the Spring Boot demo. Each is a file
// that can be run by itself: curl --data-binary @graph.sql.
package queries

import _ "embed"

// Queries that the demo runs.
var (
	//go:embed graph.sql
	Graph string
	//go:embed waterfall.sql
	Waterfall string
	//go:embed slow-sql.sql
	SlowSQL string
	//go:embed errors.sql
	Errors string
)
