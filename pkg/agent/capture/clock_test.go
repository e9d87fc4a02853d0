package capture

import (
	"testing"
	"time"
	"unsafe"
)

// ahead returns t as if the wall clock had been an hour ahead when it was read.
// Package time offers no way to do so. A time with a monotonic reading keeps
// its seconds in the first word, from bit 30 on.
func ahead(t time.Time) time.Time {
	words := (*[3]uint64)(unsafe.Pointer(&t))
	words[0] += 3600 << 30
	return t
}

// The clock is stepped back by an hour between two scans. Namespaces found by
// the second scan began after the first one, not in an hour.
func TestClockSteppedBackBetweenScans(t *testing.T) {
	first := time.Now()
	now := first.Add(2 * time.Second)
	earlier := ahead(first)
	if earlier.Sub(first) != 0 || earlier.UnixNano()-first.UnixNano() != int64(time.Hour) {
		t.Skip("time.Time has another layout")
	}
	if got := asOf(now, earlier).UnixNano(); got != first.UnixNano() {
		t.Errorf("the previous scan was %s ago", time.Duration(now.UnixNano()-got))
	}
}
