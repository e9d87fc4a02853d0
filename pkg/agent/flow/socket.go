package flow

import "net/netip"

// State is the state of a TCP socket, with the kernel's numbers.
type State uint8

// TCP states. StateSynReceived belongs to a request that waits for the last
// packet of the handshake and is not a connection yet.
const (
	StateEstablished State = 1 + iota
	StateSynSent
	StateSynReceived
	StateFinWait1
	StateFinWait2
	StateTimeWait
	StateClose
	StateCloseWait
	StateLastAck
	StateListen
	StateClosing
)

// UnknownRTT is the kernel's minimum round trip time before the first
// measurement.
const UnknownRTT = ^uint32(0)

// Socket is the kernel's report of one socket at one moment: a living one in a
// dump, or the final state in a destroy notification.
type Socket struct {
	// Cookie identifies the socket uniquely while the kernel runs. A socket
	// that is connected again after a failure or a disconnect keeps its cookie.
	Cookie uint64
	State  State
	// Local and Peer are the addresses as the application bound them; IPv4 may
	// be v4-mapped. When a socket was disconnected before it was destroyed,
	// Peer has port 0, Local is the unspecified address, and all counters of
	// Info are 0.
	Local, Peer netip.AddrPort
	// UID is the user that owns the socket. Cgroup is the inode of its control
	// group (version 2); it is 0 when the kernel did not send it, and destroy
	// notifications never contain it.
	UID    uint32
	Cgroup uint64
	// Inode is the socket's inode in the file descriptors of its processes, 0
	// when no process holds it any more.
	Inode uint32
	// ReceiveQueue counts the bytes received but not read, SendQueue the bytes
	// written but not acknowledged; a FIN and a SYN count as one byte each. For
	// a listening socket the kernel uses both fields otherwise.
	ReceiveQueue, SendQueue uint32
	// Mini marks one of the kernel's mini-sockets, which has no tcp_info. It
	// stands for a connection that is not accepted yet, or for one whose own
	// end is closed. The latter are listed as TIME-WAIT or FIN-WAIT-2 under the
	// cookie of the socket that they replace, which was destroyed then.
	Mini bool

	Info Info
}

// Info is the part of the kernel's tcp_info that flows use. Fields that the
// kernel is too old to send are 0, MinRTT is UnknownRTT. The kernel measures
// durations in its ticks of 1 to 10 ms.
type Info struct {
	// Unanswered counts the retransmissions of the oldest segment since the
	// peer last acknowledged anything. Probes counts the consecutive probes
	// without an answer.
	Unanswered, Probes uint8
	RTT, MinRTT        uint32 // microseconds
	// Retransmits counts retransmitted segments, including those of the
	// handshake. Duplicates counts the segments that the peer reported as
	// received twice (DSACK, RFC 2883).
	Retransmits, Duplicates uint32
	// BytesAcked counts the bytes that the peer acknowledged, plus one for the
	// SYN of the connecting end and one for a FIN. BytesReceived counts the
	// bytes received, plus one for a FIN.
	BytesAcked, BytesReceived uint64
	// BytesSent counts every transmission of payload bytes, BytesRetransmitted
	// the retransmissions among them.
	BytesSent, BytesRetransmitted uint64
	SegmentsSent                  uint32 // transmissions of segments with payload
	SegmentsReceived              uint32 // with payload
	// Delivered counts the segments that arrived, including the SYN or SYN-ACK:
	// it is not 0 once a connection is established.
	Delivered uint32
	// Busy is the time during which there was data to send.
	// ReceiveWindowLimited and SendBufferLimited are the parts of it during
	// which the peer's window or the send buffer limited the transfer.
	// Microseconds.
	Busy, ReceiveWindowLimited, SendBufferLimited uint64
	// RetransmitTimeout is the time for which the connection stood still until
	// retransmission timers expired and the peer answered again. Microseconds.
	RetransmitTimeout uint64
	// LastSent, LastReceived and LastAck are the times since payload was last
	// sent, payload last arrived and an acknowledgement last arrived.
	// Milliseconds; meaningless before the first.
	LastSent, LastReceived, LastAck uint32
}

