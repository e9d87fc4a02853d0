package flows

import (
	"fmt"
	"unicode/utf8"

	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// The reasons why a flow cannot be stored, in the order in which it is judged.
const (
	BadStartTime signal.Reason = 1 + iota
	BadEndTime
	BadOrder
	BadAddress
	BadPort
	BadEnum
	BadConnection
	BadCounter
	BadName
	BadTranslation
)

var rules = []signal.Rule{
	{Label: "start_time"},
	{Label: "end_time"},
	{Label: "end_before_start", Violated: "end_time is before start_time"},
	{Label: "address", Violated: "an address is not 4 or 16 bytes, or unspecified without need"},
	{Label: "port", Violated: "a port is above 65535, or 0 without need"},
	{Label: "enum", Violated: "role, state, end or protocol has a number without a meaning"},
	{Label: "connection", Violated: "connection is 0"},
	{Label: "counter", Violated: fmt.Sprintf(
		"connections, connect_failures, resets, timeouts, refused or gave_up is above 1, or another counter above %d", uint64(MaxCounter))},
	{Label: "name", Violated: fmt.Sprintf("peer_name or query_code is longer than %d bytes, not UTF-8, or has control characters", MaxName)},
	{Label: "translation", Violated: "a translated address is not 4 or 16 bytes, or its port is above 65535"},
}

// MaxName bounds peer_name and query_code, in bytes: a DNS name has at most 253.
const MaxName = 255

// MaxCounter is the most that a counter of one flow may say: no connection sends a petabyte, or lasts 35
// years of microseconds, between two reports. What says more is a broken agent, and would
// spoil every sum that it is part of.
const MaxCounter = 1 << 50

func judge(flow []byte, w signal.Window) (v signal.Verdict, ok bool) {
	var f Flow
	if !f.read(flow) {
		return v, false
	}
	if v.Reason = f.Judge(w); v.Reason == signal.Accepted {
		v.Hash = f.hash()
	}
	return v, true
}

// describe tells a sender which flow was rejected by its connection, its ends
// and its times.
func describe(flow []byte, _ signal.Reason) (which, has string) {
	var f Flow
	f.Read(flow)
	return fmt.Sprintf("connection %d, %s to %s, start_time %d, end_time %d",
		f.Connection, end(f.Local, f.LocalPort), end(f.Peer, f.PeerPort), f.Start, f.End), ""
}

// Judge returns signal.Accepted or the first reason why f cannot be stored.
//
// Of failed connects and resets the kernel may have forgotten the peer's port and the local
// address; all other connections need both. A listening socket and an address have no peer,
// and may lack the local address or port; queries may lack the local port.
func (f *Flow) Judge(w signal.Window) signal.Reason {
	forgetful := f.Reason == uint32(agentv1.FlowEnd_FLOW_END_RESET) || f.Reason == uint32(agentv1.FlowEnd_FLOW_END_CONNECT_FAILED)
	listener, own := f.listener(), f.address()
	switch {
	case !w.Contains(f.Start):
		return BadStartTime
	case !w.Contains(f.End):
		return BadEndTime
	case f.End < f.Start:
		return BadOrder
	case !address(f.Local) || !address(f.Peer) || zero(f.Peer) && !listener && !own || zero(f.Local) && !forgetful && !listener:
		return BadAddress
	case f.LocalPort > maxPort || f.LocalPort == 0 && !own && f.Protocol == 0 || f.PeerPort > maxPort || f.PeerPort == 0 && !forgetful && !listener && !own:
		return BadPort
	case f.Role > uint32(agentv1.FlowRole_FLOW_ROLE_SERVER) || f.State > uint32(agentv1.FlowState_FLOW_STATE_CLOSED) ||
		f.Reason > uint32(agentv1.FlowEnd_FLOW_END_CONNECT_FAILED) || f.Protocol > uint32(agentv1.FlowProtocol_FLOW_PROTOCOL_DNS):
		return BadEnum
	case f.Connection == 0:
		return BadConnection
	case f.Connections > 1 || f.ConnectFailures > 1 || f.Resets > 1 || f.Timeouts > 1 || f.Refused > 1 || f.GaveUp > 1 ||
		max(f.BytesSent, f.BytesReceived, f.Retransmits, f.RetransmittedBytes, f.SegmentsSent,
			f.ReceiveWindowLimited, f.SendBufferLimited, f.Busy, f.UnreadBytes, f.UnsentBytes, f.RetransmitTimeout, f.QueryTime) > MaxCounter:
		return BadCounter
	case !name(f.PeerName) || !name(f.QueryCode):
		return BadName
	case len(f.Translated) > 0 && !address(f.Translated) || len(f.TranslatedPeer) > 0 && !address(f.TranslatedPeer) ||
		max(f.TranslatedPort, f.TranslatedPeerPort) > maxPort:
		return BadTranslation
	default:
		return signal.Accepted
	}
}

// listener reports whether f is about a listening socket.
func (f *Flow) listener() bool {
	return f.AcceptQueueFull > 0 && f.Protocol == 0 && f.Role == uint32(agentv1.FlowRole_FLOW_ROLE_SERVER) && f.PeerPort == 0
}

// address reports whether f is about an address that its namespace has.
func (f *Flow) address() bool {
	return f.Role == 0 && f.Protocol == 0 && f.LocalPort == 0 && f.PeerPort == 0 && f.Reason == 0
}

// name reports whether b may be stored as a name.
func name(b []byte) bool {
	if len(b) > MaxName || !utf8.Valid(b) {
		return false
	}
	for _, c := range b {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

const maxPort = 1<<16 - 1

// mapped is what an IPv6 address begins with that is one of IPv4.
var mapped = [12]byte{10: 0xff, 11: 0xff}

func address(b []byte) bool { return len(b) == 4 || len(b) == 16 }

// zero reports whether an address is the unspecified one, of either family.
func zero(b []byte) bool {
	if len(b) == 16 && [12]byte(b) == mapped {
		b = b[12:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
