package flows

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// Tags of the fields of a flow.
const (
	tagStart                = 1<<3 | signal.Fixed64
	tagEnd                  = 2<<3 | signal.Fixed64
	tagLocalAddress         = 3<<3 | signal.Bytes
	tagLocalPort            = 4<<3 | signal.Varint
	tagPeerAddress          = 5<<3 | signal.Bytes
	tagPeerPort             = 6<<3 | signal.Varint
	tagRole                 = 7<<3 | signal.Varint
	tagState                = 8<<3 | signal.Varint
	tagReason               = 9<<3 | signal.Varint
	tagConnection           = 10<<3 | signal.Fixed64
	tagConnections          = 11<<3 | signal.Varint
	tagConnectFailures      = 12<<3 | signal.Varint
	tagResets               = 13<<3 | signal.Varint
	tagTimeouts             = 14<<3 | signal.Varint
	tagBytesSent            = 15<<3 | signal.Varint
	tagBytesReceived        = 16<<3 | signal.Varint
	tagRetransmits          = 17<<3 | signal.Varint
	tagRetransmittedBytes   = 18<<3 | signal.Varint
	tagSegmentsSent         = 19<<3 | signal.Varint
	tagRTT                  = 20<<3 | signal.Varint
	tagMinRTT               = 21<<3 | signal.Varint
	tagReceiveWindowLimited = 22<<3 | signal.Varint
	tagSendBufferLimited    = 23<<3 | signal.Varint
	tagBusy                 = 24<<3 | signal.Varint
	tagProtocol             = 25<<3 | signal.Varint
	tagPeerName             = 26<<3 | signal.Bytes
	tagTranslated           = 27<<3 | signal.Bytes
	tagTranslatedPort       = 28<<3 | signal.Varint
	tagTranslatedPeer       = 29<<3 | signal.Bytes
	tagTranslatedPeerPort   = 30<<3 | signal.Varint
	tagUsualRTT             = 31<<3 | signal.Varint
	tagMaxRTT               = 32<<3 | signal.Varint
	tagQueue                = 33<<3 | signal.Varint
	tagRefused              = 34<<3 | signal.Varint
	tagGaveUp               = 35<<3 | signal.Varint
	tagAcceptQueueFull      = 36<<3 | signal.Varint
	tagUnreadBytes          = 37<<3 | signal.Varint
	tagUnsentBytes          = 38<<3 | signal.Varint
	tagRetransmitTimeout    = 39<<3 | signal.Varint
	tagQueries              = 40<<3 | signal.Varint
	tagQueryFailures        = 41<<3 | signal.Varint
	tagQueriesUnanswered    = 42<<3 | signal.Varint
	tagQueryTime            = 43<<3 | signal.Varint
	tagMaxQueryTime         = 44<<3 | signal.Varint
	tagQueryCode            = 45<<3 | signal.Bytes
)

// Flow is one Flow of metaflow.agent.v1. Once read, its addresses point into the
// bytes that it was read from.
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

	Protocol                                    uint32 // number of FlowProtocol
	PeerName                                    []byte
	Translated, TranslatedPeer                  []byte // empty, or 4 or 16 bytes
	TranslatedPort, TranslatedPeerPort          uint32
	UsualRTT, MaxRTT, Queue                     uint32
	Refused, GaveUp, AcceptQueueFull            uint32
	UnreadBytes, UnsentBytes, RetransmitTimeout uint64
	Queries, QueryFailures, QueriesUnanswered   uint32
	QueryTime                                   uint64
	MaxQueryTime                                uint32
	QueryCode                                   []byte
}

// Read decodes b into f, of which nothing remains, and reports whether b is a
// Flow. As everywhere in protobuf, the last occurrence of a field counts.
func (f *Flow) Read(b []byte) bool {
	*f = Flow{}
	return f.read(b)
}

// read is Read into a zero Flow.
func (f *Flow) read(b []byte) bool {
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
		case tagProtocol:
			f.Protocol = signal.Uint32(tag, value)
		case tagPeerName:
			f.PeerName = value
		case tagTranslated:
			f.Translated = value
		case tagTranslatedPort:
			f.TranslatedPort = signal.Uint32(tag, value)
		case tagTranslatedPeer:
			f.TranslatedPeer = value
		case tagTranslatedPeerPort:
			f.TranslatedPeerPort = signal.Uint32(tag, value)
		case tagUsualRTT:
			f.UsualRTT = signal.Uint32(tag, value)
		case tagMaxRTT:
			f.MaxRTT = signal.Uint32(tag, value)
		case tagQueue:
			f.Queue = signal.Uint32(tag, value)
		case tagRefused:
			f.Refused = signal.Uint32(tag, value)
		case tagGaveUp:
			f.GaveUp = signal.Uint32(tag, value)
		case tagAcceptQueueFull:
			f.AcceptQueueFull = signal.Uint32(tag, value)
		case tagUnreadBytes:
			f.UnreadBytes = signal.Uint64(tag, value)
		case tagUnsentBytes:
			f.UnsentBytes = signal.Uint64(tag, value)
		case tagRetransmitTimeout:
			f.RetransmitTimeout = signal.Uint64(tag, value)
		case tagQueries:
			f.Queries = signal.Uint32(tag, value)
		case tagQueryFailures:
			f.QueryFailures = signal.Uint32(tag, value)
		case tagQueriesUnanswered:
			f.QueriesUnanswered = signal.Uint32(tag, value)
		case tagQueryTime:
			f.QueryTime = signal.Uint64(tag, value)
		case tagMaxQueryTime:
			f.MaxQueryTime = signal.Uint32(tag, value)
		case tagQueryCode:
			f.QueryCode = value
		}
		i = hi
	}
	return true
}

