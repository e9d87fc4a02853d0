// Package kafka is the server's only access to Kafka: topics, a producer that returns
// after acks=all, and consumers that fetch and commit by explicit offset.
//
// segmentio/kafka-go provides connections, TLS, SASL, routing to leaders and the consumer
// group's membership requests. This package encodes and decodes record batches itself,
// because that is where the time goes (batch.go, decode.go), and the requests that name a
// topic by its id or carry leader epochs, which the library does not know (rawcall.go,
// describe.go, position.go, epoch.go).
//
// # The path of a record
//
// Producing: [Producer.Produce] queues records by partition (producer.go). A sender takes
// everything that waits for the partitions of one broker, encodes one batch per partition
// (batch.go, compress.go), sends them in one request and settles the calls (send.go).
//
// Consuming: [Group.Run] (group.go) calls a handler for each partition of a generation.
// The handler fetches through its [Claim] (claim.go, fetch.go, decode.go,
// transactions.go) and commits when it chooses to (position.go). lease.go computes how
// long the partition cannot belong to another member.
//
// # Invariants
//
//   - A partition has at most one batch in flight, so its records keep the order
//     in which they were queued.
//   - Produce returns nil only after all in-sync replicas have every record. The
//     producer is not idempotent: a batch whose response was lost is sent again
//     and may be stored twice. The content hash in the record headers makes that
//     harmless.
//   - A claim commits only what its handler asks for, and every commit carries
//     the generation: a commit that arrives after the partition moved to another
//     member has class fault.Fenced.
//   - A Claim reads and commits one log. Brokers have topic ids since Kafka 2.8,
//     fetch by id since 3.1 and commit by id since 4.1. Before 4.1 the claim
//     checks the id before each commit. Without ids it notices only a changed
//     number of partitions.
//   - If the log lost records that were read, the next fetch returns
//     ErrTruncated: in each new leader epoch the fetcher first asks the leader
//     where the epoch of the last record ends.
//   - A commit is sent once. If it gets no response, the claim commits nothing
//     more and the member rejoins the group under a new id.
//   - Every request has a deadline, because the library's connections do not
//     watch contexts.
//
// All types are safe for concurrent use, except [Claim], which belongs to its handler.
package kafka
