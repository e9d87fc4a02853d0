package netlink

import (
	"encoding/binary"
	"fmt"
)

// Sizes and numbers of linux/netlink.h.
const (
	HeaderSize    = 16 // struct nlmsghdr
	AttributeSize = 4  // struct nlattr

	kindError = 2 // NLMSG_ERROR
	kindDone  = 3 // NLMSG_DONE

	flagRequest = 0x001 // NLM_F_REQUEST
	flagDump    = 0x300 // NLM_F_DUMP

	attributeMask = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
)

// Message is a netlink message, without its length and flags.
type Message struct {
	Kind     uint16
	Sequence uint32
	Payload  []byte
}

// Next splits b into its first message and the rest. Its error is ErrMalformed.
func Next(b []byte) (m Message, rest []byte, err error) {
	if len(b) < HeaderSize {
		return Message{}, nil, fmt.Errorf("%w: %d bytes instead of a netlink header", ErrMalformed, len(b))
	}
	n := uint64(binary.NativeEndian.Uint32(b))
	if n < HeaderSize || n > uint64(len(b)) {
		return Message{}, nil, fmt.Errorf("%w: netlink message of %d bytes in %d", ErrMalformed, n, len(b))
	}
	m = Message{Kind: binary.NativeEndian.Uint16(b[4:]), Sequence: binary.NativeEndian.Uint32(b[8:]), Payload: b[HeaderSize:n]}
	return m, b[min(align(n), uint64(len(b))):], nil
}

// NextAttribute splits b into its first attribute and the rest. kind is without
// flags. Its error is ErrMalformed.
func NextAttribute(b []byte) (kind uint16, value, rest []byte, err error) {
	if len(b) < AttributeSize {
		return 0, nil, nil, fmt.Errorf("%w: %d bytes instead of an attribute", ErrMalformed, len(b))
	}
	n := uint64(binary.NativeEndian.Uint16(b))
	if n < AttributeSize || n > uint64(len(b)) {
		return 0, nil, nil, fmt.Errorf("%w: attribute of %d bytes in %d", ErrMalformed, n, len(b))
	}
	return binary.NativeEndian.Uint16(b[2:]) & attributeMask, b[AttributeSize:n], b[min(align(n), uint64(len(b))):], nil
}

func align(n uint64) uint64 { return (n + 3) &^ 3 }

// putDump fills in the header of a request for a dump, which has room for it.
func putDump(request []byte, kind uint16, sequence uint32) {
	binary.NativeEndian.PutUint32(request[0:], uint32(len(request)))
	binary.NativeEndian.PutUint16(request[4:], kind)
	binary.NativeEndian.PutUint16(request[6:], flagRequest|flagDump)
	binary.NativeEndian.PutUint32(request[8:], sequence)
}

// visitDump visits the messages with the sequence number. It reports whether the
// last one of the dump was among them, and then the kernel's verdict on the dump.
func visitDump(in []byte, sequence uint32, visit func(Message) error) (done bool, result int32, err error) {
	for len(in) > 0 {
		var m Message
		if m, in, err = Next(in); err != nil {
			return false, 0, err
		}
		switch {
		case m.Sequence != sequence: // left over from an abandoned dump
		case m.Kind == kindDone || m.Kind == kindError:
			if len(m.Payload) >= 4 {
				result = -int32(binary.NativeEndian.Uint32(m.Payload))
			}
			return true, result, nil
		default:
			if err := visit(m); err != nil {
				return false, 0, err
			}
		}
	}
	return false, 0, nil
}

// visitAll visits every message.
func visitAll(in []byte, visit func(Message) error) (err error) {
	for len(in) > 0 {
		var m Message
		if m, in, err = Next(in); err != nil {
			return err
		}
		if err := visit(m); err != nil {
			return err
		}
	}
	return nil
}
