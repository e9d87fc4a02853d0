package inflight

import "net/netip"

// connectionShare is the PeerShare of one connection within its address, if there are others.
const connectionShare = 0.75

// account is what one address holds. Budget.mu guards it.
type account struct {
	key      netip.Prefix
	bytes    int64
	requests int
	guess    int64
	users    int // connections and requests; the account is dropped with the last one
	conns    int // connections
}

// Peer is one connection's part of a Budget. It has the Budget's methods, with the same
// contracts.
//
// An address may hold the share Limits.PeerShare of what other addresses leave free, and
// each of several connections three quarters of what the other connections of its address
// leave free. So
// some of the budget always remains for clients that hold nothing yet: with n greedy
// addresses and a share of one half, 1/(n+1). A client with nothing in flight is admitted
// whenever its request fits into the free part.
//
// Each address has its own size estimate, so one client's large requests do not make
// another's count as large.
type Peer struct {
	budget   *Budget
	account  *account
	bytes    int64
	requests int
	closed   bool
}

// Peer returns the part of a new connection from addr. Close it when the connection ends.
func (b *Budget) Peer(addr netip.Addr) *Peer {
	key := Network(addr)
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.accounts[key]
	if a == nil {
		a = &account{key: key, guess: b.firstGuess()}
		b.accounts[key] = a
	}
	a.users++
	a.conns++
	return &Peer{budget: b, account: a}
}

// Network returns what counts as one peer: an IPv4 address, or an IPv6 /64, within which
// a host picks any address. It is invalid for the zero Addr, so all clients without an
// address count as one.
func Network(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // the zero Addr
	}
	return prefix
}

// Close ends the connection. Requests in flight must still call Leave.
func (p *Peer) Close() {
	p.budget.mu.Lock()
	defer p.budget.mu.Unlock()
	if !p.closed {
		p.closed = true
		p.account.conns--
		p.drop()
	}
}

// rejoin counts the address again when a request starts after Close, because a handler
// may start just after its connection has ended. It requires budget.mu.
func (p *Peer) rejoin() {
	if p.account.users > 0 {
		return
	}
	if known := p.budget.accounts[p.account.key]; known != nil {
		p.account = known
		return
	}
	p.budget.accounts[p.account.key] = p.account
}

// drop requires budget.mu.
func (p *Peer) drop() {
	if p.account.users--; p.account.users == 0 {
		delete(p.budget.accounts, p.account.key)
	}
}

// Enter is Budget.Enter for a request of the peer.
func (p *Peer) Enter() (granted int64, why Refusal) {
	return p.EnterAtMost(p.budget.limits.RequestBytes)
}

// EnterAtMost is Budget.EnterAtMost for a request of the peer.
func (p *Peer) EnterAtMost(size int64) (granted int64, why Refusal) {
	b := p.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	p.rejoin()
	p.account.users++
	size = min(size, p.account.guess)
	if why := p.refuse(size); why != "" {
		p.drop()
		return 0, why
	}
	p.requests++
	p.account.requests++
	b.requests++
	p.add(size)
	return size, ""
}

// refuse requires budget.mu.
func (p *Peer) refuse(size int64) Refusal {
	b := p.budget
	if why := b.refuse(size); why != "" {
		return why
	}
	if !p.fair(int64(p.requests), int64(p.account.requests), int64(b.requests), 1, int64(b.limits.Requests)) {
		return TooManyRequestsOfPeer
	}
	if !p.fair(p.bytes, p.account.bytes, b.bytes, size, b.limits.Bytes) {
		return TooManyBytesOfPeer
	}
	return ""
}

// fair reports whether a connection that holds own, of an address that holds address, may
// hold more, when all together hold total.
func (p *Peer) fair(own, address, total, more, limit int64) bool {
	share := p.budget.limits.PeerShare
	if share <= 0 || share >= 1 || address == 0 {
		return true
	}
	allowed := share * float64(limit-(total-address))
	if float64(address+more) > allowed {
		return false
	}
	if own == 0 || p.account.conns <= 1 {
		return true
	}
	return float64(own+more) <= connectionShare*(allowed-float64(address-own))
}

// add requires budget.mu.
func (p *Peer) add(bytes int64) {
	p.bytes += bytes
	p.account.bytes += bytes
	p.budget.bytes += bytes
}

// Grow is Budget.Grow for a request of the peer. It returns "" if the grant was enlarged.
func (p *Peer) Grow(granted, size int64) (why Refusal) {
	p.budget.mu.Lock()
	defer p.budget.mu.Unlock()
	return p.replace(granted, size)
}

// Resize is Budget.Resize for a request of the peer. It returns "" if the grant is now
// size.
func (p *Peer) Resize(granted, size int64) (why Refusal) {
	p.budget.mu.Lock()
	defer p.budget.mu.Unlock()
	p.account.guess = learn(p.account.guess, size)
	return p.replace(granted, size)
}

// replace requires budget.mu.
func (p *Peer) replace(granted, size int64) Refusal {
	b := p.budget
	if size > granted {
		if b.bytes-granted+size > b.limits.Bytes {
			return TooManyBytes
		}
		if !p.fair(p.bytes-granted, p.account.bytes-granted, b.bytes-granted, size, b.limits.Bytes) {
			return TooManyBytesOfPeer
		}
	}
	p.add(size - granted)
	return ""
}

// Leave is Budget.Leave for a request of the peer.
func (p *Peer) Leave(granted int64) {
	p.budget.mu.Lock()
	defer p.budget.mu.Unlock()
	p.requests--
	p.account.requests--
	p.budget.requests--
	p.add(-granted)
	p.drop()
}