// Append appends f to b, byte for byte as protobuf marshals it.
func (f *Flow) Append(b []byte) []byte {
	b = appendFixed(b, tagStart, f.Start)
	b = appendFixed(b, tagEnd, f.End)
	b = appendBytes(b, tagLocalAddress, f.Local)
	b = appendNumber(b, tagLocalPort, uint64(f.LocalPort))
	b = appendBytes(b, tagPeerAddress, f.Peer)
	b = appendNumber(b, tagPeerPort, uint64(f.PeerPort))
	b = appendNumber(b, tagRole, uint64(f.Role))
	b = appendNumber(b, tagState, uint64(f.State))
	b = appendNumber(b, tagReason, uint64(f.Reason))
	b = appendFixed(b, tagConnection, f.Connection)
	b = appendNumber(b, tagConnections, uint64(f.Connections))
	b = appendNumber(b, tagConnectFailures, uint64(f.ConnectFailures))
	b = appendNumber(b, tagResets, uint64(f.Resets))
	b = appendNumber(b, tagTimeouts, uint64(f.Timeouts))
	b = appendNumber(b, tagBytesSent, f.BytesSent)
	b = appendNumber(b, tagBytesReceived, f.BytesReceived)
	b = appendNumber(b, tagRetransmits, f.Retransmits)
	b = appendNumber(b, tagRetransmittedBytes, f.RetransmittedBytes)
	b = appendNumber(b, tagSegmentsSent, f.SegmentsSent)
	b = appendNumber(b, tagRTT, uint64(f.RTT))
	b = appendNumber(b, tagMinRTT, uint64(f.MinRTT))
	b = appendNumber(b, tagReceiveWindowLimited, f.ReceiveWindowLimited)
	b = appendNumber(b, tagSendBufferLimited, f.SendBufferLimited)
	b = appendNumber(b, tagBusy, f.Busy)
	b = appendNumber(b, tagProtocol, uint64(f.Protocol))
	b = appendOptional(b, tagPeerName, f.PeerName)
	b = appendOptional(b, tagTranslated, f.Translated)
	b = appendNumber(b, tagTranslatedPort, uint64(f.TranslatedPort))
	b = appendOptional(b, tagTranslatedPeer, f.TranslatedPeer)
	b = appendNumber(b, tagTranslatedPeerPort, uint64(f.TranslatedPeerPort))
	b = appendNumber(b, tagUsualRTT, uint64(f.UsualRTT))
	b = appendNumber(b, tagMaxRTT, uint64(f.MaxRTT))
	b = appendNumber(b, tagQueue, uint64(f.Queue))
	b = appendNumber(b, tagRefused, uint64(f.Refused))
	b = appendNumber(b, tagGaveUp, uint64(f.GaveUp))
	b = appendNumber(b, tagAcceptQueueFull, uint64(f.AcceptQueueFull))
	b = appendNumber(b, tagUnreadBytes, f.UnreadBytes)
	b = appendNumber(b, tagUnsentBytes, f.UnsentBytes)
	b = appendNumber(b, tagRetransmitTimeout, f.RetransmitTimeout)
	b = appendNumber(b, tagQueries, uint64(f.Queries))
	b = appendNumber(b, tagQueryFailures, uint64(f.QueryFailures))
	b = appendNumber(b, tagQueriesUnanswered, uint64(f.QueriesUnanswered))
	b = appendNumber(b, tagQueryTime, f.QueryTime)
	b = appendNumber(b, tagMaxQueryTime, uint64(f.MaxQueryTime))
	b = appendOptional(b, tagQueryCode, f.QueryCode)
	return b
}

func appendFixed(b []byte, tag signal.Tag, v uint64) []byte {
	return protowire.AppendFixed64(protowire.AppendVarint(b, uint64(tag)), v)
}

// appendNumber appends nothing for 0, as protobuf does.
func appendNumber(b []byte, tag signal.Tag, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendVarint(b, uint64(tag)), v)
}

// appendOptional appends nothing for an empty value, as protobuf does.
func appendOptional(b []byte, tag signal.Tag, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return append(protowire.AppendVarint(protowire.AppendVarint(b, uint64(tag)), uint64(len(v))), v...)
}

func appendBytes(b []byte, tag signal.Tag, v []byte) []byte {
	return append(signal.AppendBytesTag(b, tag, len(v)), v...)
}
