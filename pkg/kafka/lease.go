package kafka

import (
	"sync"
	"time"
)

// lease is the time during which no other member can own the partitions of a generation.
// The coordinator reassigns them when a member was silent for the session timeout, or has
// not rejoined within the rebalance timeout after a rebalance began.
//
// The coordinator starts the session timeout when it receives a request; the lease starts
// it when the request was sent, which is earlier. A rebalance can begin right after the
// coordinator reported none, and a stopped process does not notice it. So the rebalance
// timeout always counts, from the send time of the last request that reported no
// rebalance.
type lease struct {
	session, rebalance, grace time.Duration

	mu         sync.Mutex
	alive      time.Time // send time of the last request answered as to a member
	undisputed time.Time // send time of the last request answered without a rebalance
	noticed    time.Time // when a rebalance was noticed, or zero
	over       time.Time // when the generation was known to be over, or zero
}

// newLease starts a lease with the response to a request sent at sent.
func newLease(opts GroupOptions, grace time.Duration, sent time.Time) *lease {
	return &lease{session: opts.SessionTimeout, rebalance: opts.RebalanceTimeout, grace: grace, alive: sent, undisputed: sent}
}

// renew records a response that the generation continues.
func (l *lease) renew(sent time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.alive, l.undisputed = sent, sent
}

// dispute records a response that a rebalance is under way and waits for this member.
func (l *lease) dispute(sent, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.alive = sent
	if l.noticed.IsZero() {
		l.noticed = now
	}
}

// end records that the generation is over.
func (l *lease) end(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over.IsZero() {
		l.over = now
	}
}

// until returns the end of the lease as far as is known now.
func (l *lease) until() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	until := earliest(l.alive.Add(l.session), l.undisputed.Add(l.rebalance))
	if !l.noticed.IsZero() {
		until = earliest(until, l.noticed.Add(l.grace))
	}
	if !l.over.IsZero() {
		until = earliest(until, l.over)
	}
	return until
}

func earliest(first time.Time, others ...time.Time) time.Time {
	for _, t := range others {
		if t.Before(first) {
			first = t
		}
	}
	return first
}
