package flow

import "net/netip"

// State is the state of a TCP socket, by the kernel's numbers.
type State uint8

// The states of TCP. StateSynReceived is of the request that waits for the last
// packet of the handshake, which no connection is yet.
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

// UnknownRTT is what the kernel has for a minimum round trip time that it never measured.
const UnknownRTT = ^uint32(0)

// Socket is what the kernel says of one socket at one moment, of a living one or, for the last time,
// of one that it destroys.
type Socket struct {
	// Cookie is of this socket and no other, for as long as the kernel runs. A socket that is
	// connected anew, after a failure or a disconnect, keeps its cookie.
	Cookie uint64
	State  State
	// Local and Peer are as the application bound them; IPv4 may be v4-mapped. When a
	// socket was disconnected before it was destroyed, Peer has port 0 and Local the unspecified
	// address, and all counters of Info are 0.
	Local, Peer netip.AddrPort
	// UID is the user that owns it. Cgroup is the inode of its control group (version 2), 0 when
	// the kernel did not say, which it never does of a socket it destroys.
	UID    uint32
	Cgroup uint64
	// Inode is the socket's in the file descriptors of its processes, 0 when it is in none any more.
	Inode uint32
	// ReceiveQueue is what came and was not read, SendQueue what was written and not
	// acknowledged, FIN and SYN counted as a byte each. Of a listening socket they are other things.
	ReceiveQueue, SendQueue uint32

	Info Info
}

// Info is the part of the kernel's tcp_info that flows are made of. What a kernel is too old to say is
// 0, of MinRTT UnknownRTT. Durations are as the kernel counts them, in its ticks of 1 to 10 ms.
type Info struct {
	// Unanswered is how often the oldest segment was sent again since the peer last
	// acknowledged anything, and Probes how many probes in a row had no answer.
	Unanswered, Probes uint8
	RTT, MinRTT        uint32 // microseconds
	// Retransmits counts segments sent again, those of the handshake too, and Duplicates those that the
	// peer said it had got twice (DSACK, RFC 2883).
	Retransmits, Duplicates uint32
	// BytesAcked counts what the peer acknowledged, one more for the SYN of the end that
	// connected and one for a FIN. BytesReceived counts what came, one more for a FIN.
	BytesAcked, BytesReceived uint64
	// BytesSent counts payload each time it was sent, BytesRetransmitted what of it was
	// sent again.
	BytesSent, BytesRetransmitted uint64
	SegmentsSent                  uint32 // with payload, each time
	SegmentsReceived              uint32 // with payload
	// Delivered counts segments that arrived, the SYN or SYN-ACK too: it is not 0
	// once a connection is established.
	Delivered uint32
	// Busy is how long there was anything to send, and of this ReceiveWindowLimited how long
	// the peer's window held it back and SendBufferLimited the send buffer. Microseconds.
	Busy, ReceiveWindowLimited, SendBufferLimited uint64
	// LastSent, LastReceived and LastAck are how long ago payload was sent, payload came and an
	// acknowledgement came. Milliseconds; of no meaning where there was none yet.
	LastSent, LastReceived, LastAck uint32
}

// established reports whether the handshake was ever completed.
func (s *Socket) established() bool {
	i := &s.Info
	return i.Delivered > 0 || i.MinRTT != UnknownRTT || i.BytesAcked > 0 || i.BytesReceived > 0 || i.RTT > 0
}

// disconnected reports whether the kernel cleared the socket before it destroyed it. It does so when the
// application closes with SO_LINGER 0, when a blocking connect fails, and when the
// listening socket of a connection that nobody accepted is closed.
func (s *Socket) disconnected() bool {
	return s.State == StateClose && s.Peer.Port() == 0
}

// sent is the payload that was sent, once each byte.
func (i *Info) sent() uint64 {
	if i.BytesSent == 0 { // a kernel before 4.19, or nothing sent
		if i.SegmentsSent == 0 {
			return 0
		}
		return i.BytesAcked
	}
	return saturatingSub(i.BytesSent, i.BytesRetransmitted)
}

// beyond is what the peer acknowledged beyond payload: the SYN of the end that connected and a FIN, if it was
// sent. It is known when nothing waits for an acknowledgement.
func (s *Socket) beyond() (n uint64, known bool) {
	i := &s.Info
	if s.SendQueue > 0 || s.disconnected() || i.BytesSent == 0 && i.SegmentsSent > 0 {
		return 0, false
	}
	return saturatingSub(i.BytesAcked, i.sent()), true
}

// end says how the connection of a socket that was destroyed ended, from its last numbers.
//
// An orderly end is one whose FIN the peer acknowledged. Everything else was cut off. The kernel does
// not keep why, but a peer that resets a connection does so in answer to a segment, while one
// that is gone leaves retransmissions or probes unanswered.
func (s *Socket) end(role Role) End {
	i := &s.Info
	if !s.established() {
		return EndConnectFailed
	}
	if s.disconnected() {
		return EndReset
	}
	n, known := s.beyond()
	if known && (n >= 2 || n == 1 && role == RoleServer) {
		return EndOrderly
	}
	if !known && s.SendQueue == 0 {
		return EndUnknown // the kernel is too old to say
	}
	if i.Unanswered >= timedOutAfter || i.Probes >= timedOutAfter {
		return EndTimedOut
	}
	return EndReset
}

// timedOutAfter is how many retransmissions or probes in a row without an answer make a
// connection that was cut off one that timed out. The kernel gives up after at least 3 unless the
// application asks for less, and a reset usually answers the first.
const timedOutAfter = 2

// role says which end of its connection the socket is, RoleUnknown when its numbers do not tell. They nearly
// always do: only the end that connected has had a SYN acknowledged, and of a living socket
// the state says whether there was a FIN too. What remains is a socket destroyed after exactly
// one acknowledgement beyond its payload, which was the SYN of a client that was cut off or the
// FIN of a server.
func (s *Socket) role() Role {
	if !s.established() {
		return RoleClient
	}
	n, known := s.beyond()
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
