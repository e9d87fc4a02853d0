package flow

import "net/netip"

// Role is the end of a connection that a socket is.
type Role uint8

// Roles, with the numbers of FlowRole in metaflow.agent.v1.
const (
	RoleUnknown Role = iota
	RoleClient
	RoleServer
)

// End is the way a connection ended.
type End uint8

// Ends, with the numbers of FlowEnd in metaflow.agent.v1.
const (
	// EndUnknown: the connection lives, or its end was not observed.
	EndUnknown End = iota
	// EndOrderly: the peer acknowledged the FIN, or had sent its own before
	// anything else ended the connection.
	EndOrderly
	// EndReset: either side aborted it.
	EndReset
	// EndTimedOut: the peer stopped answering.
	EndTimedOut
	// EndConnectFailed: it was never established.
	EndConnectFailed
)

// Protocol is what a row is about.
type Protocol uint8

// Protocols, with the numbers of FlowProtocol in metaflow.agent.v1.
const (
	ProtocolTCP Protocol = iota
	ProtocolDNS
)

// Counters of a connection only grow. Those of a Row cover its own period;
// summed over all rows of a connection they equal the connection's totals.
type Counters struct {
	// BytesSent and BytesReceived count payload; retransmitted bytes count
	// once. BytesReceived may include one extra byte for the peer's FIN.
	BytesSent, BytesReceived uint64
	// Retransmits counts retransmitted segments, including those of the
	// handshake. It excludes segments that the peer reported as duplicates: a
	// late acknowledgement caused them, and they delayed nothing. When the peer
	// reports a duplicate only after its row was sent, it reduces a later row.
	// RetransmittedBytes is the payload of all retransmitted segments.
	Retransmits, RetransmittedBytes uint64
	// SegmentsSent counts transmissions of segments with payload.
	SegmentsSent uint64
	// Busy is the time in microseconds during which there was data to send.
	// ReceiveWindowLimited and SendBufferLimited are the parts of it during
	// which the peer's window or the send buffer limited the transfer.
	Busy, ReceiveWindowLimited, SendBufferLimited uint64
	// RetransmitTimeout is the time in microseconds for which the connection
	// stood still until retransmission timers expired and the peer answered
	// again. Kernels before 6.7 do not report it.
	RetransmitTimeout uint64
}

// Queries counts DNS queries of one client for one name to one resolver.
type Queries struct {
	// Asked counts questions, Failed the answers with an error code, Unanswered
	// the questions that got no answer in time.
	Asked, Failed, Unanswered uint32
	// Time is the sum of the times to the answers, MaxTime the longest,
	// in microseconds.
	Time    uint64
	MaxTime uint32
	// Code is the last error code by name.
	Code string
}

// Row holds the activity of one end of one connection over a period. Rows about
// DNS queries, full accept queues and addresses use a part of the fields; schema/
// describes the kinds.
type Row struct {
	Protocol Protocol
	// Start and End are Unix times in nanoseconds. The kernel does not record
	// when a connection began, so the first row starts at the latest moment at
	// which the connection surely did not exist, which is the dump before it.
	Start, End int64
	// Namespace is the inode of the network namespace. Namespace and Cookie
	// together identify a socket; a socket that is connected again keeps both.
	Namespace, Cookie uint64
	// Cgroup is the inode of the socket's control group (version 2), 0 when no
	// dump showed the connection. UID is the socket's owner.
	Cgroup uint64
	UID    uint32
	// Inode is the socket's inode, which identifies its process. For a server's
	// connection that no dump showed, it is the inode of the listening socket.
	// 0 means unknown.
	Inode uint32
	// Local and Peer are never v4-mapped. The port of Peer is 0, and the
	// address of Local may be unspecified, when the kernel had cleared them
	// before the connection was observed. That happens only to failed connects
	// and resets.
	Local, Peer netip.AddrPort
	// PeerName is the name that the namespace resolved to Peer before it
	// connected, or the name in DNS questions.
	PeerName string
	// Translated is Local as the peer sees it, TranslatedPeer the peer behind a
	// translated Peer. The zero AddrPort means not translated, or unknown.
	Translated, TranslatedPeer netip.AddrPort

	Role   Role
	Closed bool // the connection's last row, as far as the Table can know
	Reason End

	// Connections is 1 in the first row of an established connection that began
	// while the table was watching. The other three are 1 in the last row when
	// Reason is that kind of end.
	Connections, ConnectFailures, Resets, Timeouts uint32
	// Refused is 1 with ConnectFailures when the peer answered that nothing
	// listens. GaveUp is 1 in the last row when the local end was closed while
	// it waited for an answer.
	Refused, GaveUp uint32
	// AcceptQueueFull counts the dumps that showed a full accept queue.
	AcceptQueueFull uint32
	Counters
	// RTT is the smoothed round trip time at End, MinRTT and MaxRTT are the
	// extremes of the period as far as dumps show them, and UsualRTT is that of
	// the edge over the last hours. Queue is the part of MaxRTT that this
	// connection's own bytes cause. Microseconds, 0 when unknown.
	RTT, MinRTT, MaxRTT, UsualRTT, Queue uint32
	// UnreadBytes is the most that lay unread over two dumps in a row,
	// UnsentBytes the most that a dump showed waiting for its first transmission.
	UnreadBytes, UnsentBytes uint64
	Queries                  Queries
}

