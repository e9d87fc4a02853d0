// Package writer takes records from Kafka to ClickHouse, each of their items
// exactly once.
//
// One [Writer] stores the records of one signal: spans or flows. What follows says
// spans for short; it holds for flows too.
//
// A writer is a member of a consumer group. One goroutine follows each partition
// that it owns. What to do is decided by a delivery.Machine, which does nothing
// itself; the goroutine does what the machine decides (partition.go), and tells
// it how that ended:
//
//	resume.go   read the committed position, rebuild the deduplication window from the log
//	            before it, read the range of a standing plan again
//	fetch.go    fetch, within the memory that the writer has; ticks.go: until the next tick
//	take.go     decode records into a block, leave out copies
//	store.go    commit a plan, insert under a token, look rows up, commit the end
//	gather.go   join what partitions insert at the same moment
//	letters.go  hand what cannot be stored to the dead-letter topic
//
// # Why nothing is lost and nothing is stored twice
//
// The committed offset never passes a record that is not stored, diverted or a
// duplicate. So nothing is lost as long as the offset is a position in this very
// log: it carries the id of the topic and the leader epoch of the record before
// it, which reveal a topic that was created again and a log that lost its end.
//
// Nothing is stored twice because rows are inserted without a look only where
// they cannot be stored yet: on the first attempt for a range that comes after a
// position of ours. In every other case (an insert failed or was not answered, an
// earlier owner left a plan, the position is missing or somebody else's) the
// rows are looked up by their keys, and only the missing ones are inserted. Two
// things make the answer final:
//
//   - [Store.Settle] ends what the partition still has under way in ClickHouse.
//   - Nothing new begins: rows are sent only while the claim's lease holds, and
//     nobody else owns the partition before its end ([clickhouse.Guard]). A writer
//     that was stopped in between finds its lease expired and sends nothing.
//
// The token of the range is a second line of defence. It also lets a block be
// sent again for a short while without a look, so that the views that depend on
// the table get it too.
//
// # One INSERT for many partitions
//
// Partitions that keep up store at common ticks (ticks.go). What they store at a
// tick goes out in one INSERT for each shard (gather.go), so the number of parts
// in ClickHouse depends on writers and shards and not on partitions. The machine
// of each partition does not know: it plans its own range, gets the outcome of
// the INSERT that carried its rows, and after an error looks its own rows up.
//
//   - Rows go out under the leases of all their partitions. The id of the INSERT
//     lists the partitions, so that [Store.Settle] of any of them ends it.
//   - The plan of such a range has a version that older programs refuse: they
//     could not end the INSERT.
//   - The same block is sent again only by the gatherer, and as a whole. Once it
//     gives up, each partition looks its rows up, and they gather again.
//   - When ClickHouse refuses rows of it, each partition tries its own block
//     alone.
//
// A partition that is behind fills whole batches in a slot, and inserts them
// alone.
//
// # What is a duplicate
//
// A record is a duplicate when the partition has shown its content within the
// window (delivery.Window). This depends only on the log, so a range formed
// again has the same rows. Records that say they may have been delivered before
// are looked up instead, once for each batch: the replay of a dead letter may
// have the content of the record that was diverted.
//
// # Whose fault a refusal is
//
// When ClickHouse refuses a block for its values, the machine bisects it. A row
// goes to the dead letters only when the table refuses it, takes another row
// after that, and refuses it once more. Rows that are refused while the table
// takes nothing else wait: for the records after them, for other partitions, or
// for somebody who mends the table.
//
// # Memory
//
// Memory is bounded by Config.MemoryBytes whatever the lag: a partition that
// gets no more of it inserts what it has, and then waits. Each shard of
// ClickHouse has an equal share of it (share.go), so one that is away does not
// stop the others.
package writer
