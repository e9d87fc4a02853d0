package kafka

import (
	"testing"
	"time"
)

func TestWindowFollowsHowLongCallsTake(t *testing.T) {
	const timeout = 8 * time.Second
	begin := time.Unix(1, 0)
	type call struct {
		begun, ended time.Duration
		refused      bool // another one is, meanwhile
		bytes        int  // that wait once this one does
	}
	tests := map[string]struct {
		calls []call
		want  int
	}{
		"soon, and enough for all":      {[]call{{0, time.Second / 2, false, 40 * leastWindow}}, 64},
		"soon, and others are refused":  {[]call{{0, time.Second / 2, true, 40 * leastWindow}}, 128},
		"soon, of a window half empty":  {[]call{{0, time.Second / 2, true, 31 * leastWindow}}, 64},
		"not so soon":                   {[]call{{0, 3 * time.Second / 2, true, 40 * leastWindow}}, 64},
		"long":                          {[]call{{0, 3 * time.Second, true, 40 * leastWindow}}, 32},
		"long, several from before":     {[]call{{0, 3 * time.Second, true, 40 * leastWindow}, {time.Second, 4 * time.Second, true, 40 * leastWindow}}, 32},
		"long, and again after a while": {[]call{{0, 3 * time.Second, true, 40 * leastWindow}, {3 * time.Second, 6 * time.Second, true, 40 * leastWindow}}, 16},
		"long, then soon":               {[]call{{0, 3 * time.Second, true, 40 * leastWindow}, {3 * time.Second, 7 * time.Second / 2, true, 40 * leastWindow}}, 64},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			w := window{limit: 64 * leastWindow, bytes: 1}
			for _, c := range tc.calls {
				w.bytes = w.limit
				if c.refused && w.admits() {
					t.Fatal("a full window admits more")
				}
				w.ended(begin.Add(c.begun), begin.Add(c.ended), c.bytes, timeout)
			}
			if got := w.limit / leastWindow; got != tc.want {
				t.Errorf("the limit is %d times the least, want %d", got, tc.want)
			}
		})
	}
	almost := window{limit: 10, bytes: 9}
	if !almost.admits() {
		t.Error("a window with room does not admit a call")
	}
}
