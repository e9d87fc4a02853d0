// Package kafka is the only door to Kafka: topics, a producer that answers
// after acks=all, and consumers that fetch and commit by explicit offset.
//
// It stands on segmentio/kafka-go for connections, TLS, SASL, routing to
// leaders and the consumer group's membership. Record batches are encoded and decoded here,
// because that is where the time goes: see batch.go and decode.go.
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
// decode.go) and commits when it sees fit.
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
//   - Every request has a deadline. The library's connections do not watch contexts
//     otherwise.
//
// All types may be used by several goroutines at once, except [Claim], which
// belongs to its handler.
package kafka
