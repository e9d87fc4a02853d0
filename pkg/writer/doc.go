// Package writer takes spans, and flows, from Kafka to ClickHouse, each exactly once.
//
// One [Writer] stores one [Kind] of records. What follows says spans for short; it holds for flows
// too.
//
// A writer is a member of a consumer group. One goroutine follows each partition that it
// owns, with straight-line code (partition.go):
//
//	read the committed position, and judge what it says of the log (resume.go)
//	rebuild the deduplication window from the log before it
//	finish the planned range, if there is one
//	for ever: fetch and decode into a block; when the block is full or old enough:
//	    commit its first offset with a plan that names its end
//	    insert it under a token made of the range (store.go)
//	    hand what cannot be stored to the dead-letter topic
//	    commit its end
//
// # Why nothing is lost and nothing is stored twice
//
// The committed offset never passes a record that is not stored, diverted or a duplicate. So
// nothing is lost as long as the offset is a position in this very log: it carries the id of
// the topic and the leader epoch of the record before it, which tell a topic that was
// created anew and a log that lost its end.
//
// Nothing is stored twice because rows are inserted without a look only where they cannot be
// stored yet: on the first attempt for a range that comes after a position of ours. In every
// other case (an insert failed or was not answered, an earlier owner left a plan, the position is
// missing or somebody else's) the rows are looked up by their keys, and only the missing ones
// are inserted. Two things make the answer final:
//
//   - [Store.Settle] ends what the partition still has under way in ClickHouse.
//   - Nothing new begins: rows are sent only while the claim's lease holds, and nobody else
//     owns the partition before its end ([clickhouse.Guard]). A writer that was stopped in
//     between finds its lease expired and sends nothing.
//
// The token of the range is a second line of defence, and lets a block be sent again blindly for
// a short while, so that the views that depend on the table get it too (repeatFor).
//
// # What is a duplicate
//
// A record whose content the partition has shown within the window (pkg/delivery) is one. This
// decision depends only on the log, so a range formed again has the same rows. Records that say
// they may have been delivered before are looked up instead, once for each batch (take.go): the
// replay of a dead letter may have the content of the record that was diverted.
//
// # Whose fault a refusal is
//
// When ClickHouse refuses a block for its values, pieces.go bisects it. A row goes to the
// dead letters only when the table refuses it, takes another row after that, and refuses it once
// more. Rows that are refused while the table takes nothing else wait: for the records after
// them, for other partitions, or for somebody who mends the table.
//
// # Memory
//
// Memory is bounded by Config.MemoryBytes whatever the lag: a partition that
// gets no more of it inserts what it has, and then waits. Each shard of ClickHouse has
// an equal share of it (share.go), so one that is away does not stop the others.
package writer
