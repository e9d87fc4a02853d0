// Package testkit holds what tests and measurements share: generators of
// requests, engines to test on, and fake servers. Of the programs, only the demos
// import it.
package testkit
