package dns

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// Port is the port of DNS.
const Port = 53

// Packet is one DNS message as a network device passed it.
type Packet struct {
	Time      int64 // Unix time in nanoseconds, by the kernel
	Outgoing  bool  // sent by this network namespace, not received
	Interface int   // index of the device
	From, To  netip.AddrPort
	Message   Message
}

// Message is the part of a DNS message that this package uses.
type Message struct {
	ID       uint16
	Response bool
	Code     uint16 // of a response
	Name     string // of the question, lower case, without a dot at the end
	Type     uint16 // of the question
	// Addresses are those that the answers give for Name, through CNAMEs. TTL
	// is the least among the answers on the way, in seconds.
	Addresses []netip.Addr
	TTL       uint32
}

const (
	// maxAnswers bounds the answers read of one message, maxAliases the CNAMEs
	// followed.
	maxAnswers = 64
	maxAliases = 16

	protocolUDP    = 17
	headerFragment = 44 // IPv6 extension header
	udpHeaderSize  = 8
	ipv6HeaderSize = 40
)

// Decode reads an IP packet, from the first byte of its IP header, into the
// addresses and the message of p. It reports whether b is a UDP packet from or
// to port 53 with one question, as far as it was captured; answers that are cut
// off are left out. p is valid only then. Decode overwrites all but Time,
// Outgoing and Interface.
func (p *Packet) Decode(b []byte) bool {
	payload, ok := p.datagram(b)
	return ok && p.Message.decode(payload)
}

// datagram reads the headers of IP and UDP. It returns the payload, as far as
// it was captured.
func (p *Packet) datagram(b []byte) (payload []byte, ok bool) {
	if len(b) == 0 {
		return nil, false
	}
	var from, to netip.Addr
	switch b[0] >> 4 {
	case 4:
		header := int(b[0]&0xf) * 4
		if header < 20 || len(b) < header+udpHeaderSize || b[9] != protocolUDP || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return nil, false // not UDP, or a later fragment
		}
		from, to = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		b = b[header:]
	case 6:
		header, next := ipv6HeaderSize, 6
		if len(b) < header+udpHeaderSize {
			return nil, false
		}
		if b[next] == headerFragment {
			if binary.BigEndian.Uint16(b[header+2:])&0xfff8 != 0 {
				return nil, false
			}
			next, header = header, header+8
		}
		if b[next] != protocolUDP || len(b) < header+udpHeaderSize {
			return nil, false
		}
		from, to = netip.AddrFrom16([16]byte(b[8:24])).Unmap(), netip.AddrFrom16([16]byte(b[24:40])).Unmap()
		b = b[header:]
	default:
		return nil, false
	}
	p.From = netip.AddrPortFrom(from, binary.BigEndian.Uint16(b))
	p.To = netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[2:]))
	if p.From.Port() != Port && p.To.Port() != Port {
		return nil, false
	}
	size := int(binary.BigEndian.Uint16(b[4:]))
	if size < udpHeaderSize {
		return nil, false
	}
	return b[udpHeaderSize:max(udpHeaderSize, min(size, len(b)))], true
}

// alias is a CNAME record.
type alias struct {
	owner, target dnsmessage.Name
	ttl           uint32
}

// address is an A or AAAA record.
type address struct {
	owner dnsmessage.Name
	addr  netip.Addr
	ttl   uint32
}

func (m *Message) decode(b []byte) bool {
	*m = Message{Addresses: m.Addresses[:0]}
	var parser dnsmessage.Parser
	header, err := parser.Start(b)
	if err != nil || header.OpCode != 0 {
		return false
	}
	question, err := parser.Question()
	if err != nil || question.Class != dnsmessage.ClassINET || parser.SkipAllQuestions() != nil {
		return false
	}
	m.ID, m.Response, m.Code = header.ID, header.Response, uint16(header.RCode)
	m.Name, m.Type = text(&question.Name), uint16(question.Type)
	if m.Response && header.RCode == dnsmessage.RCodeSuccess {
		m.answers(&parser, question.Name)
	}
	return true
}

// answers reads the addresses for the name. Records may stand in any order, and
// a malformed or missing one ends them.
func (m *Message) answers(parser *dnsmessage.Parser, name dnsmessage.Name) {
	var aliases []alias
	var addresses []address
	for range maxAnswers {
		h, err := parser.AnswerHeader()
		if err != nil {
			break
		}
		switch h.Type {
		case dnsmessage.TypeA:
			r, err := parser.AResource()
			if err == nil {
				addresses = append(addresses, address{h.Name, netip.AddrFrom4(r.A), h.TTL})
				continue
			}
		case dnsmessage.TypeAAAA:
			r, err := parser.AAAAResource()
			if err == nil {
				addresses = append(addresses, address{h.Name, netip.AddrFrom16(r.AAAA).Unmap(), h.TTL})
				continue
			}
		case dnsmessage.TypeCNAME:
			r, err := parser.CNAMEResource()
			if err == nil {
				aliases = append(aliases, alias{h.Name, r.CNAME, h.TTL})
				continue
			}
		default:
			if parser.SkipAnswer() == nil {
				continue
			}
		}
		break
	}
	m.TTL = ^uint32(0)
	for range maxAliases {
		for i := range addresses {
			if a := &addresses[i]; same(&a.owner, &name) {
				m.Addresses, m.TTL = append(m.Addresses, a.addr), min(m.TTL, a.ttl)
			}
		}
		if len(m.Addresses) > 0 {
			return
		}
		next := -1
		for i := range aliases {
			if same(&aliases[i].owner, &name) {
				next = i
				break
			}
		}
		if next < 0 {
			break
		}
		name, m.TTL = aliases[next].target, min(m.TTL, aliases[next].ttl)
	}
	m.TTL = 0 // no address
}

// same compares names; case does not matter.
func same(a, b *dnsmessage.Name) bool {
	if a.Length != b.Length {
		return false
	}
	for i := range a.Data[:a.Length] {
		if lower(a.Data[i]) != lower(b.Data[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// text returns a name in lower case without the dot at its end. Bytes that are
// not printable ASCII become '?'; the root is ".".
func text(n *dnsmessage.Name) string {
	b := n.Data[:n.Length]
	if len(b) > 1 && b[len(b)-1] == '.' {
		b = b[:len(b)-1]
	}
	var s strings.Builder
	s.Grow(len(b))
	for _, c := range b {
		if c <= ' ' || c > '~' {
			c = '?'
		}
		s.WriteByte(lower(c))
	}
	return s.String()
}

// codeName returns the name of a response code.
func codeName(code uint16) string {
	names := [...]string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"}
	if int(code) < len(names) {
		return names[code]
	}
	return "OTHER"
}
