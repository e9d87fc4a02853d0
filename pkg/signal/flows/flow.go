package flows

import (
	"net/netip"

	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
)

// Tags of the fields of a request and of a group that are read by name.
const (
	TagRequestAgentID = 1<<3 | traces.Bytes
	TagRequestCluster = 2<<3 | traces.Bytes
	TagRequestNode    = 3<<3 | traces.Bytes
	TagRequestGroups  = 4<<3 | traces.Bytes

	TagGroupNetworkNamespace = 1<<3 | traces.Varint
	TagGroupPodUID           = 2<<3 | traces.Bytes
	TagGroupPod              = 3<<3 | traces.Bytes
	TagGroupNamespace        = 4<<3 | traces.Bytes
	TagGroupWorkload         = 5<<3 | traces.Bytes
	TagGroupContainerID      = 6<<3 | traces.Bytes
	TagGroupContainer        = 7<<3 | traces.Bytes
	TagGroupProcess          = 8<<3 | traces.Bytes
	TagGroupFlows            = 9<<3 | traces.Bytes
)

// Tags of the fields of a flow.
const (
	tagStart                = traces.Tag(flow.FieldStart)<<3 | traces.Fixed64
	tagEnd                  = traces.Tag(flow.FieldEnd)<<3 | traces.Fixed64
	tagLocalAddress         = traces.Tag(flow.FieldLocalAddress)<<3 | traces.Bytes
	tagLocalPort            = traces.Tag(flow.FieldLocalPort)<<3 | traces.Varint
	tagPeerAddress          = traces.Tag(flow.FieldPeerAddress)<<3 | traces.Bytes
	tagPeerPort             = traces.Tag(flow.FieldPeerPort)<<3 | traces.Varint
	tagRole                 = traces.Tag(flow.FieldRole)<<3 | traces.Varint
	tagState                = traces.Tag(flow.FieldState)<<3 | traces.Varint
	tagReason               = traces.Tag(flow.FieldReason)<<3 | traces.Varint
	tagConnection           = traces.Tag(flow.FieldConnection)<<3 | traces.Fixed64
	tagConnections          = traces.Tag(flow.FieldConnections)<<3 | traces.Varint
	tagConnectFailures      = traces.Tag(flow.FieldConnectFailures)<<3 | traces.Varint
	tagResets               = traces.Tag(flow.FieldResets)<<3 | traces.Varint
	tagTimeouts             = traces.Tag(flow.FieldTimeouts)<<3 | traces.Varint
	tagBytesSent            = traces.Tag(flow.FieldBytesSent)<<3 | traces.Varint
	tagBytesReceived        = traces.Tag(flow.FieldBytesReceived)<<3 | traces.Varint
	tagRetransmits          = traces.Tag(flow.FieldRetransmits)<<3 | traces.Varint
	tagRetransmittedBytes   = traces.Tag(flow.FieldRetransmittedBytes)<<3 | traces.Varint
	tagSegmentsSent         = traces.Tag(flow.FieldSegmentsSent)<<3 | traces.Varint
	tagRTT                  = traces.Tag(flow.FieldRTT)<<3 | traces.Varint
	tagMinRTT               = traces.Tag(flow.FieldMinRTT)<<3 | traces.Varint
	tagReceiveWindowLimited = traces.Tag(flow.FieldReceiveWindowLimited)<<3 | traces.Varint
	tagSendBufferLimited    = traces.Tag(flow.FieldSendBufferLimited)<<3 | traces.Varint
	tagBusy                 = traces.Tag(flow.FieldBusy)<<3 | traces.Varint
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
		tag, lo, hi := traces.Next(b, i)
		if hi < 0 {
			return false
		}
		switch value := b[lo:hi]; tag {
		case tagStart:
			f.Start = traces.Uint64(tag, value)
		case tagEnd:
			f.End = traces.Uint64(tag, value)
		case tagLocalAddress:
			f.Local = value
		case tagLocalPort:
			f.LocalPort = traces.Uint32(tag, value)
		case tagPeerAddress:
			f.Peer = value
		case tagPeerPort:
			f.PeerPort = traces.Uint32(tag, value)
		case tagRole:
			f.Role = traces.Uint32(tag, value)
		case tagState:
			f.State = traces.Uint32(tag, value)
		case tagReason:
			f.Reason = traces.Uint32(tag, value)
		case tagConnection:
			f.Connection = traces.Uint64(tag, value)
		case tagConnections:
			f.Connections = traces.Uint32(tag, value)
		case tagConnectFailures:
			f.ConnectFailures = traces.Uint32(tag, value)
		case tagResets:
			f.Resets = traces.Uint32(tag, value)
		case tagTimeouts:
			f.Timeouts = traces.Uint32(tag, value)
		case tagBytesSent:
			f.BytesSent = traces.Uint64(tag, value)
		case tagBytesReceived:
			f.BytesReceived = traces.Uint64(tag, value)
		case tagRetransmits:
			f.Retransmits = traces.Uint64(tag, value)
		case tagRetransmittedBytes:
			f.RetransmittedBytes = traces.Uint64(tag, value)
		case tagSegmentsSent:
			f.SegmentsSent = traces.Uint64(tag, value)
		case tagRTT:
			f.RTT = traces.Uint32(tag, value)
		case tagMinRTT:
			f.MinRTT = traces.Uint32(tag, value)
		case tagReceiveWindowLimited:
			f.ReceiveWindowLimited = traces.Uint64(tag, value)
		case tagSendBufferLimited:
			f.SendBufferLimited = traces.Uint64(tag, value)
		case tagBusy:
			f.Busy = traces.Uint64(tag, value)
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
