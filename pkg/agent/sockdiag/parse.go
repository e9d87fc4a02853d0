package sockdiag

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/agent/netlink"
)

// Sizes and numbers of linux/inet_diag.h and linux/tcp.h.
const (
	messageSize = 72 // struct inet_diag_msg

	familyIPv4 = 2
	familyIPv6 = 10

	attrInfo   = 2  // INET_DIAG_INFO
	attrCgroup = 21 // INET_DIAG_CGROUP_ID
)

// parse reads an inet_diag_msg and its attributes into s and overwrites every
// field of s.
func parse(b []byte, s *flow.Socket) error {
	if len(b) < messageSize {
		return fmt.Errorf("%w: inet_diag message of %d bytes", ErrMalformed, len(b))
	}
	*s = flow.Socket{
		Cookie:       uint64(binary.NativeEndian.Uint32(b[44:])) | uint64(binary.NativeEndian.Uint32(b[48:]))<<32,
		State:        flow.State(b[1]),
		ReceiveQueue: binary.NativeEndian.Uint32(b[56:]),
		SendQueue:    binary.NativeEndian.Uint32(b[60:]),
		UID:          binary.NativeEndian.Uint32(b[64:]),
		Inode:        binary.NativeEndian.Uint32(b[68:]),
		Mini:         true,
		Info:         flow.Info{MinRTT: flow.UnknownRTT},
	}
	var local, peer netip.Addr
	switch b[0] {
	case familyIPv4:
		local, peer = netip.AddrFrom4([4]byte(b[8:])), netip.AddrFrom4([4]byte(b[24:]))
	case familyIPv6:
		local, peer = netip.AddrFrom16([16]byte(b[8:])).Unmap(), netip.AddrFrom16([16]byte(b[24:])).Unmap()
	default:
		return fmt.Errorf("%w: address family %d", ErrMalformed, b[0])
	}
	s.Local = netip.AddrPortFrom(local, binary.BigEndian.Uint16(b[4:]))
	s.Peer = netip.AddrPortFrom(peer, binary.BigEndian.Uint16(b[6:]))

	for rest := b[messageSize:]; len(rest) >= netlink.AttributeSize; {
		var kind uint16
		var value []byte
		var err error
		if kind, value, rest, err = netlink.NextAttribute(rest); err != nil {
			return err
		}
		switch kind {
		case attrInfo:
			s.Mini = false
			parseInfo(value, &s.Info)
		case attrCgroup:
			if len(value) >= 8 {
				s.Cgroup = binary.NativeEndian.Uint64(value)
			}
		}
	}
	return nil
}

// parseInfo reads as much of struct tcp_info as the kernel sent. The kernel
// only ever appends fields to it.
func parseInfo(b []byte, i *flow.Info) {
	f := fields(b)
	i.Unanswered, i.Probes = f.u8(2), f.u8(3)
	i.LastSent, i.LastReceived, i.LastAck = f.u32(44), f.u32(52), f.u32(56)
	i.InFlight = f.u32(24)
	i.RTT, i.RTTDeviation = f.u32(68), f.u32(72)
	i.Retransmits = f.u32(100)
	i.BytesAcked, i.BytesReceived = f.u64(120), f.u64(128)
	i.PacketsReceived, i.Unsent = f.u32(140), f.u32(144)
	if len(b) >= 152 {
		i.MinRTT = f.u32(148)
	}
	i.SegmentsReceived, i.SegmentsSent = f.u32(152), f.u32(156)
	i.Busy, i.ReceiveWindowLimited, i.SendBufferLimited = f.u64(168), f.u64(176), f.u64(184)
	i.Delivered = f.u32(192)
	i.BytesSent, i.BytesRetransmitted = f.u64(200), f.u64(208)
	i.Duplicates = f.u32(216)
	i.RetransmitTimeout = 1000 * uint64(f.u32(244))
}

// fields reads numbers at offsets; beyond its end it reads 0.
type fields []byte

func (f fields) u8(at int) uint8 {
	if at >= len(f) {
		return 0
	}
	return f[at]
}

func (f fields) u32(at int) uint32 {
	if at+4 > len(f) {
		return 0
	}
	return binary.NativeEndian.Uint32(f[at:])
}

func (f fields) u64(at int) uint64 {
	if at+8 > len(f) {
		return 0
	}
	return binary.NativeEndian.Uint64(f[at:])
}
