// Package verify checks a running pipeline from the outside: it sends spans of
// its own, as a collector would, asks ClickHouse for them, and counts which are
// stored, lost, stored twice, damaged or late.
//
// A [Verifier] sends with a [Sender] and reads with a [Store]; both are declared
// here and know nothing of each other. The [ledger] between them is pure: it
// decides what to look up next and what a lookup proves. A span is lost only if
// ClickHouse answered after the deadline and did not have it, so an outage of
// ClickHouse makes spans unverified, not lost.
package verify
