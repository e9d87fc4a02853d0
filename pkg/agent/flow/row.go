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
}

// Row holds the activity of one end of one connection over a period.
type Row struct {
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
	Role        Role
	Closed      bool // the connection's last row, as far as the Table can know
	Reason      End

	// Connections is 1 in the first row of an established connection that began
	// while the table was watching. The other three are 1 in the last row when
	// Reason is that kind of end.
	Connections, ConnectFailures, Resets, Timeouts uint32
	Counters
	RTT, MinRTT uint32 // microseconds, measured at End; 0 when unknown
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
	}
}
