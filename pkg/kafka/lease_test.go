package kafka

import (
	"testing"
	"time"
)

func TestLease(t *testing.T) {
	start := time.Now()
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	opts := GroupOptions{SessionTimeout: 10 * time.Second, RebalanceTimeout: 20 * time.Second}
	for name, tc := range map[string]struct {
		events func(*lease)
		want   float64
	}{
		"just joined":    {func(*lease) {}, 10},
		"a sign of life": {func(l *lease) { l.renew(at(3)) }, 13},
		"a rebalance, noticed at once": {func(l *lease) {
			l.renew(at(3))
			l.dispute(at(4), at(4.25))
			l.dispute(at(12), at(12.25))
		}, 19.25}, // the grace
		"a rebalance, and silence": {func(l *lease) {
			l.renew(at(3))
			l.dispute(at(4), at(4.25))
		}, 14}, // the session
		"a rebalance, noticed late": {func(l *lease) {
			l.renew(at(0))
			l.dispute(at(8), at(8.1))
			l.dispute(at(16), at(16.1))
		}, 20}, // the brokers may have waited for us since the last heartbeat before
		"taken away": {func(l *lease) {
			l.renew(at(3))
			l.end(at(5))
			l.end(at(6))
		}, 5},
	} {
		l := newLease(opts, 15*time.Second, start)
		tc.events(l)
		if got := l.until().Sub(start).Seconds(); got != tc.want {
			t.Errorf("%s: the lease ends after %g s, want %g", name, got, tc.want)
		}
	}
}
