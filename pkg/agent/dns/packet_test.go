package dns

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
)

var (
	client4   = netip.MustParseAddrPort("10.0.0.7:40000")
	resolver4 = netip.MustParseAddrPort("10.0.0.53:53")
	client6   = netip.MustParseAddrPort("[fd00::7]:40000")
	resolver6 = netip.MustParseAddrPort("[fd00::53]:53")
)

// datagram returns an IP packet.
func datagram(from, to netip.AddrPort, payload []byte) []byte {
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(udpHeaderSize+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	if from.Addr().Is4() {
		ip := make([]byte, 20, 20+len(udp))
		ip[0], ip[9] = 0x45, protocolUDP
		copy(ip[12:], from.Addr().AsSlice())
		copy(ip[16:], to.Addr().AsSlice())
		return append(ip, udp...)
	}
	ip := make([]byte, ipv6HeaderSize, ipv6HeaderSize+len(udp))
	ip[0], ip[6] = 0x60, protocolUDP
	copy(ip[8:], from.Addr().AsSlice())
	copy(ip[24:], to.Addr().AsSlice())
	return append(ip, udp...)
}

// records are the answers of a message: name, type and value.
type records [][3]string

func message(t testing.TB, response bool, code dnsmessage.RCode, name string, answers records) []byte {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 7, Response: response, RCode: code})
	b.EnableCompression()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(b.StartQuestions())
	must(b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}))
	must(b.StartAnswers())
	for i, r := range answers {
		h := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(r[0]), Class: dnsmessage.ClassINET, TTL: uint32(100 - i)}
		switch r[1] {
		case "A":
			must(b.AResource(h, dnsmessage.AResource{A: netip.MustParseAddr(r[2]).As4()}))
		case "AAAA":
			must(b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: netip.MustParseAddr(r[2]).As16()}))
		case "CNAME":
			must(b.CNAMEResource(h, dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(r[2])}))
		case "TXT":
			must(b.TXTResource(h, dnsmessage.TXTResource{TXT: []string{r[2]}}))
		}
	}
	out, err := b.Finish()
	must(err)
	return out
}

