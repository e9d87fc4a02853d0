package kafka

import (
	"testing"
	"time"
)

// The wait is known once there was more to send during a whole window, and unknown again after a light load.
func TestBacklogWait(t *testing.T) {
	const window = rateWindow
	type request struct {
		after        time.Duration
		acknowledged int
		more         bool
	}
	tests := map[string]struct {
		bytes    int
		requests []request
		want     time.Duration
	}{
		"nothing was sent":            {1000, nil, 0},
		"the first window is not one": {1000, []request{{0, 500, true}, {window, 500, true}}, 0},
		"always more":                 {5000, []request{{0, 0, true}, {window, 0, true}, {window / 2, 250, true}, {window / 2, 250, true}}, 5000 * time.Second / 1000},
		"all was sent once":           {5000, []request{{0, 0, true}, {window, 0, true}, {window / 2, 250, false}, {window / 2, 250, true}}, 0},
		"known, then a light load":    {5000, []request{{0, 0, true}, {window, 0, true}, {window, 500, true}, {window, 10, false}}, 0},
		"slower, half at a time":      {5000, []request{{0, 0, true}, {window, 0, true}, {window, 500, true}, {window, 100, true}}, 5000 * time.Second / 600},
		"nothing is acknowledged":     {5000, []request{{0, 0, true}, {window, 0, true}, {window, 500, true}, {window, 0, true}}, 5000 * time.Second / 500},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := backlog{bytes: tc.bytes}
			now := time.Unix(1, 0)
			for _, r := range tc.requests {
				now = now.Add(r.after)
				b.settled(now, r.acknowledged, r.more)
			}
			if got := b.wait(); got.Round(time.Millisecond) != tc.want.Round(time.Millisecond) {
				t.Errorf("wait = %s, want %s", got, tc.want)
			}
		})
	}
}
