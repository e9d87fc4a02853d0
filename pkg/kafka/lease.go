package kafka

import (
	"sync"
	"time"
)

// lease is how long nobody else can own the partitions of a generation. The coordinator gives
// them to others when a member was silent for the session timeout, or when it has not joined
// again within the rebalance timeout after a rebalance began.
//
// The coordinator counts the session from when it received our last request. A lease counts
// from when we sent it, which is earlier. A rebalance can begin as soon as the coordinator has
// answered that there is none, and a stopped process does not notice it. So the rebalance timeout
// always counts, from when we sent the last request that was answered so.
type lease struct {
	session, rebalance, grace time.Duration

	mu         sync.Mutex
	alive      time.Time // when the last request was sent that was answered as to a member
	undisputed time.Time // when the last request was sent that was answered without a rebalance
	noticed    time.Time // when a rebalance was noticed; zero before
	over       time.Time // when the generation was known to be over; zero before
}

// newLease begins with the answer to a request that was sent at a time.
func newLease(opts GroupOptions, grace time.Duration, sent time.Time) *lease {
	return &lease{session: opts.SessionTimeout, rebalance: opts.RebalanceTimeout, grace: grace, alive: sent, undisputed: sent}
}

// renew takes the answer that the generation goes on.
func (l *lease) renew(sent time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.alive, l.undisputed = sent, sent
}

// dispute takes the answer that a rebalance is under way, in which we are waited for.
func (l *lease) dispute(sent, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.alive = sent
	if l.noticed.IsZero() {
		l.noticed = now
	}
}

// end takes the answer that the generation is over.
func (l *lease) end(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over.IsZero() {
		l.over = now
	}
}

// until returns the end of the lease, as far as it is known now.
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