func TestDecode(t *testing.T) {
	fragment6 := func(b []byte, offset uint16) []byte {
		out := bytes.Clone(b[:ipv6HeaderSize])
		out[6] = headerFragment
		out = append(out, protocolUDP, 0, byte(offset>>8), byte(offset), 0, 0, 0, 1)
		return append(out, b[ipv6HeaderSize:]...)
	}
	question := message(t, false, 0, "Cart.Shop.Example.", nil)
	answer := message(t, true, 0, "www.example.", records{
		{"b.cdn.example.", "A", "192.0.2.2"}, // records may stand in any order
		{"WWW.example.", "CNAME", "a.cdn.example."},
		{"a.cdn.example.", "CNAME", "b.CDN.example."},
		{"b.cdn.example.", "TXT", "x"},
		{"other.example.", "A", "192.0.2.9"},
		{"b.cdn.example.", "AAAA", "2001:db8::2"},
	})
	loop := message(t, true, 0, "a.example.", records{{"a.example.", "CNAME", "b.example."}, {"b.example.", "CNAME", "a.example."}})
	asked := &Packet{From: client4, To: resolver4, Message: Message{ID: 7, Name: "cart.shop.example", Type: 1}}
	answered := &Packet{From: resolver6, To: client6, Message: Message{
		ID: 7, Response: true, Name: "www.example", Type: 1, TTL: 95,
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")},
	}}
	first := datagram(client4, resolver4, question)
	options := append(append(bytes.Clone(first[:20]), 0, 0, 0, 0), first[20:]...)
	options[0] = 0x46
	later, tcp := bytes.Clone(first), bytes.Clone(first)
	later[7], tcp[9] = 1, 6
	more := bytes.Clone(first)
	more[6] = 0x20 // the first fragment of several
	tests := map[string]struct {
		in   []byte
		want *Packet
	}{
		"question":               {first, asked},
		"IPv4 options":           {options, asked},
		"first fragment":         {more, asked},
		"later fragment":         {later, nil},
		"TCP":                    {tcp, nil},
		"answer through aliases": {datagram(resolver6, client6, answer), answered},
		"IPv6 first fragment":    {fragment6(datagram(resolver6, client6, answer), 1), answered},
		"IPv6 later fragment":    {fragment6(datagram(resolver6, client6, answer), 8), nil},
		"a loop of aliases": {
			datagram(resolver4, client4, loop),
			&Packet{From: resolver4, To: client4, Message: Message{ID: 7, Response: true, Name: "a.example", Type: 1}},
		},
		"an error": {
			datagram(resolver4, client4, message(t, true, dnsmessage.RCodeNameError, "no.example.", nil)),
			&Packet{From: resolver4, To: client4, Message: Message{ID: 7, Response: true, Code: 3, Name: "no.example", Type: 1}},
		},
		"bytes that are not text": {
			datagram(client4, resolver4, message(t, false, 0, "a\xff\x00\n.example.", nil)),
			&Packet{From: client4, To: resolver4, Message: Message{ID: 7, Name: "a???.example", Type: 1}},
		},
		"another port": {datagram(client4, netip.AddrPortFrom(resolver4.Addr(), 54), question), nil},
		"no question":  {datagram(client4, resolver4, make([]byte, 12)), nil},
		"empty":        {nil, nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var got Packet
			if ok := got.Decode(tc.in); ok != (tc.want != nil) {
				t.Fatalf("Decode = %t", ok)
			}
			if tc.want == nil {
				return
			}
			if len(got.Message.Addresses) == 0 {
				got.Message.Addresses = nil
			}
			if diff := cmp.Diff(*tc.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}

	// An answer that is cut off keeps what was captured.
	whole := datagram(resolver6, client6, answer)
	var got Packet
	if !got.Decode(whole[:len(whole)-1]) || len(got.Message.Addresses) != 1 {
		t.Errorf("answer cut off: %+v", got)
	}
}

// FuzzDecode holds Decode to its contract for any bytes: no panic; a name is
// printable ASCII of at most 255 bytes; addresses are valid and bounded; the
// result does not depend on the packet decoded before.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(datagram(client4, resolver4, message(f, false, 0, "cart.example.", nil)))
	f.Add(datagram(resolver6, client6, message(f, true, 0, "a.example.", records{{"a.example.", "CNAME", "b.example."}, {"b.example.", "AAAA", "fd00::1"}})))
	f.Add(datagram(resolver4, client4, message(f, true, 3, "no.example.", nil)))
	f.Fuzz(func(t *testing.T, in []byte) {
		clean := Packet{}
		used := Packet{Message: Message{Code: 9, TTL: 9, Addresses: []netip.Addr{client4.Addr()}}}
		ok, again := clean.Decode(in), used.Decode(in)
		if ok != again {
			t.Fatalf("Decode = %t, then %t", ok, again)
		}
		if !ok {
			return
		}
		m := &clean.Message
		if len(m.Name) > 255 || !utf8.ValidString(m.Name) {
			t.Fatalf("name %q", m.Name)
		}
		for _, c := range []byte(m.Name) {
			if c <= ' ' || c > '~' || 'A' <= c && c <= 'Z' {
				t.Fatalf("name %q", m.Name)
			}
		}
		if len(m.Addresses) > maxAnswers || !m.Response && len(m.Addresses) > 0 {
			t.Fatalf("%d addresses", len(m.Addresses))
		}
		if m.Name != used.Message.Name || m.TTL != used.Message.TTL || len(m.Addresses) != len(used.Message.Addresses) {
			t.Fatalf("decoded twice: %+v and %+v", m, used.Message)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	in := datagram(resolver4, client4, message(b, true, 0, "cart.shop.svc.cluster.local.", records{{"cart.shop.svc.cluster.local.", "A", "10.1.2.3"}}))
	var p Packet
	b.ReportAllocs()
	for b.Loop() {
		if !p.Decode(in) {
			b.Fatal("not decoded")
		}
	}
}
