package kafka

import (
	"testing"
	"time"
)

func TestLease(t *testing.T) {
	start := time.Now()
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	usual := GroupOptions{SessionTimeout: 10 * time.Second, RebalanceTimeout: 20 * time.Second}
	long := GroupOptions{SessionTimeout: 45 * time.Second, RebalanceTimeout: 20 * time.Second}
	for name, tc := range map[string]struct {
		opts   GroupOptions
		events func(*lease)
		want   float64
	}{
		"just joined":    {usual, func(*lease) {}, 10},
		"a sign of life": {usual, func(l *lease) { l.renew(at(3)) }, 13},
		"a rebalance, noticed at once": {usual, func(l *lease) {
			l.renew(at(3))
			l.dispute(at(4), at(4.25))
			l.dispute(at(12), at(12.25))
		}, 19.25}, // the grace
		"a rebalance, and silence": {usual, func(l *lease) {
			l.renew(at(3))
			l.dispute(at(4), at(4.25))
		}, 14}, // the session
		"a rebalance, noticed late": {usual, func(l *lease) {
			l.renew(at(0))
			l.dispute(at(8), at(8.1))
			l.dispute(at(16), at(16.1))
		}, 20}, // the brokers may have waited for us since the heartbeat before
		"taken away": {usual, func(l *lease) {
			l.renew(at(3))
			l.end(at(5))
			l.end(at(6))
		}, 5},
		// Another member joins right after the last heartbeat. The brokers wait for this
		// member for the rebalance timeout at most, however long its session is.
		"a long session, and silence": {long, func(l *lease) { l.renew(at(1)) }, 21},
		"a long session, just joined": {long, func(*lease) {}, 20},
		"a long session, a rebalance and silence": {long, func(l *lease) {
			l.renew(at(1))
			l.dispute(at(2), at(2.25))
		}, 17.25},
	} {
		l := newLease(tc.opts, 15*time.Second, start)
		tc.events(l)
		if got := l.until().Sub(start).Seconds(); got != tc.want {
			t.Errorf("%s: the lease ends after %g s, want %g", name, got, tc.want)
		}
	}
}
