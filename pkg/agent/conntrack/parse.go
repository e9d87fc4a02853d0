package conntrack

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/metaflowys/metaflow-server/pkg/agent/nat"
	"github.com/metaflowys/metaflow-server/pkg/agent/netlink"
)

// Sizes and numbers of linux/netfilter/nfnetlink*.h.
const (
	messageSize = 4 // struct nfgenmsg

	kindNew = 1 << 8 // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW
	kindGet = 1<<8 | 1

	attrOriginal   = 1  // CTA_TUPLE_ORIG
	attrReply      = 2  // CTA_TUPLE_REPLY
	attrStatus     = 3  // CTA_STATUS
	attrStatusMask = 26 // CTA_STATUS_MASK

	attrTupleIP       = 1
	attrTupleProtocol = 2

	attrIPv4From = 1
	attrIPv4To   = 2
	attrIPv6From = 3
	attrIPv6To   = 4

	attrProtocolNumber = 1
	attrPortFrom       = 2
	attrPortTo         = 3

	statusSourceTranslated = 1 << 4 // IPS_SRC_NAT
	statusTargetTranslated = 1 << 5 // IPS_DST_NAT
	statusTranslated       = statusSourceTranslated | statusTargetTranslated

	protocolTCP = 6
	protocolUDP = 17
	dnsPort     = 53
)

// tuple is one direction of a connection.
type tuple struct {
	from, to         netip.Addr
	protocol         byte
	fromPort, toPort uint16
}

// parse reads an nfgenmsg and its attributes into c. relevant reports whether
// it is a translated connection over TCP, or over UDP to port 53; c is valid
// only then.
func parse(b []byte, c *nat.Connection) (relevant bool, err error) {
	if len(b) < messageSize {
		return false, fmt.Errorf("%w: nfgenmsg of %d bytes", ErrMalformed, len(b))
	}
	var original, reply tuple
	var status uint32
	for rest := b[messageSize:]; len(rest) > 0; {
		var kind uint16
		var value []byte
		if kind, value, rest, err = netlink.NextAttribute(rest); err != nil {
			return false, err
		}
		switch kind {
		case attrOriginal:
			err = original.parse(value)
		case attrReply:
			err = reply.parse(value)
		case attrStatus:
			if len(value) < 4 {
				return false, fmt.Errorf("%w: status of %d bytes", ErrMalformed, len(value))
			}
			status = binary.BigEndian.Uint32(value)
		}
		if err != nil {
			return false, err
		}
	}
	if status&statusTranslated == 0 || !original.from.IsValid() || !original.to.IsValid() || !reply.from.IsValid() || !reply.to.IsValid() {
		return false, nil
	}
	if original.protocol != protocolTCP && (original.protocol != protocolUDP || original.toPort != dnsPort && reply.fromPort != dnsPort) {
		return false, nil
	}
	*c = nat.Connection{
		UDP:       original.protocol == protocolUDP,
		From:      netip.AddrPortFrom(original.from, original.fromPort),
		To:        netip.AddrPortFrom(original.to, original.toPort),
		ReplyFrom: netip.AddrPortFrom(reply.from, reply.fromPort),
		ReplyTo:   netip.AddrPortFrom(reply.to, reply.toPort),
	}
	return true, nil
}

func (t *tuple) parse(b []byte) error {
	for len(b) > 0 {
		kind, value, rest, err := netlink.NextAttribute(b)
		if err != nil {
			return err
		}
		b = rest
		for len(value) > 0 && (kind == attrTupleIP || kind == attrTupleProtocol) {
			inner, v, more, err := netlink.NextAttribute(value)
			if err != nil {
				return err
			}
			value = more
			if kind == attrTupleIP {
				t.address(inner, v)
			} else {
				t.number(inner, v)
			}
		}
	}
	return nil
}

func (t *tuple) address(kind uint16, v []byte) {
	switch {
	case kind == attrIPv4From && len(v) == 4, kind == attrIPv6From && len(v) == 16:
		t.from, _ = netip.AddrFromSlice(v)
		t.from = t.from.Unmap()
	case kind == attrIPv4To && len(v) == 4, kind == attrIPv6To && len(v) == 16:
		t.to, _ = netip.AddrFromSlice(v)
		t.to = t.to.Unmap()
	}
}

func (t *tuple) number(kind uint16, v []byte) {
	switch {
	case kind == attrProtocolNumber && len(v) >= 1:
		t.protocol = v[0]
	case kind == attrPortFrom && len(v) >= 2:
		t.fromPort = binary.BigEndian.Uint16(v)
	case kind == attrPortTo && len(v) >= 2:
		t.toPort = binary.BigEndian.Uint16(v)
	}
}
