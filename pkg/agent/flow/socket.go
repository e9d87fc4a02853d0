package flow

import (
	"net/netip"
	"time"
)

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
	// RTTDeviation is the mean deviation of round trip times from RTT. Microseconds.
	RTTDeviation uint32
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
	// PacketsReceived counts all segments received, also those without payload.
	PacketsReceived uint32
	// Unsent is the number of bytes in the send queue that were never sent,
	// InFlight the number of segments that were sent and not acknowledged.
	Unsent, InFlight uint32
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

// outcome derives from a destroyed socket's final counters how its connection
// ended.
//
// The end is orderly when the peer acknowledged the FIN; otherwise the
// connection was cut off. The kernel does not record why. But a peer that
// resets a connection does so in answer to a segment, while a peer that is gone
// leaves retransmissions or probes unanswered. A reset that could cut nothing
// off is an orderly end too: see cutNothing.
func (s *Socket) outcome(role Role) outcome {
	i := &s.Info
	if !s.established() {
		return outcome{end: EndConnectFailed, refused: s.refused()}
	}
	if s.disconnected() {
		return aborted(role)
	}
	n, known := s.ackedControl()
	switch {
	case known && (n >= 2 || n == 1 && role == RoleServer):
		// If nothing came, not even the peer's FIN, this end closed first.
		asked := role == RoleClient && s.awaitsAnswer()
		return outcome{end: EndOrderly, gaveUp: asked && i.BytesReceived == 0, asked: asked && i.SegmentsReceived > 0}
	case !known && s.SendQueue == 0:
		return outcome{} // an old kernel, or local drops: nothing shows whether the FIN was acknowledged
	case i.Unanswered >= timedOutAfter || i.Probes >= timedOutAfter:
		return outcome{end: EndTimedOut}
	case role == RoleClient && s.ReceiveQueue > farewellBytes:
		return outcome{end: EndReset, gaveUp: true} // it closed with an answer unread, which its own kernel turned into a reset
	case s.cutNothing(role):
		return outcome{end: EndOrderly}
	default:
		return outcome{end: EndReset}
	}
}

// aborted is the outcome of a connection whose process closed it with SO_LINGER
// 0, or whose listening socket was closed before it was accepted.
func aborted(role Role) outcome {
	return outcome{end: EndReset, gaveUp: role == RoleClient}
}

// farewellBytes is the most that a server is expected to send when it closes an
// idle connection: close_notify of TLS, GOAWAY of HTTP/2, and the FIN.
const farewellBytes = 512

// idleBeforeReset is the time without payload after which a client's connection
// rests between two requests rather than between two segments of an answer.
const idleBeforeReset = time.Second

// cutNothing reports whether nothing was under way on a connection that was
// reset: the peer had acknowledged everything and the last payload was the
// answer, or the peer's FIN had arrived, which a server does not read while it
// works.
func (s *Socket) cutNothing(role Role) bool {
	if role == RoleServer {
		return s.ReceiveQueue == 1 || s.SendQueue <= 1 && s.awaitsAnswer() || s.Info.SegmentsSent+s.Info.SegmentsReceived == 0
	}
	if s.Info.SegmentsSent+s.Info.SegmentsReceived == 0 {
		return true
	}
	return s.SendQueue <= 1 && !s.awaitsAnswer() && s.idle() >= idleBeforeReset
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

// refused reports whether the peer answered a failed connect. A blocking connect
// has cleared the number of packets when it fails; then the SYN was answered
// unless it was repeated.
func (s *Socket) refused() bool {
	return s.Info.PacketsReceived > 0 || s.disconnected() && s.Info.Unanswered == 0
}

// awaitsAnswer reports whether payload was sent after the last was received. The
// kernel's clock has ticks of some milliseconds. Within one tick, only an
// exchange of single segments shows its order.
func (s *Socket) awaitsAnswer() bool {
	i := &s.Info
	if i.SegmentsSent == 0 || i.SegmentsReceived == 0 || i.LastSent != i.LastReceived {
		return i.SegmentsSent > 0 && (i.SegmentsReceived == 0 || i.LastSent < i.LastReceived)
	}
	return i.SegmentsSent == i.SegmentsReceived+1
}

// unread returns the payload bytes that the process has not read. In both
// counts the kernel includes the peer's FIN.
func (s *Socket) unread() uint64 {
	n := uint64(s.ReceiveQueue)
	if n > 0 && s.peerClosed() {
		n--
	}
	return n
}
