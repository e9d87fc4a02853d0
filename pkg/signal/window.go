package signal

import (
	"math"
	"time"
)

// Window is the time in which an item must start and end, in nanoseconds since
// the Unix epoch, both ends included. An item whose clock is far off would open
// a partition of its own in ClickHouse, and its TTL would delete it at once or
// never.
type Window struct {
	Earliest, Latest uint64
}

// Anytime is the window that rejects no time. It is for items whose time of
// receipt is not known.
var Anytime = Window{Latest: math.MaxInt64}

// WindowAt returns the window that reaches from past before now to future after
// it.
func WindowAt(now time.Time, past, future time.Duration) Window {
	return Window{
		Earliest: uint64(max(0, now.Add(-past).UnixNano())),
		Latest:   uint64(max(0, now.Add(future).UnixNano())),
	}
}

// Contains reports whether t lies in the window.
func (w Window) Contains(t uint64) bool { return w.Earliest <= t && t <= w.Latest }
