package flows

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// Reason says why a flow cannot be stored.
type Reason uint8

// The reasons, in the order in which a flow is judged.
const (
	Accepted Reason = iota
	BadStartTime
	BadEndTime
	BadOrder
	BadAddress
	BadPort
	BadEnum
	BadConnection
	BadCounter
	TooLarge
	numReasons
)

// String names the reason in words that suit a metric's label.
func (r Reason) String() string {
	return [numReasons]string{
		"accepted", "start_time", "end_time", "end_before_start", "address", "port", "enum", "connection", "counter", "too_large",
	}[r]
}

// MaxCounter is the most that a counter of one flow may say: no connection sends a petabyte, or lasts 35
// years of microseconds, between two reports. What says more is a broken agent, and would
// spoil every sum that it is part of.
const MaxCounter = 1 << 50

// Judge returns Accepted or the first reason why f cannot be stored.
//
// Of failed connects and resets the kernel may have forgotten the peer's port and the local
// address; of all others both must be there.
func (f *Flow) Judge(w signal.Window) Reason {
	forgetful := f.Reason == uint32(flow.EndReset) || f.Reason == uint32(flow.EndConnectFailed)
	switch {
	case !w.Contains(f.Start):
		return BadStartTime
	case !w.Contains(f.End):
		return BadEndTime
	case f.End < f.Start:
		return BadOrder
	case !address(f.Local) || !address(f.Peer) || zero(f.Peer) || zero(f.Local) && !forgetful:
		return BadAddress
	case f.LocalPort == 0 || f.LocalPort > maxPort || f.PeerPort > maxPort || f.PeerPort == 0 && !forgetful:
		return BadPort
	case f.Role > uint32(flow.RoleServer) || f.State > stateClosed || f.Reason > uint32(flow.EndConnectFailed):
		return BadEnum
	case f.Connection == 0:
		return BadConnection
	case f.Connections > 1 || f.ConnectFailures > 1 || f.Resets > 1 || f.Timeouts > 1 ||
		max(f.BytesSent, f.BytesReceived, f.Retransmits, f.RetransmittedBytes, f.SegmentsSent,
			f.ReceiveWindowLimited, f.SendBufferLimited, f.Busy) > MaxCounter:
		return BadCounter
	default:
		return Accepted
	}
}

const (
	maxPort     = 1<<16 - 1
	stateClosed = 2 // the last number of FlowState
)

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

// Rejected says which flows of a request were left out.
type Rejected struct {
	Count         [numReasons]int64 // by reason
	RepairedTexts int               // texts of the request that were not UTF-8
	named         []string          // the first few: which flow
}

// Total is the number of flows rejected.
func (r *Rejected) Total() int64 {
	var n int64
	for _, v := range r.Count[Accepted+1:] {
		n += v
	}
	return n
}

// Each calls f for every reason that occurred.
func (r *Rejected) Each(f func(Reason, int64)) {
	for reason := Accepted + 1; reason < numReasons; reason++ {
		if n := r.Count[reason]; n > 0 {
			f(reason, n)
		}
	}
}

// Message explains the rejections to the sender: what was wrong, how often, and
// what would have been right, and which flows the first ones are.
func (r *Rejected) Message(w signal.Window, maxRecordBytes int) string {
	var b strings.Builder
	r.Each(func(reason Reason, n int64) {
		if b.Len() > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%d flows rejected: ", n)
		switch reason { //nolint:exhaustive // Each calls with reasons for a rejection only
		case BadStartTime, BadEndTime:
			fmt.Fprintf(&b, "%s is not between %s and %s", reason, formatNanos(w.Earliest), formatNanos(w.Latest))
		case BadOrder:
			b.WriteString("end_time is before start_time")
		case BadAddress:
			b.WriteString("an address is not 4 or 16 bytes, or unspecified without need")
		case BadPort:
			b.WriteString("a port is above 65535, or 0 without need")
		case BadEnum:
			b.WriteString("role, state or end has a number without a meaning")
		case BadConnection:
			b.WriteString("connection is 0")
		case BadCounter:
			fmt.Fprintf(&b, "connections, connect_failures, resets or timeouts is above 1, or another counter above %d", uint64(MaxCounter))
		case TooLarge:
			fmt.Fprintf(&b, "larger than %d bytes with request and group, or these would be repeated too often", maxRecordBytes)
		}
	})
	for i, name := range r.named {
		if i == 0 {
			b.WriteString("; the first: ")
		} else {
			b.WriteString(", ")
		}
		b.WriteString(name)
	}
	return b.String()
}

// maxNamed is how many flows Message names.
const maxNamed = 4

// name describes a rejected flow for Message: by its place in the request, its connection and its ends.
func (r *Rejected) name(index int, f *Flow) {
	if len(r.named) < maxNamed {
		r.named = append(r.named, fmt.Sprintf("flow %d (counted from 0; connection %d, %s to %s, start_time %d, end_time %d)",
			index, f.Connection, end(f.Local, f.LocalPort), end(f.Peer, f.PeerPort), f.Start, f.End))
	}
}

func formatNanos(ns uint64) string {
	return time.Unix(0, int64(min(ns, math.MaxInt64))).UTC().Format(time.RFC3339)
}
