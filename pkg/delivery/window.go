package delivery

import "time"

// MinRecordBytes is what a record counts as at least against WindowLimits.Bytes.
// It bounds the memory of a window of tiny records: about 64 bytes for each,
// so 4 MiB for the default of 256 MiB of log.
const MinRecordBytes = 4 << 10

// WindowLimits say how far back a Window looks.
type WindowLimits struct {
	Age   time.Duration // between the timestamps of two records
	Bytes int64         // of values in the log between them
}

// Reach returns an offset before which no record can be in a window that ends at
// the given offset: more records than come after it do not fit. It allows for as
// many offsets without a record.
func (l WindowLimits) Reach(end int64) int64 { return end - 2*(l.Bytes/MinRecordBytes+1) }

// Window remembers the content of the last records of a partition.
type Window struct {
	limits  WindowLimits
	written int64 // bytes of log seen, each record at least MinRecordBytes
	queue   []entry
	head    int             // of queue: what lies before it is forgotten
	base    uint64          // sequence number of queue[0]
	latest  map[Hash]uint64 // sequence number of the latest record of a content
}

type entry struct {
	hash  Hash
	time  int64 // milliseconds since the Unix epoch, Kafka's resolution
	start int64 // value of written before the record
}

// NewWindow returns an empty window.
func NewWindow(limits WindowLimits) *Window {
	return &Window{limits: limits, latest: make(map[Hash]uint64)}
}

// Duplicate reports whether the record is a duplicate of an earlier one, and
// remembers it. It must be called once for every record, in the order of offsets.
func (w *Window) Duplicate(r *Record) bool {
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
