package packet

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/net/bpf"
)

// ip returns an IP packet with UDP or another protocol inside.
func ip(version int, protocol byte, from, to uint16) []byte {
	b := make([]byte, 20)
	b[0], b[9] = 0x45, protocol
	if version == 6 {
		b = make([]byte, 40)
		b[0], b[6] = 0x60, protocol
	}
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
	return slices.Concat(b, ports, make([]byte, 16))
}

func TestFilter(t *testing.T) {
	const udp, tcp = 17, 6
	edit := func(b []byte, at int, v byte) []byte {
		b[at] = v
		return b
	}
	options := append(append(edit(ip(4, udp, 4000, 53)[:20], 0, 0x47), make([]byte, 8)...), ip(4, udp, 4000, 53)[20:]...)
	fragment := func(offset byte) []byte {
		b := ip(6, udp, 4000, 53)
		head := append([]byte{}, b[:40]...)
		return append(append(edit(head, 6, 44), udp, 0, 0, offset, 0, 0, 0, 9), b[40:]...)
	}
	tests := map[string]struct {
		packet []byte
		kind   uint32
		want   bool
	}{
		"question":                {ip(4, udp, 4000, 53), typeOutgoing, true},
		"answer":                  {ip(4, udp, 53, 4000), typeHost, true},
		"question IPv6":           {ip(6, udp, 4000, 53), typeOutgoing, true},
		"answer IPv6":             {ip(6, udp, 53, 4000), typeHost, true},
		"options":                 {options, typeOutgoing, true},
		"first fragment":          {edit(ip(4, udp, 53, 4000), 6, 0x20), typeHost, true},
		"later fragment":          {edit(ip(4, udp, 53, 4000), 7, 1), typeHost, false},
		"first fragment IPv6":     {fragment(1), typeOutgoing, true},
		"later fragment IPv6":     {fragment(8), typeOutgoing, false},
		"a resolver's question":   {ip(4, udp, 4000, 53), typeHost, false},
		"a resolver's answer":     {ip(4, udp, 53, 4000), typeOutgoing, false},
		"for another host":        {ip(4, udp, 53, 4000), 3, false},
		"TCP":                     {ip(4, tcp, 4000, 53), typeOutgoing, false},
		"TCP over IPv6":           {ip(6, tcp, 4000, 53), typeOutgoing, false},
		"another port":            {ip(4, udp, 4000, 54), typeOutgoing, false},
		"another port IPv6":       {ip(6, udp, 54, 4000), typeHost, false},
		"not IP":                  {edit(ip(4, udp, 4000, 53), 0, 0x05), typeOutgoing, false},
		"too short for the ports": {ip(4, udp, 4000, 53)[:22], typeOutgoing, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			// The VM lacks the extension that loads the packet's type.
			program := append([]bpf.Instruction{}, filter...)
			for i, in := range program {
				if _, ok := in.(bpf.LoadExtension); ok {
					program[i] = bpf.LoadConstant{Dst: bpf.RegA, Val: tc.kind}
				}
			}
			vm, err := bpf.NewVM(program)
			if err != nil {
				t.Fatal(err)
			}
			n, err := vm.Run(tc.packet)
			if err != nil {
				t.Fatal(err)
			}
			if (n > 0) != tc.want {
				t.Errorf("filter returns %d", n)
			}
		})
	}
}