// countersOf returns the totals of a socket's connection since it began.
func countersOf(s *Socket) Counters {
	i := &s.Info
	retransmits := saturatingSub(uint64(i.Retransmits), uint64(i.Duplicates))
	if !s.established() {
		// A failed blocking connect clears every counter except this one.
		retransmits = max(retransmits, uint64(i.Unanswered))
	}
	return Counters{
		BytesSent:            s.sent(),
		BytesReceived:        i.BytesReceived,
		Retransmits:          retransmits,
		RetransmittedBytes:   i.BytesRetransmitted,
		SegmentsSent:         uint64(i.SegmentsSent),
		Busy:                 i.Busy,
		ReceiveWindowLimited: i.ReceiveWindowLimited,
		SendBufferLimited:    i.SendBufferLimited,
		RetransmitTimeout:    i.RetransmitTimeout,
	}
}

// advance returns c raised to the kernel's current values o. No counter goes
// back: the kernel reads the fields one by one from a socket that is still
// working, so a value derived from two of them may appear to shrink. Counters
// of 32 bits wrap around.
func (c Counters) advance(o Counters) Counters {
	return Counters{
		BytesSent:            max(c.BytesSent, o.BytesSent),
		BytesReceived:        max(c.BytesReceived, o.BytesReceived),
		Retransmits:          extend(c.Retransmits, o.Retransmits),
		RetransmittedBytes:   max(c.RetransmittedBytes, o.RetransmittedBytes),
		SegmentsSent:         extend(c.SegmentsSent, o.SegmentsSent),
		Busy:                 max(c.Busy, o.Busy),
		ReceiveWindowLimited: max(c.ReceiveWindowLimited, o.ReceiveWindowLimited),
		SendBufferLimited:    max(c.SendBufferLimited, o.SendBufferLimited),
		RetransmitTimeout:    max(c.RetransmitTimeout, o.RetransmitTimeout),
	}
}

// extend advances a 64-bit counter to match its lower 32 bits in now.
func extend(counter, now uint64) uint64 {
	if counter == 0 {
		return now
	}
	if d := uint32(now) - uint32(counter); d < 1<<31 {
		return counter + uint64(d)
	}
	return counter
}

// sub returns c minus o; no counter of o may exceed that of c.
func (c Counters) sub(o Counters) Counters {
	return Counters{
		BytesSent:            c.BytesSent - o.BytesSent,
		BytesReceived:        c.BytesReceived - o.BytesReceived,
		Retransmits:          c.Retransmits - o.Retransmits,
		RetransmittedBytes:   c.RetransmittedBytes - o.RetransmittedBytes,
		SegmentsSent:         c.SegmentsSent - o.SegmentsSent,
		Busy:                 c.Busy - o.Busy,
		ReceiveWindowLimited: c.ReceiveWindowLimited - o.ReceiveWindowLimited,
		SendBufferLimited:    c.SendBufferLimited - o.SendBufferLimited,
		RetransmitTimeout:    c.RetransmitTimeout - o.RetransmitTimeout,
	}
}
