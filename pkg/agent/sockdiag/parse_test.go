package sockdiag

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
)

// sample returns the message of an IPv6 socket that carries IPv4, with infoSize
// bytes of tcp_info.
func sample(infoSize int) []byte {
	b := append([]byte(nil), make([]byte, messageSize)...)
	b[0], b[1] = familyIPv6, byte(flow.StateEstablished)
	binary.BigEndian.PutUint16(b[4:], 80)
	binary.BigEndian.PutUint16(b[6:], 40000)
	local, peer := netip.MustParseAddr("::ffff:10.0.0.1").As16(), netip.MustParseAddr("::ffff:10.0.0.2").As16()
	copy(b[8:], local[:])
	copy(b[24:], peer[:])
	binary.NativeEndian.PutUint32(b[44:], 5)
	binary.NativeEndian.PutUint32(b[48:], 6)
	binary.NativeEndian.PutUint32(b[56:], 7)
	binary.NativeEndian.PutUint32(b[60:], 8)
	binary.NativeEndian.PutUint32(b[64:], 1000)
	binary.NativeEndian.PutUint32(b[68:], 7777)

	info := make([]byte, 280)
	for i := range info {
		info[i] = byte(i)
	}
	attr := func(kind uint16, value []byte) {
		b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = append(b, value...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	attr(8, []byte{0}) // one byte, padded
	attr(attrCgroup, binary.NativeEndian.AppendUint64(nil, 99))
	attr(attrInfo, info[:infoSize])
	return b
}

func TestParse(t *testing.T) {
	at := func(offset, size int) (n uint64) {
		b := make([]byte, 8)
		for i := range size {
			b[i] = byte(offset + i)
		}
		return binary.LittleEndian.Uint64(b)
	}
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("written for a little-endian machine")
	}
	want := flow.Socket{
		Cookie: 6<<32 | 5, State: flow.StateEstablished,
		Local: netip.MustParseAddrPort("10.0.0.1:80"), Peer: netip.MustParseAddrPort("10.0.0.2:40000"),
		UID: 1000, Cgroup: 99, Inode: 7777, ReceiveQueue: 7, SendQueue: 8,
		Info: flow.Info{
			Unanswered: 2, Probes: 3,
			LastSent: uint32(at(44, 4)), LastReceived: uint32(at(52, 4)), LastAck: uint32(at(56, 4)),
			InFlight: uint32(at(24, 4)), PacketsReceived: uint32(at(140, 4)), Unsent: uint32(at(144, 4)),
			RTT: uint32(at(68, 4)), RTTDeviation: uint32(at(72, 4)), MinRTT: uint32(at(148, 4)), Retransmits: uint32(at(100, 4)),
			BytesAcked: at(120, 8), BytesReceived: at(128, 8),
			SegmentsReceived: uint32(at(152, 4)), SegmentsSent: uint32(at(156, 4)),
			Busy: at(168, 8), ReceiveWindowLimited: at(176, 8), SendBufferLimited: at(184, 8),
			Delivered: uint32(at(192, 4)), BytesSent: at(200, 8), BytesRetransmitted: at(208, 8), Duplicates: uint32(at(216, 4)),
			RetransmitTimeout: 1000 * at(244, 4),
		},
	}
	compare := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	var got flow.Socket
	if err := parse(sample(280), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Errorf("newest kernel (-want +got):\n%s", diff)
	}

	want.Info.BytesSent, want.Info.BytesRetransmitted, want.Info.Delivered = 0, 0, 0
	want.Info.Duplicates, want.Info.RetransmitTimeout = 0, 0
	want.Info.SendBufferLimited, want.Info.ReceiveWindowLimited, want.Info.Busy = 0, 0, 0
	want.Info.MinRTT = flow.UnknownRTT
	want.Info.SegmentsReceived, want.Info.SegmentsSent = 0, 0
	want.Info.PacketsReceived, want.Info.Unsent = 0, 0
	if err := parse(sample(136), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Errorf("old kernel (-want +got):\n%s", diff)
	}
}

// FuzzMessages holds the parser to its contract: any bytes yield sockets or
// ErrMalformed, never a panic, and a parsed socket does not depend on the one
// parsed before it.
func FuzzMessages(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(sample(280))
	f.Fuzz(func(t *testing.T, in []byte) {
		clean, used := flow.Socket{}, flow.Socket{Cookie: 1, UID: 2, Cgroup: 3, Info: flow.Info{RTT: 4, BytesSent: 5}}
		err, again := parse(in, &clean), parse(in, &used)
		if (err == nil) != (again == nil) || err == nil && clean != used {
			t.Fatalf("parsed twice: %+v, %v and %+v, %v", clean, err, used, again)
		}
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatalf("parse = %v, want ErrMalformed", err)
		}
	})
}
