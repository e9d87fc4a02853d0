package flows

import (
	"net/netip"

	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// Tags of the fields of a request and of a group that are read by name.
const (
	TagRequestAgentID = 1<<3 | signal.Bytes
	TagRequestCluster = 2<<3 | signal.Bytes
	TagRequestNode    = 3<<3 | signal.Bytes
	TagRequestGroups  = 4<<3 | signal.Bytes

	TagGroupNetworkNamespace = 1<<3 | signal.Varint
	TagGroupPodUID           = 2<<3 | signal.Bytes
	TagGroupPod              = 3<<3 | signal.Bytes
	TagGroupNamespace        = 4<<3 | signal.Bytes
	TagGroupWorkload         = 5<<3 | signal.Bytes
	TagGroupContainerID      = 6<<3 | signal.Bytes
	TagGroupContainer        = 7<<3 | signal.Bytes
	TagGroupProcess          = 8<<3 | signal.Bytes
	TagGroupFlows            = 9<<3 | signal.Bytes
)

// Tags of the fields of a flow.
const (
	tagStart                = signal.Tag(flow.FieldStart)<<3 | signal.Fixed64
	tagEnd                  = signal.Tag(flow.FieldEnd)<<3 | signal.Fixed64
	tagLocalAddress         = signal.Tag(flow.FieldLocalAddress)<<3 | signal.Bytes
	tagLocalPort            = signal.Tag(flow.FieldLocalPort)<<3 | signal.Varint
	tagPeerAddress          = signal.Tag(flow.FieldPeerAddress)<<3 | signal.Bytes
	tagPeerPort             = signal.Tag(flow.FieldPeerPort)<<3 | signal.Varint
	tagRole                 = signal.Tag(flow.FieldRole)<<3 | signal.Varint
	tagState                = signal.Tag(flow.FieldState)<<3 | signal.Varint
	tagReason               = signal.Tag(flow.FieldReason)<<3 | signal.Varint
	tagConnection           = signal.Tag(flow.FieldConnection)<<3 | signal.Fixed64
	tagConnections          = signal.Tag(flow.FieldConnections)<<3 | signal.Varint
	tagConnectFailures      = signal.Tag(flow.FieldConnectFailures)<<3 | signal.Varint
	tagResets               = signal.Tag(flow.FieldResets)<<3 | signal.Varint
	tagTimeouts             = signal.Tag(flow.FieldTimeouts)<<3 | signal.Varint
	tagBytesSent            = signal.Tag(flow.FieldBytesSent)<<3 | signal.Varint
	tagBytesReceived        = signal.Tag(flow.FieldBytesReceived)<<3 | signal.Varint
	tagRetransmits          = signal.Tag(flow.FieldRetransmits)<<3 | signal.Varint
	tagRetransmittedBytes   = signal.Tag(flow.FieldRetransmittedBytes)<<3 | signal.Varint
	tagSegmentsSent         = signal.Tag(flow.FieldSegmentsSent)<<3 | signal.Varint
	tagRTT                  = signal.Tag(flow.FieldRTT)<<3 | signal.Varint
	tagMinRTT               = signal.Tag(flow.FieldMinRTT)<<3 | signal.Varint
	tagReceiveWindowLimited = signal.Tag(flow.FieldReceiveWindowLimited)<<3 | signal.Varint
	tagSendBufferLimited    = signal.Tag(flow.FieldSendBufferLimited)<<3 | signal.Varint
	tagBusy                 = signal.Tag(flow.FieldBusy)<<3 | signal.Varint
)

// Flow is one Flow as it stands on the wire. Addresses point into its bytes.
type Flow struct {
	Start, End          uint64 // nanoseconds since the Unix epoch
	Local, Peer         []byte // 4 or 16 bytes when the flow is acceptable
	LocalPort, PeerPort uint32
	Role, State, Reason uint32 // numbers of FlowRole, FlowState and FlowEnd
	Connection          uint64

	Connections, ConnectFailures, Resets, Timeouts uint32
	RTT, MinRTT                                    uint32
	BytesSent, BytesReceived                       uint64
	Retransmits, RetransmittedBytes, SegmentsSent  uint64
	ReceiveWindowLimited, SendBufferLimited, Busy  uint64
}

// Read decodes a Flow into f, of which nothing remains. It reports whether b is one. As everywhere in
// protobuf, the last occurrence of a field counts.
func (f *Flow) Read(b []byte) bool {
	*f = Flow{}
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		if hi < 0 {
			return false
		}
		switch value := b[lo:hi]; tag {
		case tagStart:
			f.Start = signal.Uint64(tag, value)
		case tagEnd:
			f.End = signal.Uint64(tag, value)
		case tagLocalAddress:
			f.Local = value
		case tagLocalPort:
			f.LocalPort = signal.Uint32(tag, value)
		case tagPeerAddress:
			f.Peer = value
		case tagPeerPort:
			f.PeerPort = signal.Uint32(tag, value)
		case tagRole:
			f.Role = signal.Uint32(tag, value)
		case tagState:
			f.State = signal.Uint32(tag, value)
		case tagReason:
			f.Reason = signal.Uint32(tag, value)
		case tagConnection:
			f.Connection = signal.Uint64(tag, value)
		case tagConnections:
			f.Connections = signal.Uint32(tag, value)
		case tagConnectFailures:
			f.ConnectFailures = signal.Uint32(tag, value)
		case tagResets:
			f.Resets = signal.Uint32(tag, value)
		case tagTimeouts:
			f.Timeouts = signal.Uint32(tag, value)
		case tagBytesSent:
			f.BytesSent = signal.Uint64(tag, value)
		case tagBytesReceived:
			f.BytesReceived = signal.Uint64(tag, value)
		case tagRetransmits:
			f.Retransmits = signal.Uint64(tag, value)
		case tagRetransmittedBytes:
			f.RetransmittedBytes = signal.Uint64(tag, value)
		case tagSegmentsSent:
			f.SegmentsSent = signal.Uint64(tag, value)
		case tagRTT:
			f.RTT = signal.Uint32(tag, value)
		case tagMinRTT:
			f.MinRTT = signal.Uint32(tag, value)
		case tagReceiveWindowLimited:
			f.ReceiveWindowLimited = signal.Uint64(tag, value)
		case tagSendBufferLimited:
			f.SendBufferLimited = signal.Uint64(tag, value)
		case tagBusy:
			f.Busy = signal.Uint64(tag, value)
		}
		i = hi
	}
	return true
}

// Partition returns the Kafka partition of an acceptable flow. It is part of what is stored: see flow.Hash.
func (f *Flow) Partition(partitions int) int {
	return int(flow.Hash(end(f.Local, f.LocalPort), end(f.Peer, f.PeerPort)) % uint64(partitions))
}

func end(address []byte, port uint32) netip.AddrPort {
	a, _ := netip.AddrFromSlice(address)
	return netip.AddrPortFrom(a, uint16(port))
}
