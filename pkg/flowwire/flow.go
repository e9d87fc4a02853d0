package flowwire

import (
	"net/netip"

	"github.com/metaflowys/metaflow-server/pkg/flow"
	"github.com/metaflowys/metaflow-server/pkg/otlp"
)

// Tags of the fields of a request and of a group that are read by name.
const (
	TagRequestAgentID = 1<<3 | otlp.Bytes
	TagRequestCluster = 2<<3 | otlp.Bytes
	TagRequestNode    = 3<<3 | otlp.Bytes
	TagRequestGroups  = 4<<3 | otlp.Bytes

	TagGroupNetworkNamespace = 1<<3 | otlp.Varint
	TagGroupPodUID           = 2<<3 | otlp.Bytes
	TagGroupPod              = 3<<3 | otlp.Bytes
	TagGroupNamespace        = 4<<3 | otlp.Bytes
	TagGroupWorkload         = 5<<3 | otlp.Bytes
	TagGroupContainerID      = 6<<3 | otlp.Bytes
	TagGroupContainer        = 7<<3 | otlp.Bytes
	TagGroupProcess          = 8<<3 | otlp.Bytes
	TagGroupFlows            = 9<<3 | otlp.Bytes
)

// Tags of the fields of a flow.
const (
	tagStart                = otlp.Tag(flow.FieldStart)<<3 | otlp.Fixed64
	tagEnd                  = otlp.Tag(flow.FieldEnd)<<3 | otlp.Fixed64
	tagLocalAddress         = otlp.Tag(flow.FieldLocalAddress)<<3 | otlp.Bytes
	tagLocalPort            = otlp.Tag(flow.FieldLocalPort)<<3 | otlp.Varint
	tagPeerAddress          = otlp.Tag(flow.FieldPeerAddress)<<3 | otlp.Bytes
	tagPeerPort             = otlp.Tag(flow.FieldPeerPort)<<3 | otlp.Varint
	tagRole                 = otlp.Tag(flow.FieldRole)<<3 | otlp.Varint
	tagState                = otlp.Tag(flow.FieldState)<<3 | otlp.Varint
	tagReason               = otlp.Tag(flow.FieldReason)<<3 | otlp.Varint
	tagConnection           = otlp.Tag(flow.FieldConnection)<<3 | otlp.Fixed64
	tagConnections          = otlp.Tag(flow.FieldConnections)<<3 | otlp.Varint
	tagConnectFailures      = otlp.Tag(flow.FieldConnectFailures)<<3 | otlp.Varint
	tagResets               = otlp.Tag(flow.FieldResets)<<3 | otlp.Varint
	tagTimeouts             = otlp.Tag(flow.FieldTimeouts)<<3 | otlp.Varint
	tagBytesSent            = otlp.Tag(flow.FieldBytesSent)<<3 | otlp.Varint
	tagBytesReceived        = otlp.Tag(flow.FieldBytesReceived)<<3 | otlp.Varint
	tagRetransmits          = otlp.Tag(flow.FieldRetransmits)<<3 | otlp.Varint
	tagRetransmittedBytes   = otlp.Tag(flow.FieldRetransmittedBytes)<<3 | otlp.Varint
	tagSegmentsSent         = otlp.Tag(flow.FieldSegmentsSent)<<3 | otlp.Varint
	tagRTT                  = otlp.Tag(flow.FieldRTT)<<3 | otlp.Varint
	tagMinRTT               = otlp.Tag(flow.FieldMinRTT)<<3 | otlp.Varint
	tagReceiveWindowLimited = otlp.Tag(flow.FieldReceiveWindowLimited)<<3 | otlp.Varint
	tagSendBufferLimited    = otlp.Tag(flow.FieldSendBufferLimited)<<3 | otlp.Varint
	tagBusy                 = otlp.Tag(flow.FieldBusy)<<3 | otlp.Varint
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
		tag, lo, hi := otlp.Next(b, i)
		if hi < 0 {
			return false
		}
		switch value := b[lo:hi]; tag {
		case tagStart:
			f.Start = otlp.Uint64(tag, value)
		case tagEnd:
			f.End = otlp.Uint64(tag, value)
		case tagLocalAddress:
			f.Local = value
		case tagLocalPort:
			f.LocalPort = otlp.Uint32(tag, value)
		case tagPeerAddress:
			f.Peer = value
		case tagPeerPort:
			f.PeerPort = otlp.Uint32(tag, value)
		case tagRole:
			f.Role = otlp.Uint32(tag, value)
		case tagState:
			f.State = otlp.Uint32(tag, value)
		case tagReason:
			f.Reason = otlp.Uint32(tag, value)
		case tagConnection:
			f.Connection = otlp.Uint64(tag, value)
		case tagConnections:
			f.Connections = otlp.Uint32(tag, value)
		case tagConnectFailures:
			f.ConnectFailures = otlp.Uint32(tag, value)
		case tagResets:
			f.Resets = otlp.Uint32(tag, value)
		case tagTimeouts:
			f.Timeouts = otlp.Uint32(tag, value)
		case tagBytesSent:
			f.BytesSent = otlp.Uint64(tag, value)
		case tagBytesReceived:
			f.BytesReceived = otlp.Uint64(tag, value)
		case tagRetransmits:
			f.Retransmits = otlp.Uint64(tag, value)
		case tagRetransmittedBytes:
			f.RetransmittedBytes = otlp.Uint64(tag, value)
		case tagSegmentsSent:
			f.SegmentsSent = otlp.Uint64(tag, value)
		case tagRTT:
			f.RTT = otlp.Uint32(tag, value)
		case tagMinRTT:
			f.MinRTT = otlp.Uint32(tag, value)
		case tagReceiveWindowLimited:
			f.ReceiveWindowLimited = otlp.Uint64(tag, value)
		case tagSendBufferLimited:
			f.SendBufferLimited = otlp.Uint64(tag, value)
		case tagBusy:
			f.Busy = otlp.Uint64(tag, value)
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
