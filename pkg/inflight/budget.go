package inflight

import (
	"net/netip"
	"sync"
)

// Before a request has been read, its size is a guess.
const (
	// firstGuess stands until something has been received: more than a batch of
	// an SDK (512 spans, about 340 KB), less than a large one of a collector.
	firstGuess = 1 << 20
	// leastGuess keeps a fleet of small requests from making the next large
	// ones come for free.
	leastGuess = 64 << 10
	// guessDecay is the part of the distance by which the guess falls towards a
	// smaller request: it forgets a large one after about a hundred.
	guessDecay = 32
)

// Refusal says which bound was reached. The zero value is none. Its text suits a
// metric's label.
type Refusal string

// The bounds of a Budget.
const (
	TooManyBytes    Refusal = "bytes_in_flight"
	TooManyRequests Refusal = "requests_in_flight"
	// The same, for one peer.
	TooManyBytesOfPeer    Refusal = "peer_bytes_in_flight"
	TooManyRequestsOfPeer Refusal = "peer_requests_in_flight"
)

// Refusals are all there are.
var Refusals = []Refusal{TooManyBytes, TooManyRequests, TooManyBytesOfPeer, TooManyRequestsOfPeer}

// Limits are the bounds of a Budget, all positive but PeerShare.
type Limits struct {
	// RequestBytes is the largest request that there can be. No more than
	// Bytes, or the largest would never be let in.
	RequestBytes int64
	Bytes        int64 // of all requests that are not yet answered
	Requests     int   // that are not yet answered
	// PeerShare is how much of what other peers leave free one peer may hold, between 0 and 1.
	// 0 and 1 let one peer hold everything. See Peer.
	PeerShare float64
}

// Budget bounds what is in flight. It never blocks. Make one with New.
//
// A request goes through Enter or EnterAtMost, through Grow while it turns out to be larger
// than granted, through Resize once its size is known, and through Leave.
type Budget struct {
	limits Limits

	mu       sync.Mutex
	bytes    int64 // granted, estimates included
	requests int
	guess    int64 // bytes granted to a request that is not yet read, of no peer
	accounts map[netip.Prefix]*account
}

// New returns a Budget with nothing in flight.
func New(limits Limits) *Budget {
	b := &Budget{limits: limits, accounts: make(map[netip.Prefix]*account)}
	b.guess = b.firstGuess()
	return b
}

func (b *Budget) firstGuess() int64 { return min(firstGuess, b.limits.RequestBytes) }

// Check tells whether Enter would refuse, and grants nothing.
func (b *Budget) Check() Refusal {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refuse(b.guess)
}

// refuse needs b.mu.
func (b *Budget) refuse(size int64) Refusal {
	switch {
	case b.requests >= b.limits.Requests:
		return TooManyRequests
	case b.bytes+size > b.limits.Bytes:
		return TooManyBytes
	default:
		return ""
	}
}

// Enter admits a request whose size is not yet known and returns the bytes
// granted to it, which Leave gives back.
func (b *Budget) Enter() (granted int64, why Refusal) {
	return b.EnterAtMost(b.limits.RequestBytes)
}

// EnterAtMost is Enter for a request that will turn out to be no larger than size.
func (b *Budget) EnterAtMost(size int64) (granted int64, why Refusal) {
	b.mu.Lock()
	defer b.mu.Unlock()
	size = min(size, b.guess)
	if why := b.refuse(size); why != "" {
		return 0, why
	}
	b.requests++
	b.bytes += size
	return size, ""
}

// Grow makes a grant larger while a request is being read: Leave is then to be given
// size. When size does not fit, Grow leaves the grant as it was and returns false.
func (b *Budget) Grow(granted, size int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.replace(granted, size)
}

// Resize replaces a grant by the request's size, now known: Leave is then to be
// given size. When the size does not fit, Resize leaves the grant as it was and
// returns false.
func (b *Budget) Resize(granted, size int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.guess = learn(b.guess, size)
	return b.replace(granted, size)
}

// replace needs b.mu.
func (b *Budget) replace(granted, size int64) bool {
	if b.bytes-granted+size > b.limits.Bytes {
		return false
	}
	b.bytes += size - granted
	return true
}

// learn moves a guess: up at once, because the next requests are likely to be as
// large, and down slowly.
func learn(guess, size int64) int64 {
	if size < guess {
		size = guess - (guess-size)/guessDecay
		size = max(size, min(guess, leastGuess))
	}
	return size
}

// Leave gives back what Enter, or the last successful Grow or Resize, granted.
func (b *Budget) Leave(granted int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests--
	b.bytes -= granted
}

// InFlight returns the bytes granted, estimates included, and the requests that
// they were granted to.
func (b *Budget) InFlight() (bytes int64, requests int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes, b.requests
}
