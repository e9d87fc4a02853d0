// Package writer takes spans, and flows, from Kafka to ClickHouse, each exactly once.
//
// One [Writer] stores one [Kind] of records. What follows says spans for short; it holds for flows
// too.
//
// A writer is a member of a consumer group. Every partition that it owns is
// followed by one goroutine with straight-line code (partition.go):
//
//	read the committed offset and its plan
//	rebuild the deduplication window from the log before it
//	finish the planned range, if there is one
//	for ever: fetch and decode into a block; when the block is full or old enough:
//	    commit its first offset with a plan that names its end
//	    insert it under a token made of the range
//	    hand what cannot be stored to the dead-letter topic
//	    commit its end
//
// # Why nothing is lost and nothing is stored twice
//
// The committed offset never passes a record that is not stored, diverted or a
// duplicate. A writer that dies between any two of these steps leaves a plan;
// whoever owns the partition next forms the same range again. The block is the
// same, since every decision about a record depends only on the log: the
// window (pkg/dedup) on the records before it, the accepted times on the
// record's own timestamp. ClickHouse then drops the block by its token if it had it.
// A writer that lost the partition cannot commit a plan, because the commit
// carries the generation of the group; what it still inserts is a range that was planned
// while it owned the partition, and is formed again by the new owner under the same token.
//
// A plan also names the shard of ClickHouse, because a token is known only there, and
// the time of the range's first record, because a topic that is created anew has the same
// offsets again. It says when the block was refused as a whole and is being stored in pieces
// (pieces.go); spans of such a range are looked up after a crash.
//
// Spans of records that say they may have been delivered before (take.go)
// are looked up in ClickHouse by their ids; only the missing ones are stored.
//
// Memory is bounded by Config.MemoryBytes whatever the lag: a partition that
// gets no more of it inserts what it has, and then waits. Each shard of ClickHouse has
// an equal share of it (share.go), so one that is away does not stop the others.
package writer
