// Package dedup recognizes a record whose content the same partition has
// shown a short while ago: the trace of a request that a client sent again because
// the acknowledgement of the first was lost.
//
// A [Window] follows one partition, record after record. Whether a record is a
// duplicate depends on nothing but the log before it: an earlier record has
// the same content hash, lies no more than Limits.Bytes of log before it, and its
// timestamp is no more than Limits.Age away. So a writer that takes a partition
// over, and has read that much of the log, judges every record as its
// predecessor did, and forms the same blocks.
//
// The package does no I/O, reads no clock and starts no goroutine. A Window
// belongs to one goroutine.
package dedup

import (
	"time"

	"github.com/metaflowys/metaflow-server/pkg/record"
)

// MinRecordBytes is what a record counts as at least against Limits.Bytes.
// It bounds the memory of a window of tiny records: about 64 bytes for each,
// so 4 MiB for the default of 256 MiB of log.
const MinRecordBytes = 4 << 10

// Limits say how far back a Window looks.
type Limits struct {
	Age   time.Duration // between the timestamps of two records
	Bytes int64         // of values in the log between them
}

// Window remembers the content of the last records of a partition.
type Window struct {
	limits  Limits
	written int64 // bytes of log seen, each record at least MinRecordBytes
	queue   []entry
	head    int                    // of queue: what lies before it is forgotten
	base    uint64                 // sequence number of queue[0]
	latest  map[record.Hash]uint64 // sequence number of the latest record of a content
}

type entry struct {
	hash  record.Hash
	time  int64 // milliseconds since the Unix epoch, Kafka's resolution
	start int64 // value of written before the record
}

// New returns an empty window.
func New(limits Limits) *Window {
	return &Window{limits: limits, latest: make(map[record.Hash]uint64)}
}

// Duplicate reports whether the record is a duplicate of an earlier one, and
// remembers it. It must be called once for every record, in the order of offsets.
func (w *Window) Duplicate(r *record.Record) bool {
	now := entry{hash: r.ContentHash(), time: r.Time.UnixMilli(), start: w.written}
	w.forget(now.start - w.limits.Bytes)
	duplicate := false
	if seq, ok := w.latest[now.hash]; ok {
		age := now.time - w.queue[seq-w.base].time
		duplicate = max(age, -age) <= w.limits.Age.Milliseconds()
	}
	w.latest[now.hash] = w.base + uint64(len(w.queue))
	w.queue = append(w.queue, now)
	w.written += max(int64(len(r.Value)), MinRecordBytes)
	return duplicate
}

// Len is the number of records remembered.
func (w *Window) Len() int { return len(w.queue) - w.head }

// forget drops the records that start before the given byte of the log.
func (w *Window) forget(start int64) {
	for w.head < len(w.queue) && w.queue[w.head].start < start {
		if h := w.queue[w.head].hash; w.latest[h] == w.base+uint64(w.head) {
			delete(w.latest, h)
		}
		w.head++
	}
	if w.head > len(w.queue)/2 {
		n := copy(w.queue, w.queue[w.head:])
		w.queue = w.queue[:n]
		w.base += uint64(w.head)
		w.head = 0
	}
}
