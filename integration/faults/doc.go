// Command faults shows the guarantees of delivery under faults: it sends spans
// and flows of which it keeps a ledger, while a random schedule kills, stops and
// cuts the programs and links between sender and table. At the end it compares
// what was acknowledged with what is stored: nothing may be lost, and nothing
// stored twice.
//
//	go run ./integration/faults -faults 200 -seed 1 -engine apache
//
// The programs are real: senders like a collector's exporter, two agents, three
// servers, three Apache Kafka brokers (or the embedded one) and ClickHouse (the
// embedded engine in its own process). Every connection between them goes over a
// proxy of this program.
//
// Several runs may go on at a time: each has loopback addresses of its own. The seed
// decides the faults and their order. It does not decide how they meet
// the programs' work, so two runs with one seed differ.
package main
