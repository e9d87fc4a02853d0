// Package kafka is the only door to Kafka: topics, a producer that answers
// after acks=all, and consumers that fetch and commit by explicit offset.
//
// It stands on segmentio/kafka-go for connections, TLS, SASL, routing to
// leaders and the consumer group's membership. Record batches are encoded and decoded here,
// because that is where the time goes: see batch.go and decode.go. So are the requests that
// name a topic by its id or carry leader epochs, which the library does not know: see rawcall.go,
// describe.go, position.go and epoch.go.
//
// # The way of a record
//
// Producing: [Producer.Produce] queues records by partition (producer.go); a
// sender takes everything that waits for the partitions of one broker, encodes one
// batch per partition (batch.go, compress.go), sends them in one request and
// tells the callers (send.go).
//
// Consuming: [Group.Run] (group.go) calls a handler for each partition of a
// generation; the handler fetches through its [Claim] (claim.go, fetch.go,
// decode.go, transactions.go) and commits when it sees fit (position.go). How long the partition
// is its own says lease.go.
//
// # Invariants
//
//   - A partition has at most one batch in flight, so its records keep the order
//     in which they were queued.
//   - Produce returns nil only after all in-sync replicas have every record. There is no
//     idempotent producer: a batch whose answer was lost is sent again and may be
//     stored twice. The content hash in its headers is what makes that harmless.
//   - Nothing is committed that the caller did not ask for, and a commit carries the
//     generation: one that comes after the partition was given to another member has class
//     fault.Fenced.
//   - A Claim reads and commits one log. Brokers know logs by their topic's id since Kafka 2.8, fetch
//     by it since 3.1 and take commits by it since 4.1. Before that, the id is asked for before each commit;
//     without ids, only another number of partitions is noticed.
//   - What was read stays in the log, or the next fetch is ErrTruncated: in each new leader
//     epoch the leader is asked first where the epoch of the last record ends.
//   - A commit is sent once. After one without an answer the claim commits nothing more,
//     and the member joins the group under another id.
//   - Every request has a deadline. The library's connections do not watch contexts
//     otherwise.
//
// All types may be used by several goroutines at once, except [Claim], which
// belongs to its handler.
package kafka
