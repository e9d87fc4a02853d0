// Package dns follows DNS over UDP: it decodes packets of port 53, matches
// answers with questions, and remembers which name an address was resolved
// from.
//
// The caller passes the packets of each network namespace to a [Table], in the
// order in which the kernel saw them. The Table adds the exchanges up in a
// [Record] per namespace, client, resolver, name and interval. It reports
// exchanges that were slow, failed or had no answer in records of their own,
// and at once.
//
// # What is matched
//
// An answer belongs to the question with the same addresses, ports, id, name
// and type. A client that repeats a question within the memory of the Table
// continues its resolution: the answer's time counts from the first question.
// A repetition has either the same id and port, or it comes at least a second
// later from the same address for the same name, type and resolver.
//
// A question without an answer after 5 s is unanswered. An answer that comes
// later still counts, with its time.
//
// NXDOMAIN is a failure, except for names that a search list made: when the
// same client resolved the name without its last labels at about the same time,
// the client tried them on the way.
//
// The package does no I/O, reads no clock and starts no goroutine. A Table
// belongs to one goroutine at a time. Everything is bounded; Stats counts what
// did not fit.
package dns
