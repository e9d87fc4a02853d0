package inflight

import (
	"net/netip"
	"sync"
)

// Until a request has been read, its size is a guess.
const (
	// firstGuess is the guess before any request: more than a batch of an SDK (512 spans,
	// about 340 KB), less than a large one of a collector.
	firstGuess = 1 << 20
	// leastGuess keeps many small requests from making the guess for the next large ones
	// too low.
	leastGuess = 64 << 10
	// guessDecay is the fraction of the distance by which the guess falls towards a
	// smaller request: about a hundred requests forget a large one.
	guessDecay = 32
)

// Refusal is the exceeded bound, or empty. Its text is a valid metric label.
type Refusal string

// The bounds of a Budget.
const (
	TooManyBytes    Refusal = "bytes_in_flight"
	TooManyRequests Refusal = "requests_in_flight"
	// The same, for one peer.
	TooManyBytesOfPeer    Refusal = "peer_bytes_in_flight"
	TooManyRequestsOfPeer Refusal = "peer_requests_in_flight"
)

// Refusals lists all refusals.
var Refusals = []Refusal{TooManyBytes, TooManyRequests, TooManyBytesOfPeer, TooManyRequestsOfPeer}

// Limits are the bounds of a Budget. All but PeerShare must be positive.
type Limits struct {
	// RequestBytes is the size of the largest possible request. It must not exceed Bytes,
	// or that request would never be admitted.
	RequestBytes int64
	Bytes        int64 // of all unanswered requests
	Requests     int   // unanswered requests
	// PeerShare is the part of what other peers leave free that one peer may hold,
	// between 0 and 1. 0 and 1 let one peer hold everything. See Peer.
	PeerShare float64
}

// Budget bounds the requests in flight. It never blocks. Create it with New.
//
// A request calls Enter or EnterAtMost, then Grow when it turns out to be larger than
// granted, Resize once its size is known, and Leave.
type Budget struct {
	limits Limits

	mu       sync.Mutex
	bytes    int64 // granted, including estimates
	requests int
	guess    int64 // bytes granted to an unread request without a peer
	accounts map[netip.Prefix]*account
}

// New returns a Budget with nothing in flight.
func New(limits Limits) *Budget {
	b := &Budget{limits: limits, accounts: make(map[netip.Prefix]*account)}
	b.guess = b.firstGuess()
	return b
}

func (b *Budget) firstGuess() int64 { return min(firstGuess, b.limits.RequestBytes) }

// Check returns the refusal that Enter would return, and grants nothing.
func (b *Budget) Check() Refusal {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refuse(b.guess)
}

// refuse requires b.mu.
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

// Enter admits a request of unknown size and returns the bytes granted to it. Leave
// returns them.
func (b *Budget) Enter() (granted int64, why Refusal) {
	return b.EnterAtMost(b.limits.RequestBytes)
}

// EnterAtMost is Enter for a request of at most size bytes.
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

// Grow enlarges a grant to size while a request is being read; pass size to Leave from
// then on. If size does not fit, Grow keeps the grant and returns false.
func (b *Budget) Grow(granted, size int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.replace(granted, size)
}

// Resize replaces a grant by the request's actual size; pass size to Leave from then on.
// If size does not fit, Resize keeps the grant and returns false.
func (b *Budget) Resize(granted, size int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.guess = learn(b.guess, size)
	return b.replace(granted, size)
}

// replace requires b.mu.
func (b *Budget) replace(granted, size int64) bool {
	if b.bytes-granted+size > b.limits.Bytes {
		return false
	}
	b.bytes += size - granted
	return true
}

// learn adjusts a guess: up at once, because the next requests are likely to be as large,
// and down slowly.
func learn(guess, size int64) int64 {
	if size < guess {
		size = guess - (guess-size)/guessDecay
		size = max(size, min(guess, leastGuess))
	}
	return size
}

// Leave returns the bytes of Enter or of the last successful Grow or Resize.
func (b *Budget) Leave(granted int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests--
	b.bytes -= granted
}

// InFlight returns the granted bytes, including estimates, and the number of requests.
func (b *Budget) InFlight() (bytes int64, requests int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes, b.requests
}
