package inflight

import (
	"math/rand/v2"
	"testing"
)

const mib = 1 << 20

func testBudget(maxBytes int64) *Budget {
	return New(Limits{RequestBytes: 64 * mib, Bytes: maxBytes, Requests: 1000})
}

// admitAll enters until refused and returns how many were admitted.
func admitAll(b *Budget) (entered int, why Refusal) {
	for {
		if _, why = b.Enter(); why != "" {
			return entered, why
		}
		entered++
	}
}

func TestUnreadRequestsCountAsTheLargestRecentOne(t *testing.T) {
	tests := map[string]struct {
		seen []int64
		want int // unread requests admitted at once into 256 MiB
	}{
		"no request yet":                       {nil, 256},
		"large ones come back all at once":     {[]int64{8 * mib}, 32},
		"the largest allowed":                  {[]int64{64 * mib}, 4},
		"one small one proves little":          {[]int64{8 * mib, 1000}, 33},
		"small ones for a long time":           {repeat(1000, 1000), 1000},
		"large ones forgotten after some time": {append([]int64{64 * mib}, repeat(100_000, 400)...), 1000},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := testBudget(256 * mib)
			for _, size := range tc.seen {
				granted, why := b.Enter()
				if why != "" || !b.Resize(granted, size) {
					t.Fatalf("request of %d bytes refused by an empty budget", size)
				}
				b.Leave(size)
			}
			if got, _ := admitAll(b); got != tc.want {
				t.Errorf("admitted %d, want %d", got, tc.want)
			}
		})
	}
}

func repeat(size int64, times int) []int64 {
	sizes := make([]int64, times)
	for i := range sizes {
		sizes[i] = size
	}
	return sizes
}

// The granted sum stays within the bound, an empty budget admits any request up to the
// limit, and nothing is lost or invented.
func TestBudgetHoldsItsBound(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		maxRequest := 1 + rng.Int64N(64*mib)
		b := New(Limits{RequestBytes: maxRequest, Bytes: maxRequest + rng.Int64N(8*mib), Requests: 1 + rng.IntN(50)})
		var held []int64
		for range 500 {
			if len(held) > 0 && rng.IntN(2) == 0 {
				i := rng.IntN(len(held))
				b.Leave(held[i])
				held[i] = held[len(held)-1]
				held = held[:len(held)-1]
			}
			// Every other request announces its maximum size and grows while it is read.
			size, atMost := rng.Int64N(maxRequest+1), maxRequest
			if rng.IntN(2) == 0 {
				atMost = size
			}
			granted, why := b.EnterAtMost(atMost)
			if why != "" {
				if len(held) == 0 {
					t.Fatalf("an empty budget refused: %s", why)
				}
				continue
			}
			if granted > atMost {
				t.Fatalf("granted %d bytes to a request of at most %d", granted, atMost)
			}
			if half := size / 2; half > granted && b.Grow(granted, half) {
				granted = half
			}
			switch {
			case b.Resize(granted, size):
				granted = size
			case len(held) == 0:
				t.Fatalf("the only request, %d of at most %d bytes, was refused", size, maxRequest)
			}
			held = append(held, granted)
			bytes, requests := b.InFlight()
			if bytes > b.limits.Bytes || requests > b.limits.Requests || requests != len(held) {
				t.Fatalf("%d bytes and %d requests in flight, bounds %d and %d, held %d", bytes, requests, b.limits.Bytes, b.limits.Requests, len(held))
			}
		}
		for _, granted := range held {
			b.Leave(granted)
		}
		if bytes, requests := b.InFlight(); bytes != 0 || requests != 0 {
			t.Fatalf("%d bytes and %d requests remain", bytes, requests)
		}
	}
}
