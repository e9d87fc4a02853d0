// Package delivery holds what exactly-once delivery rests on: what a Kafka
// record says about itself, what a writer commits with an offset, and which
// records are copies.
//
// A [Record] is one record of a signal's topic: the bytes of a request, and
// headers that name their content hash, agent, first receipt, and whether they
// were sent before ([Meta]).
//
// A writer commits a [Commit] as the metadata of its offset before it inserts
// the records that follow. The owner of the partition after a crash reads it
// with [ParseCommit], and knows up to where records may be stored already. It
// looks their rows up and inserts those that are missing, under the token of
// the planned [Range]. A commit also names the topic's id, because an offset
// means nothing in another log of the same name.
//
// A [Window] recognizes a record whose content the same partition has held a
// short while before: a request that a client sent again because it lost the
// acknowledgement of the first. The window depends on the log alone, so a
// writer that has read that much of the log judges each record as its
// predecessor did.
//
// A [Machine] makes the decisions of one partition: where to go on after a
// takeover (resume.go), what to fetch (fetch.go), what to announce, insert, look
// up and commit (store.go), and which rows are at fault when ClickHouse refuses
// a block (bisect.go). It receives an [Event] and the time
// ([Moment]), and returns the next [Action]. The stories in testdata tell
// each race step by step.
//
// The package does no I/O, reads no clock and starts no goroutine. The formats of
// records, commits and tokens are stored data: a change needs a new version word,
// and readers of both.
package delivery
