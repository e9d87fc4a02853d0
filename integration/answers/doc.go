// Package answers runs every query of the cookbook and of every dashboard on a
// real ClickHouse that holds the hour of integration/internal/shop, and checks
// the results.
//
//	go test ./integration/answers -update
//
// writes the results into docs/query.md.
package answers
