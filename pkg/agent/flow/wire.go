package flow

import (
	"encoding/binary"
	"net/netip"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of Flow in metaflow.agent.v1, for code that walks the wire
// format.
const (
	FieldStart                protowire.Number = 1
	FieldEnd                  protowire.Number = 2
	FieldLocalAddress         protowire.Number = 3
	FieldLocalPort            protowire.Number = 4
	FieldPeerAddress          protowire.Number = 5
	FieldPeerPort             protowire.Number = 6
	FieldRole                 protowire.Number = 7
	FieldState                protowire.Number = 8
	FieldReason               protowire.Number = 9
	FieldConnection           protowire.Number = 10
	FieldConnections          protowire.Number = 11
	FieldConnectFailures      protowire.Number = 12
	FieldResets               protowire.Number = 13
	FieldTimeouts             protowire.Number = 14
	FieldBytesSent            protowire.Number = 15
	FieldBytesReceived        protowire.Number = 16
	FieldRetransmits          protowire.Number = 17
	FieldRetransmittedBytes   protowire.Number = 18
	FieldSegmentsSent         protowire.Number = 19
	FieldRTT                  protowire.Number = 20
	FieldMinRTT               protowire.Number = 21
	FieldReceiveWindowLimited protowire.Number = 22
	FieldSendBufferLimited    protowire.Number = 23
	FieldBusy                 protowire.Number = 24
)

// Numbers of FlowState.
const (
	stateLiving = 1
	stateClosed = 2
)

// AppendWire appends the row as a Flow of metaflow.agent.v1, byte for byte as
// protobuf marshals it. Namespace, Cgroup and UID are not in a Flow; they
// belong to the FlowGroup around it.
func (r *Row) AppendWire(b []byte) []byte {
	fixed := func(n protowire.Number, v uint64) {
		b = protowire.AppendFixed64(protowire.AppendTag(b, n, protowire.Fixed64Type), v)
	}
	number := func(n protowire.Number, v uint64) {
		if v != 0 {
			b = protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
		}
	}
	address := func(n protowire.Number, a netip.Addr) {
		b = protowire.AppendTag(b, n, protowire.BytesType)
		if a.Is4() {
			v4 := a.As4()
			b = protowire.AppendBytes(b, v4[:])
		} else {
			v6 := a.As16()
			b = protowire.AppendBytes(b, v6[:])
		}
	}
	fixed(FieldStart, uint64(r.Start))
	fixed(FieldEnd, uint64(r.End))
	address(FieldLocalAddress, r.Local.Addr())
	number(FieldLocalPort, uint64(r.Local.Port()))
	address(FieldPeerAddress, r.Peer.Addr())
	number(FieldPeerPort, uint64(r.Peer.Port()))
	number(FieldRole, uint64(r.Role))
	if r.Closed {
		number(FieldState, stateClosed)
	} else {
		number(FieldState, stateLiving)
	}
	number(FieldReason, uint64(r.Reason))
	fixed(FieldConnection, r.Cookie)
	number(FieldConnections, uint64(r.Connections))
	number(FieldConnectFailures, uint64(r.ConnectFailures))
	number(FieldResets, uint64(r.Resets))
	number(FieldTimeouts, uint64(r.Timeouts))
	number(FieldBytesSent, r.BytesSent)
	number(FieldBytesReceived, r.BytesReceived)
	number(FieldRetransmits, r.Retransmits)
	number(FieldRetransmittedBytes, r.RetransmittedBytes)
	number(FieldSegmentsSent, r.SegmentsSent)
	number(FieldRTT, uint64(r.RTT))
	number(FieldMinRTT, uint64(r.MinRTT))
	number(FieldReceiveWindowLimited, r.ReceiveWindowLimited)
	number(FieldSendBufferLimited, r.SendBufferLimited)
	number(FieldBusy, r.Busy)
	return b
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
