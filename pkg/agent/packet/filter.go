package packet

import "golang.org/x/net/bpf"

const (
	// snapLength bounds the bytes captured of a packet. A DNS message has at
	// most 1,232 by default, and 4,096 at most in practice; names and addresses
	// are at its beginning.
	snapLength = 2048

	dnsPort      = 53
	typeHost     = 0 // PACKET_HOST
	typeOutgoing = 4 // PACKET_OUTGOING
)

// filter passes the packets that the package describes. The data of a packet
// begins with its IP header on every kind of device. The IP version is read
// from there: the protocol of the frame may be that of a VLAN.
var filter = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 0, Size: 1},
	bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x60, SkipTrue: 7}, // to IPv6
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0x40, SkipTrue: 23},
	// IPv4: UDP, not a later fragment.
	bpf.LoadAbsolute{Off: 9, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 17, SkipTrue: 21},
	bpf.LoadAbsolute{Off: 6, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 19},
	bpf.LoadMemShift{Off: 0},
	bpf.Jump{Skip: 10}, // to the ports
	// IPv6: UDP, at once or in the first fragment.
	bpf.LoadAbsolute{Off: 6, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: 17, SkipTrue: 7},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 44, SkipTrue: 14},
	bpf.LoadAbsolute{Off: 40, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 17, SkipTrue: 12},
	bpf.LoadAbsolute{Off: 42, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0xfff8, SkipTrue: 10},
	bpf.LoadConstant{Dst: bpf.RegX, Val: 48},
	bpf.Jump{Skip: 1},
	bpf.LoadConstant{Dst: bpf.RegX, Val: 40},
	// X is the offset of the ports: sent to port 53, or received from it.
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeOutgoing, SkipTrue: 3},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: typeHost, SkipTrue: 4},
	bpf.LoadIndirect{Off: 0, Size: 2},
	bpf.Jump{Skip: 1},
	bpf.LoadIndirect{Off: 2, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: dnsPort, SkipTrue: 1},
	bpf.RetConstant{Val: 0},
	bpf.RetConstant{Val: snapLength},
}
