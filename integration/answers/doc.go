// Package answers tests what people ask: every query of the cookbook and of
// every dashboard is put to a real ClickHouse that holds the hour of
// integration/internal/shop, and has to be answered.
//
//	go test ./integration/answers -update
//
// writes the answers into docs/query.md.
package answers
