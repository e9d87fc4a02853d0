package kafka

import "time"

// window bounds the bytes that wait for Kafka by how long they wait, as a sender of TCP bounds what is on its way: it
// shrinks when calls take long, and grows when calls are refused although others take little. Without it the
// queues would grow until calls end by their timeout, when some of their records are stored and the rest are
// withdrawn: Kafka would be busy with records whose senders are told to send them again.
type window struct {
	bytes   int // of records that are not settled, before compression
	limit   int // of bytes
	full    bool
	changed time.Time // calls that began before say nothing about limit
}

const (
	firstWindow = 4 << 20 // grows to what fast brokers need within some answers
	leastWindow = 256 << 10
	mostWindow  = 1 << 30 // receivers bound what is in flight before that
)

// admits reports whether more bytes may wait. How many they are does not matter: a rule that asks
// whether they fit would let small calls take all that is freed, and large ones starve. So the last
// call may exceed the limit.
func (w *window) admits() bool {
	if w.bytes < w.limit {
		return true
	}
	w.full = true
	return false
}

// ended adapts the limit after a call that was admitted, and that made so many bytes wait then. One that
// found the window half empty does not tell how long a full one takes.
func (w *window) ended(begun, now time.Time, bytes int, timeout time.Duration) {
	if begun.Before(w.changed) {
		return
	}
	switch took := now.Sub(begun); {
	case took > timeout/4:
		w.limit, w.full, w.changed = max(w.limit/2, leastWindow), false, now
	case w.full && took < timeout/8 && bytes >= w.limit/2:
		w.limit, w.full, w.changed = min(w.limit*2, mostWindow), false, now
	}
}
