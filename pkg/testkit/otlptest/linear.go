package otlptest

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The sizes of the requests that Linear compares.
const (
	SmallRequest = 64 << 10
	LargeRequest = 8 * SmallRequest
)

const (
	// mostTimes is how much longer the large request may take than the small one. Linear
	// work takes 8 times as long, and work that grows with the square 64 times.
	mostTimes = 28
)

// Linear fails unless decode's time grows with the bytes of its requests and its allocations stay below
// maxBytes for each of them. requests are of one kind, of SmallRequest and of LargeRequest bytes or about as many.
func Linear(t *testing.T, maxBytes int, requests [2][]byte, decode func(request []byte)) {
	t.Helper()
	small, large := requests[0], requests[1]
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	decode(large)
	runtime.ReadMemStats(&after)
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > uint64(maxBytes*len(large)) {
		t.Errorf("a request of %d bytes allocated %d, more than %d times as many", len(large), allocated, maxBytes)
	}
	// The best of several, in turn, in time of this thread alone: other programs use the processor too.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	shortest := [2]time.Duration{time.Hour, time.Hour}
	for range 12 {
		for i, req := range [...][]byte{small, large} {
			start := threadTime(t)
			decode(req)
			shortest[i] = min(shortest[i], threadTime(t)-start)
		}
		if shortest[1] <= mostTimes*max(shortest[0], 10*time.Microsecond) {
			return
		}
	}
	t.Errorf("a request of %d bytes took %s, one of %d bytes %s", len(small), shortest[0], len(large), shortest[1])
}

// threadTime is the processor time that the calling thread has taken.
func threadTime(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
