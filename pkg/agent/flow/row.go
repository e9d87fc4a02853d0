package flow

import "net/netip"

// Role says which end of its connection a socket is.
type Role uint8

// The roles, by the numbers of FlowRole in metaflow.agent.v1.
const (
	RoleUnknown Role = iota
	RoleClient
	RoleServer
)

// End says how a connection ended.
type End uint8

// The ends, by the numbers of FlowEnd in metaflow.agent.v1.
const (
	// EndUnknown is of a connection that lives, or whose end nobody saw.
	EndUnknown End = iota
	// EndOrderly: the peer acknowledged the FIN.
	EndOrderly
	// EndReset: it was cut off by either end.
	EndReset
	// EndTimedOut: the peer did not answer any more.
	EndTimedOut
	// EndConnectFailed: it was never established.
	EndConnectFailed
)

// Counters only ever grow in the life of a connection. Those of a Row are of its time alone: over all rows of
// a connection they add up to the connection's own.
type Counters struct {
	// BytesSent and BytesReceived are payload, what was sent again counting once. BytesReceived may
	// count one byte more, for the peer's FIN.
	BytesSent, BytesReceived uint64
	// Retransmits counts segments sent again, those of the handshake too, but not those that the peer
	// said it had already: they were sent because an acknowledgement was late, and nobody waited for them. What is
	// known to be one of these only after it was reported counts against later ones.
	// RetransmittedBytes is the payload of all.
	Retransmits, RetransmittedBytes uint64
	// SegmentsSent counts segments with payload, each time they were sent.
	SegmentsSent uint64
	// Busy is how many microseconds there was anything to send, and ReceiveWindowLimited and
	// SendBufferLimited how many of them the peer's window and the send buffer held it back.
	Busy, ReceiveWindowLimited, SendBufferLimited uint64
}

// Row is what one end of one connection did between two moments.
type Row struct {
	// Start and End are nanoseconds since 1970. The first row of a connection starts at the latest
	// moment at which the connection was surely not there yet, which is the last dump before: the kernel
	// does not say when a connection began.
	Start, End int64
	// Namespace is the inode of the network namespace. Together with Cookie it tells the rows of one
	// connection from those of others; a socket that was connected anew keeps both.
	Namespace, Cookie uint64
	// Cgroup is the inode of the socket's control group (version 2) and UID its owner; Cgroup is 0 where
	// the connection was never seen alive.
	Cgroup uint64
	UID    uint32
	// Inode is the socket's, by which its process is found; of a server's that was never seen alive it is that of
	// the listening socket. 0 is unknown.
	Inode uint32
	// Local and Peer are never v4-mapped. The port of Peer is 0, and the address of Local may be
	// unspecified, when the kernel had cleared them by the time that the
	// connection was seen; that is of failed connects and of resets only.
	Local, Peer netip.AddrPort
	Role        Role
	Closed      bool // the last row of its connection, as far as can be known
	Reason      End

	// Connections is 1 in the first row of a connection that was established, if it began while
	// the table was watching. The others are 1 in the last row, when Reason says so.
	Connections, ConnectFailures, Resets, Timeouts uint32
	Counters
	RTT, MinRTT uint32 // microseconds at End, 0 when unknown
}

// countersOf are the counters of a connection since its beginning.
func countersOf(s *Socket) Counters {
	i := &s.Info
	retransmits := saturatingSub(uint64(i.Retransmits), uint64(i.Duplicates))
	if !s.established() {
		// A blocking connect that failed has cleared its counters, but this one.
		retransmits = max(retransmits, uint64(i.Unanswered))
	}
	return Counters{
		BytesSent:            i.sent(),
		BytesReceived:        i.BytesReceived,
		Retransmits:          retransmits,
		RetransmittedBytes:   i.BytesRetransmitted,
		SegmentsSent:         uint64(i.SegmentsSent),
		Busy:                 i.Busy,
		ReceiveWindowLimited: i.ReceiveWindowLimited,
		SendBufferLimited:    i.SendBufferLimited,
	}
}

// advance returns c brought up to o, which the kernel says now. No counter goes back: the kernel
// reads them one by one from a socket that goes on working, so that what is computed of two of them
// may be seen to shrink. Those of 32 bits begin again at 0 when they are full.
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

// extend brings a counter up to its lower 32 bits as they are now.
func extend(counter, now uint64) uint64 {
	if counter == 0 {
		return now
	}
	if d := uint32(now) - uint32(counter); d < 1<<31 {
		return counter + uint64(d)
	}
	return counter
}

// sub returns what c is beyond o, which is not greater in anything.
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
