package flow

import (
	"math/bits"
	"net/netip"
	"slices"
	"time"
)

const (
	// maxEdges bounds the edges whose usual round trip time is remembered, at
	// about 350 bytes each. Beyond it, edges that were idle for idleEdge make
	// room.
	maxEdges = 16384
	idleEdge = time.Hour
	// bucketTime is the period of one histogram, and pastBuckets the number of
	// earlier periods whose result is kept: six hours.
	bucketTime  = 30 * time.Minute
	pastBuckets = 12
	// rttBins divides round trip times up to 67 s into four bins for each power
	// of two.
	rttBins = 4 * 26
	// enoughSamples is the number of samples that make a round trip time usual
	// before the first period is over.
	enoughSamples = 3
	// slowFactor and slowMargin say when a round trip time is above its usual.
	slowFactor = 3
	slowMargin = 10_000 // microseconds
	// delayedACK is the most that a peer's delayed acknowledgements add to a
	// smoothed round trip time: 40 ms and a tick of the kernel.
	delayedACK = 45_000 // microseconds
)

// edgeKey identifies an edge: from a network namespace to a peer's address and
// the port of the server, which is the own port at the server's end.
type edgeKey struct {
	namespace uint64
	peer      netip.Addr
	port      uint16
	server    bool
}

// edge remembers which round trip time is usual. Its samples are the minima
// that the kernel measures for connections, because the peer delays
// acknowledgements as its code pleases.
//
// In the first half hour the usual is the lower quartile of the samples.
// Afterwards it is the median of the half hours, each counted by its 80th
// percentile. So a fault must last for half of the history to become usual, and
// peers of different distance behind one address are usual from the second half
// hour on.
type edge struct {
	usual  uint32 // microseconds, 0 if not known yet
	bucket int64  // number of the current half hour
	seen   int64
	count  uint32
	run    uint8 // connections in a row whose first minimum was slow
	bins   [rttBins]uint16
	past   []uint32 // results of earlier half hours
}

// add records a sample.
func (e *edge) add(rtt uint32, now int64) {
	e.seen = now
	if bucket := now / int64(bucketTime); bucket != e.bucket {
		if e.count > 0 {
			if len(e.past) == pastBuckets {
				e.past = slices.Delete(e.past, 0, 1)
			}
			e.past = append(e.past, e.quantile(80))
			sorted := slices.Sorted(slices.Values(e.past))
			e.usual = sorted[(len(sorted)-1)/2]
		}
		e.bucket, e.count, e.bins = bucket, 0, [rttBins]uint16{}
	}
	bin := binOf(rtt)
	if e.bins[bin] == ^uint16(0) {
		e.count = 0
		for i := range e.bins {
			e.bins[i] /= 2
			e.count += uint32(e.bins[i])
		}
	}
	e.bins[bin]++
	e.count++
	if len(e.past) == 0 && e.count >= enoughSamples {
		e.usual = e.quantile(25)
	}
}

// quantile returns the value below which so many percent of the samples are.
func (e *edge) quantile(percent uint32) uint32 {
	left := e.count * percent / 100
	for bin, n := range e.bins {
		if uint32(n) > left {
			return rttOf(bin)
		}
		left -= uint32(n)
	}
	return 0
}

// binOf returns the bin of a round trip time, and rttOf the middle of a bin.
func binOf(rtt uint32) int {
	if rtt < 4 {
		return int(rtt)
	}
	power := bits.Len32(rtt) - 3
	return min(4*power+int(rtt>>power), rttBins-1)
}

func rttOf(bin int) uint32 {
	if bin < 8 {
		return max(uint32(bin), 1)
	}
	power := bin/4 - 1
	return uint32(bin%4+4)<<power + 1<<power/2
}

// begin counts a new connection with its first minimum.
func (e *edge) begin(rtt uint32) {
	if e.slow(rtt) {
		e.run = min(e.run+1, enoughSamples)
	} else {
		e.run = 0
	}
}

// slow reports whether a round trip time is above the usual of the edge. A nil
// edge has none.
func (e *edge) slow(rtt uint32) bool {
	return e != nil && e.usual != 0 && uint64(rtt) > slowFactor*uint64(e.usual) && rtt > e.usual+slowMargin
}

// edgeOf returns the edge of a connection, or nil if there are too many.
func (t *Table) edgeOf(sp *space, role Role, local, peer netip.AddrPort, now int64) *edge {
	key := edgeKey{sp.inode, peer.Addr(), peer.Port(), false}
	if role == RoleServer {
		key.port, key.server = local.Port(), true
	}
	if key.port == 0 {
		return nil
	}
	e := t.edges[key]
	if e == nil {
		if len(t.edges) >= maxEdges {
			t.forgetEdges(now)
		}
		if len(t.edges) >= maxEdges {
			return nil
		}
		e = &edge{}
		t.edges[key] = e
	}
	return e
}

// forgetEdges removes idle edges, at most once a minute.
func (t *Table) forgetEdges(now int64) {
	if now-t.edgesSwept < int64(time.Minute) {
		return
	}
	t.edgesSwept = now
	for key, e := range t.edges {
		if now-e.seen > int64(idleEdge) {
			delete(t.edges, key)
		}
	}
}
