package otlpgrpc

import "sync"

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

// refusal says which bound was reached. The zero value is none.
type refusal string

const (
	tooManyBytes    refusal = "bytes_in_flight"
	tooManyRequests refusal = "requests_in_flight"
)

// budget bounds what is in flight. It never blocks.
type budget struct {
	maxBytes    int64
	maxRequests int

	mu       sync.Mutex
	bytes    int64 // granted, estimates included
	requests int
	guess    int64 // bytes granted to a request that is not yet read
}

func newBudget(cfg Config) *budget {
	return &budget{
		maxBytes:    cfg.MaxBytesInFlight,
		maxRequests: cfg.MaxRequestsInFlight,
		guess:       min(firstGuess, cfg.MaxRequestBytes),
	}
}

// check tells whether enter would refuse, and grants nothing.
func (b *budget) check() refusal {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refuse()
}

// refuse needs b.mu.
func (b *budget) refuse() refusal {
	switch {
	case b.requests >= b.maxRequests:
		return tooManyRequests
	case b.bytes+b.guess > b.maxBytes:
		return tooManyBytes
	default:
		return ""
	}
}

// enter admits a request whose size is not yet known and returns the bytes
// granted to it, which leave gives back.
func (b *budget) enter() (granted int64, why refusal) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if why := b.refuse(); why != "" {
		return 0, why
	}
	b.requests++
	b.bytes += b.guess
	return b.guess, ""
}

// resize replaces a grant by the request's size, now known. When the size does
// not fit it leaves the grant as it was and returns false.
func (b *budget) resize(granted, size int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.learn(size)
	if b.bytes-granted+size > b.maxBytes {
		return false
	}
	b.bytes += size - granted
	return true
}

// learn moves the guess: up at once, because the next requests are likely to be as
// large, and down slowly. It needs b.mu.
func (b *budget) learn(size int64) {
	if size < b.guess {
		size = b.guess - (b.guess-size)/guessDecay
		size = max(size, min(b.guess, leastGuess))
	}
	b.guess = size
}

func (b *budget) leave(granted int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests--
	b.bytes -= granted
}

func (b *budget) inFlight() (bytes int64, requests int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes, b.requests
}
