// Package spool keeps requests on disk while nobody can take them: a queue that
// is bounded in bytes and survives the end of the process at any moment.
//
// It promises:
//   - What [Spool.Append] acknowledged has been written to stable storage, and is handed
//     out, oldest first, until [Spool.Done] says that it need not be kept.
//   - What was handed out and not done is handed out again after a restart. An entry
//     that may have been handed out before says so: Entry.Resend is true.
//   - At the bound, and when the disk is full, Append returns [ErrFull] and changes
//     nothing. It works again as soon as there is room.
//   - Damage costs the entries it touches, never more: what can still be read is handed
//     out, the rest is counted and logged. A tail that was being written when the
//     process ended is cut off. Nothing that stands in a file stops Open.
//
// Layout: a directory of segments, numbered files of entries one after the other,
// each with a header of its own (frame.go), and a file that remembers what is done
// (cursor.go). A segment is removed when all of it is done, so room comes back in
// steps of one 64th of the bound. The directory is locked while it is open.
//
// Appends that arrive together share one fsync: one of those that wait does it for
// all. There are no goroutines in this package.
//
// Locks: reading before mu; syncing before mu. mu is held while a segment is written, never
// while one is read or synced.
//
// # Why the files are our own
//
// The libraries that exist were made for logs whose records depend on each
// other, where it is right to stop at the first that cannot be read. A spool wants the
// opposite. As read in 2026: hashicorp/raft-wal verifies checksums only of the
// tail at open, so a flipped bit is handed out as data, and needs bbolt beside;
// prometheus/tsdb/wlog deletes everything behind damage when it repairs, and leaves
// half a record in the log when a write fails, as on a full disk; etcd's wal chains its checksums,
// which loses all that follows; tidwall/wal has none; cockroachdb/pebble's record
// package could be made to go on at the next block of 32 KiB, but tries every single
// bit of a damaged one first, a third of a second of CPU, and brings two megabytes of code
// with it; VictoriaMetrics' persistentqueue ends the process when the disk
// is full; bbolt panics on a damaged page. What remains to do here is
// small, because entries are independent and segments are never written again after a
// restart.
package spool
