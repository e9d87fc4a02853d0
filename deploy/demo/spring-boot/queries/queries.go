// Package queries holds the questions that the Spring Boot demo asks. Each is a file,
// for everybody's own use: curl --data-binary @graph.sql.
package queries

import _ "embed"

// What the demo answers.
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
