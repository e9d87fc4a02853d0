package flow

import (
	"net/netip"

	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// AppendWire appends the row as a Flow of metaflow.agent.v1, byte for byte as
// protobuf marshals it. Namespace, Cgroup and UID are not in a Flow; they
// belong to the FlowGroup around it.
func (r *Row) AppendWire(b []byte) []byte {
	var local, peer, translated, translatedPeer [16]byte
	f := flows.Flow{
		Start: uint64(r.Start), End: uint64(r.End),
		Local: bytesOf(r.Local.Addr(), &local), LocalPort: uint32(r.Local.Port()),
		Peer: bytesOf(r.Peer.Addr(), &peer), PeerPort: uint32(r.Peer.Port()),
		Role: uint32(r.Role), State: uint32(agentv1.FlowState_FLOW_STATE_LIVING), Reason: uint32(r.Reason), Connection: r.Cookie,
		Connections: r.Connections, ConnectFailures: r.ConnectFailures, Resets: r.Resets, Timeouts: r.Timeouts,
		RTT: r.RTT, MinRTT: r.MinRTT, BytesSent: r.BytesSent, BytesReceived: r.BytesReceived,
		Retransmits: r.Retransmits, RetransmittedBytes: r.RetransmittedBytes, SegmentsSent: r.SegmentsSent,
		ReceiveWindowLimited: r.ReceiveWindowLimited, SendBufferLimited: r.SendBufferLimited, Busy: r.Busy,
		Protocol: uint32(r.Protocol), PeerName: []byte(r.PeerName), UsualRTT: r.UsualRTT, MaxRTT: r.MaxRTT, Queue: r.Queue,
		Refused: r.Refused, GaveUp: r.GaveUp, AcceptQueueFull: r.AcceptQueueFull,
		UnreadBytes: r.UnreadBytes, UnsentBytes: r.UnsentBytes, RetransmitTimeout: r.RetransmitTimeout,
		Queries: r.Queries.Asked, QueryFailures: r.Queries.Failed, QueriesUnanswered: r.Queries.Unanswered,
		QueryTime: r.Queries.Time, MaxQueryTime: r.Queries.MaxTime, QueryCode: []byte(r.Queries.Code),
	}
	if r.Translated.IsValid() {
		f.Translated, f.TranslatedPort = bytesOf(r.Translated.Addr(), &translated), uint32(r.Translated.Port())
	}
	if r.TranslatedPeer.IsValid() {
		f.TranslatedPeer, f.TranslatedPeerPort = bytesOf(r.TranslatedPeer.Addr(), &translatedPeer), uint32(r.TranslatedPeer.Port())
	}
	if r.Closed {
		f.State = uint32(agentv1.FlowState_FLOW_STATE_CLOSED)
	}
	return f.Append(b)
}

// bytesOf returns the 4 or 16 bytes of an address, in buffer.
func bytesOf(a netip.Addr, buffer *[16]byte) []byte {
	if a.Is4() {
		v4 := a.As4()
		return buffer[:copy(buffer[:], v4[:])]
	}
	*buffer = a.As16()
	return buffer[:]
}
