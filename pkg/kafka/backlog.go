package kafka

import "time"

// backlog estimates how long a record handed to a Producer would wait. The zero value is
// ready to use.
//
// How much Kafka takes is only seen while there is always more to send, so the rate is
// known only then. A light load says nothing about it and is never refused for it.
type backlog struct {
	bytes int // of records that are not settled, before compression

	since  time.Time // begin of the window
	served int       // bytes acknowledged since then
	idle   bool      // all was sent at some time of the window
	rate   float64   // bytes a second; 0 means unknown
}

// rateWindow is long enough for some requests, and short beside Config.ProduceTimeout.
const rateWindow = 500 * time.Millisecond

// settled notes that a request has ended, of which so many bytes were acknowledged. more tells
// whether others wait.
func (b *backlog) settled(now time.Time, acknowledged int, more bool) {
	if b.since.IsZero() {
		b.since, b.idle = now, true // no window has begun
	}
	b.served += acknowledged
	b.idle = b.idle || !more
	elapsed := now.Sub(b.since)
	if elapsed < rateWindow {
		return
	}
	sample := float64(b.served) / elapsed.Seconds()
	switch {
	case b.idle:
		b.rate = 0
	case b.rate == 0:
		b.rate = sample
	default:
		b.rate = (b.rate + sample) / 2
	}
	b.since, b.served, b.idle = now, 0, !more
}

// wait is how long a record would wait now, 0 if that is not known.
func (b *backlog) wait() time.Duration {
	if b.rate < 1 {
		return 0
	}
	return time.Duration(float64(b.bytes) / b.rate * float64(time.Second))
}
