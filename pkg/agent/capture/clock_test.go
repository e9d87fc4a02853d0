package capture

import (
	"testing"
	"time"
	"unsafe"
)

// ahead returns t as if the wall clock had been an hour ahead when it was read: package time has no way to say
// so. The seconds of a reading with a monotonic clock are in its first word, from bit 30 on.
func ahead(t time.Time) time.Time {
	words := (*[3]uint64)(unsafe.Pointer(&t))
	words[0] += 3600 << 30
	return t
}

// The clock was set back by an hour between two looks at namespaces: what was found in the second began after the first,
// and not in an hour.
func TestClockIsSetBackBetweenScans(t *testing.T) {
	first := time.Now()
	now := first.Add(2 * time.Second)
	earlier := ahead(first)
	if earlier.Sub(first) != 0 || earlier.UnixNano()-first.UnixNano() != int64(time.Hour) {
		t.Skip("time.Time is made in another way")
	}
	if got := asOf(now, earlier).UnixNano(); got != first.UnixNano() {
		t.Errorf("the scan before was %s ago", time.Duration(now.UnixNano()-got))
	}
}
