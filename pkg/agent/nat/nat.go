// Package nat knows how the machine translates the addresses of connections.
//
// The caller passes the translated connections of each network namespace, as
// connection tracking knows them, to a [Table], and asks it about the ends of a
// socket. A connection is translated by the socket's own namespace, by that of
// the host, or by others on its way: Translate follows it from one to the next.
//
// The Table remembers a connection for one to two periods between calls of
// Rotate: long enough to be asked once a socket is seen first, and no longer.
// So it needs no news of connections that ended.
//
// The package does no I/O, reads no clock and starts no goroutine. A Table
// belongs to one goroutine at a time.
package nat

import (
	"net/netip"
	"slices"
)

// Connection is a tracked connection whose addresses are translated. The reply
// has the addresses that the other side uses: without translation, ReplyFrom
// equals To, and ReplyTo equals From. Addresses are never v4-mapped.
type Connection struct {
	UDP                          bool // otherwise TCP
	From, To, ReplyFrom, ReplyTo netip.AddrPort
}

const (
	// maxKeys bounds the keys of one period over all namespaces, two for each
	// connection, at about 100 bytes each: 2,000 connections a second over 15
	// seconds.
	maxKeys = 65536
	// maxHops bounds the namespaces that one connection is followed through, and
	// those that translate the same ends.
	maxHops = 4

	dnsPort = 53
)

// Stats holds totals since New, and Keys, which is the current number.
type Stats struct {
	Keys int
	// Added counts connections, Untracked those that did not fit.
	Added, Untracked uint64
}

// Table holds the translations of all network namespaces. Use New.
type Table struct {
	now, before period
	stats       Stats
}

// period holds the connections added between two calls of Rotate.
type period struct {
	hops map[ends]hop
	// more holds the translations of ends that several namespaces translate.
	more map[ends][]hop
	// forwarded holds who asked the DNS questions sent on with another address.
	forwarded map[place]netip.Addr
	keys      int
}

// hop is what a namespace makes of ends.
type hop struct {
	namespace uint64
	to        ends
}

// place is a pair of ends seen in a namespace.
type place struct {
	namespace uint64
	ends      ends
}

// ends are two addresses with ports, without pointers for the garbage
// collector.
type ends struct {
	from, to         [16]byte
	fromPort, toPort uint16
}

func endsOf(from, to netip.AddrPort) ends {
	return ends{from.Addr().As16(), to.Addr().As16(), from.Port(), to.Port()}
}

func (e *ends) source() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(e.from).Unmap(), e.fromPort)
}

func (e *ends) target() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(e.to).Unmap(), e.toPort)
}

// New returns an empty table.
func New() *Table { return &Table{now: newPeriod()} }

func newPeriod() period {
	return period{hops: map[ends]hop{}, more: map[ends][]hop{}, forwarded: map[place]netip.Addr{}}
}

// Add remembers a connection that the namespace translates. Of UDP, only DNS
// counts.
func (t *Table) Add(namespace uint64, c *Connection) {
	if !c.From.IsValid() || !c.To.IsValid() || !c.ReplyFrom.IsValid() || !c.ReplyTo.IsValid() {
		return
	}
	if c.From == c.ReplyTo && c.To == c.ReplyFrom {
		return
	}
	t.stats.Added++
	if t.now.keys+2 > maxKeys {
		t.stats.Untracked++
		return
	}
	if c.UDP {
		if c.ReplyFrom.Port() == dnsPort && c.From.Addr() != c.ReplyTo.Addr() {
			t.now.forwarded[place{namespace, endsOf(c.ReplyTo, c.ReplyFrom)}] = c.From.Addr()
			t.now.keys++
		}
		return
	}
	// Either end may be a socket here: the one that connected sees the first
	// pair, the one that accepted the reply.
	t.now.add(endsOf(c.From, c.To), hop{namespace, endsOf(c.ReplyTo, c.ReplyFrom)})
	t.now.add(endsOf(c.ReplyFrom, c.ReplyTo), hop{namespace, endsOf(c.To, c.From)})
}

func (p *period) add(e ends, h hop) {
	if first, ok := p.hops[e]; !ok || first.namespace == h.namespace {
		p.hops[e] = h
	} else if more := p.more[e]; len(more) < maxHops {
		p.more[e] = append(more, h)
	}
	p.keys++
}

// Rotate ends a period: connections added before the previous call are
// forgotten.
func (t *Table) Rotate() { t.before, t.now = t.now, newPeriod() }

// Translate returns the ends of a connection of a socket in the namespace as
// the machine translates them: the socket's own end as its peer sees it, and
// the peer behind the address that the socket sees. An end that is not
// translated is the zero AddrPort.
func (t *Table) Translate(namespace uint64, local, peer netip.AddrPort) (ownOutside, peerBehind netip.AddrPort) {
	if local.Port() == 0 || peer.Port() == 0 {
		return ownOutside, peerBehind
	}
	first := endsOf(local, peer)
	now := first
	if to, ok := t.hopOf(namespace, now); ok {
		now = to
	}
	var room [maxHops]uint64
	visited := append(room[:0], namespace)
	for len(visited) < maxHops {
		h, ok := t.nextHop(visited, now)
		if !ok {
			break
		}
		now, visited = h.to, append(visited, h.namespace)
	}
	if now.from != first.from || now.fromPort != first.fromPort {
		ownOutside = now.source()
	}
	if now.to != first.to || now.toPort != first.toPort {
		peerBehind = now.target()
	}
	return ownOutside, peerBehind
}

// hopOf returns what the namespace makes of e.
func (t *Table) hopOf(namespace uint64, e ends) (to ends, found bool) {
	t.each(e, func(h hop) {
		if h.namespace == namespace && !found {
			to, found = h.to, true
		}
	})
	return to, found
}

// nextHop finds the namespace, among those not visited, that translates e. It
// finds none when two do so in different ways: then e is two connections in
// networks that use the same addresses.
func (t *Table) nextHop(visited []uint64, e ends) (next hop, found bool) {
	ambiguous := false
	t.each(e, func(h hop) {
		if slices.Contains(visited, h.namespace) || found && h.namespace == next.namespace {
			return
		}
		ambiguous = ambiguous || found && h.to != next.to
		if !found {
			next, found = h, true
		}
	})
	return next, found && !ambiguous
}

// each visits the translations of e, the latest of each namespace first.
func (t *Table) each(e ends, visit func(hop)) {
	for _, p := range []*period{&t.now, &t.before} {
		h, ok := p.hops[e]
		if !ok {
			continue
		}
		visit(h)
		for i := len(p.more[e]) - 1; i >= 0; i-- {
			visit(p.more[e][i])
		}
	}
}

// Asker returns the address of the host whose DNS question the namespace sent
// between these ends, if it replaced that address by another.
func (t *Table) Asker(namespace uint64, from, to netip.AddrPort) (asker netip.Addr, replaced bool) {
	p := place{namespace, endsOf(from, to)}
	if asker, replaced = t.now.forwarded[p]; !replaced {
		asker, replaced = t.before.forwarded[p]
	}
	return asker, replaced
}

// Stats returns the current totals.
func (t *Table) Stats() Stats {
	s := t.stats
	s.Keys = t.now.keys + t.before.keys
	return s
}