// established reports whether the handshake completed.
func (s *Socket) established() bool {
	i := &s.Info
	return i.Delivered > 0 || i.MinRTT != UnknownRTT || i.BytesAcked > 0 || i.BytesReceived > 0 || i.RTT > 0
}

// disconnected reports whether the kernel cleared the socket before it
// destroyed it. It does so when the application closes with SO_LINGER 0, when a
// blocking connect fails, and when the listening socket of a connection that
// was never accepted is closed.
func (s *Socket) disconnected() bool {
	return s.State == StateClose && s.Peer.Port() == 0
}

// sent returns the payload bytes sent, each byte counted once.
//
// The kernel counts a segment as sent even when a queue of its host drops it,
// and does not count the next attempt as a retransmission. So sent also limits
// the result to what the peer acknowledged and what still waits for an
// acknowledgement.
func (s *Socket) sent() uint64 {
	i := &s.Info
	if i.BytesSent == 0 { // a kernel before 4.19, or nothing sent
		if i.SegmentsSent == 0 {
			return 0
		}
		return i.BytesAcked
	}
	return min(saturatingSub(i.BytesSent, i.BytesRetransmitted), i.BytesAcked+uint64(s.SendQueue))
}

// droppedLocally reports whether a queue of the socket's own host has dropped
// segments: more bytes were sent than can be accounted for.
func (s *Socket) droppedLocally() bool {
	return saturatingSub(s.Info.BytesSent, s.Info.BytesRetransmitted) > s.Info.BytesAcked+uint64(s.SendQueue)
}

// ackedControl returns the acknowledged bytes that are not payload: one for the
// SYN of the connecting end and one for a FIN, if it was sent. known is false
// while bytes wait for an acknowledgement, and after local drops, which make
// the payload uncertain.
func (s *Socket) ackedControl() (n uint64, known bool) {
	i := &s.Info
	if s.SendQueue > 0 || s.disconnected() || i.BytesSent == 0 && i.SegmentsSent > 0 || s.droppedLocally() {
		return 0, false
	}
	return saturatingSub(i.BytesAcked, s.sent()), true
}

// end derives from a destroyed socket's final counters how its connection
// ended.
//
// The end is orderly when the peer acknowledged the FIN; otherwise the
// connection was cut off. The kernel does not record why. But a peer that
// resets a connection does so in answer to a segment, while a peer that is gone
// leaves retransmissions or probes unanswered.
func (s *Socket) end(role Role) End {
	i := &s.Info
	if !s.established() {
		return EndConnectFailed
	}
	if s.disconnected() {
		return EndReset
	}
	n, known := s.ackedControl()
	if known && (n >= 2 || n == 1 && role == RoleServer) {
		return EndOrderly
	}
	if !known && s.SendQueue == 0 {
		return EndUnknown // an old kernel, or local drops: nothing shows whether the FIN was acknowledged
	}
	if i.Unanswered >= timedOutAfter || i.Probes >= timedOutAfter {
		return EndTimedOut
	}
	return EndReset
}

// timedOutAfter is the number of consecutive unanswered retransmissions or
// probes that make a connection which was cut off count as timed out. The
// kernel gives up after at least 3 unless the application asks for less, and a
// reset usually answers the first.
const timedOutAfter = 2

// role derives from the counters which end of its connection the socket is, or
// returns RoleUnknown. They nearly always decide it: only the connecting end
// has had a SYN acknowledged, and a living socket's state shows whether a FIN
// was acknowledged too. The exception is a socket destroyed with exactly one
// acknowledged byte beyond its payload: either the SYN of a client that was cut
// off or the FIN of a server.
func (s *Socket) role() Role {
	if !s.established() {
		return RoleClient
	}
	n, known := s.ackedControl()
	switch {
	case !known:
		return RoleUnknown
	case n == 0:
		return RoleServer
	case n >= 2:
		return RoleClient
	}
	switch s.State {
	case StateEstablished, StateCloseWait:
		return RoleClient
	case StateFinWait2:
		return RoleServer
	default:
		return RoleUnknown
	}
}

func saturatingSub(a, b uint64) uint64 {
	if a < b {
		return 0
	}
	return a - b
}

// peerClosed reports whether the peer has sent its FIN.
func (s *Socket) peerClosed() bool {
	return s.State == StateCloseWait || s.State == StateLastAck || s.State == StateClosing
}
