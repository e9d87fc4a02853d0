package flows

import (
	"encoding/binary"
	"net/netip"

	"github.com/cespare/xxhash/v2"
)

// hash chooses the partition of an acceptable flow.
func (f *Flow) hash() uint64 { return Hash(end(f.Local, f.LocalPort), end(f.Peer, f.PeerPort)) }

func end(address []byte, port uint32) netip.AddrPort {
	a, _ := netip.AddrFromSlice(address)
	return netip.AddrPortFrom(a, uint16(port))
}

// Hash returns a hash of both ends of a connection that is the same from either
// side, so that the flows of both ends go to one partition. It is the XXH64 of
// the two ends, the smaller first, each as 16 bytes of address (IPv4 as
// v4-mapped) and the port, big-endian. Stored data depends on it: it must never
// change.
func Hash(local, peer netip.AddrPort) uint64 {
	var ends [36]byte
	if compareEnds(local, peer) > 0 {
		local, peer = peer, local
	}
	for i, end := range [...]netip.AddrPort{local, peer} {
		address := end.Addr().As16()
		copy(ends[18*i:], address[:])
		binary.BigEndian.PutUint16(ends[18*i+16:], end.Port())
	}
	return xxhash.Sum64(ends[:])
}

func compareEnds(a, b netip.AddrPort) int {
	x, y := a.Addr().As16(), b.Addr().As16()
	for i := range x {
		if x[i] != y[i] {
			return int(x[i]) - int(y[i])
		}
	}
	return int(a.Port()) - int(b.Port())
}
