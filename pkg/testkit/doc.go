// Package testkit holds what tests and measurements share: generators of
// requests, engines to test on, and fake servers. No program imports it.
package testkit
