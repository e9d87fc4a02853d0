// Package spool keeps requests on disk while no server accepts them: a queue
// that is bounded in bytes and survives the end of the process at any moment.
//
// It promises:
//   - What [Spool.Append] acknowledged is on stable storage, and is handed out, oldest
//     first, until [Spool.Done] releases it.
//   - An entry that was handed out and not done is handed out again after a restart. An
//     entry that may have been handed out before has Entry.Resend set.
//   - At the bound, and when the disk is full, Append returns [ErrFull] and changes
//     nothing. It works again as soon as there is room.
//   - Damage costs the entries it touches, never more: readable entries are handed out,
//     the others are counted and logged. A tail that was being written when the process
//     ended is cut off. No file content makes Open fail.
//
// Layout: a directory of segments, numbered files of consecutive entries, each
// with its own header (frame.go), and a file that records what is done
// (cursor.go). A segment is removed when all its entries are done, so room
// comes back in steps of one 64th of the bound. The directory is locked while
// it is open.
//
// Concurrent Appends share one fsync, which one of them makes for all. The
// package starts no goroutines.
//
// Lock order: reading before mu; syncing before mu. mu is held while a segment
// is written, never while one is read or synced.
//
// # Why the files are our own
//
// Existing libraries were made for logs whose records depend on each other,
// where it is right to stop at the first unreadable one. A spool needs the
// opposite. As read in 2026: hashicorp/raft-wal verifies checksums only of the
// tail at open, so a flipped bit is handed out as data, and it needs bbolt as
// well; prometheus/tsdb/wlog deletes everything behind damage when it repairs,
// and leaves half a record in the log when a write fails, as on a full disk;
// etcd's wal chains its checksums, which loses all that follows damage;
// tidwall/wal has no checksums; cockroachdb/pebble's record package can be made
// to continue at the next block of 32 KiB, but first tries every single bit of
// a damaged one, a third of a second of CPU, and brings two megabytes of code;
// VictoriaMetrics' persistentqueue ends the process when the disk is full;
// bbolt panics on a damaged page. The code here stays small because entries are
// independent and segments are never written again after a restart.
package spool
