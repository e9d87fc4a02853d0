package conntrack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/agent/nat"
	"github.com/metaflowys/metaflow-server/pkg/agent/netlink"
)

func attr(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(netlink.AttributeSize+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, -len(b)&3)...)
}

func nested(kind uint16, values ...[]byte) []byte {
	var all []byte
	for _, v := range values {
		all = append(all, v...)
	}
	return attr(kind|0x8000, all)
}

func direction(kind uint16, protocol byte, from, to netip.AddrPort) []byte {
	port := func(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }
	first, second := uint16(attrIPv4From), uint16(attrIPv4To)
	if from.Addr().Is6() {
		first, second = attrIPv6From, attrIPv6To
	}
	return nested(kind,
		nested(attrTupleIP, attr(first, from.Addr().AsSlice()), attr(second, to.Addr().AsSlice())),
		nested(attrTupleProtocol, attr(attrProtocolNumber, []byte{protocol}), attr(attrPortFrom, port(from.Port())), attr(attrPortTo, port(to.Port()))))
}

// sample is a connection of a pod with a service.
func sample(protocol byte, status uint32, from, to, replyFrom, replyTo string) []byte {
	ap := netip.MustParseAddrPort
	return slices.Concat(
		make([]byte, messageSize),
		direction(attrOriginal, protocol, ap(from), ap(to)),
		direction(attrReply, protocol, ap(replyFrom), ap(replyTo)),
		attr(attrStatus, binary.BigEndian.AppendUint32(nil, status)),
		attr(20, make([]byte, 8)), // an attribute that nothing reads
	)
}

func TestParse(t *testing.T) {
	const client, vip, server, dns = "10.1.0.2:40000", "10.96.0.10:80", "10.1.0.9:8080", "10.96.0.53:53"
	tests := map[string]struct {
		in   []byte
		want bool
	}{
		"translated target":    {sample(protocolTCP, 0x188|statusTargetTranslated, client, vip, server, client), true},
		"translated source":    {sample(protocolTCP, statusSourceTranslated, client, vip, vip, "192.0.2.1:9"), true},
		"IPv6":                 {sample(protocolTCP, statusTargetTranslated, "[fd00::2]:4", "[fd96::1]:80", "[fd00::9]:80", "[fd00::2]:4"), true},
		"translated DNS":       {sample(protocolUDP, statusTargetTranslated, client, dns, "10.1.0.53:53", client), true},
		"other UDP":            {sample(protocolUDP, statusTargetTranslated, client, vip, server, client), false},
		"SCTP":                 {sample(132, statusTargetTranslated, client, vip, server, client), false},
		"nothing translated":   {sample(protocolTCP, 0x188, client, vip, vip, client), false},
		"no tuples, no status": {make([]byte, messageSize), false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var c nat.Connection
			got, err := parse(tc.in, &c)
			if err != nil || got != tc.want {
				t.Fatalf("parse = %t, %v", got, err)
			}
			if got && (!c.From.IsValid() || !c.To.IsValid() || !c.ReplyFrom.IsValid() || !c.ReplyTo.IsValid()) {
				t.Errorf("%+v", c)
			}
		})
	}
	var c nat.Connection
	if _, err := parse(tests["translated target"].in, &c); err != nil {
		t.Fatal(err)
	}
	ap := netip.MustParseAddrPort
	if want := (nat.Connection{From: ap(client), To: ap(vip), ReplyFrom: ap(server), ReplyTo: ap(client)}); c != want {
		t.Errorf("%+v, want %+v", c, want)
	}
}

// FuzzMessages holds the parser to its contract: any bytes yield a connection,
// nothing or ErrMalformed, never a panic; and a connection has valid addresses.
func FuzzMessages(f *testing.F) {
	f.Add([]byte(nil))
	one := sample(protocolTCP, statusTargetTranslated, "10.1.0.2:4", "10.96.0.1:80", "10.1.0.9:80", "10.1.0.2:4")
	f.Add(one)
	f.Fuzz(func(t *testing.T, in []byte) {
		var c nat.Connection
		relevant, err := parse(in, &c)
		if err != nil && !errors.Is(err, ErrMalformed) || err != nil && relevant {
			t.Fatalf("parse = %t, %v", relevant, err)
		}
		if relevant && (!c.From.IsValid() || !c.To.IsValid() || !c.ReplyFrom.IsValid() || !c.ReplyTo.IsValid() || c.From.Addr().Is4In6()) {
			t.Fatalf("connection %+v", c)
		}
	})
}
