package signal

import (
	"encoding/binary"
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
)

// ErrMalformed means that bytes are not the expected protobuf message.
var ErrMalformed = errors.New("malformed protobuf")

// Tag is a field's number and wire type as they stand on the wire:
// number<<3 | type.
type Tag uint32

// Wire types, the low three bits of a Tag.
const (
	Varint  = Tag(protowire.VarintType)
	Fixed64 = Tag(protowire.Fixed64Type)
	Bytes   = Tag(protowire.BytesType)
	Fixed32 = Tag(protowire.Fixed32Type)

	startGroup = Tag(protowire.StartGroupType)
	typeMask   = 7
)

// Next reads the field that starts at b[i]. Its value is b[lo:hi]: the payload
// of a length-delimited field, else the bytes as encoded; the next field starts at hi.
// hi is negative when b does not hold a whole, valid field there. i must be
// less than len(b).
func Next(b []byte, i int) (tag Tag, lo, hi int) {
	// Nearly every tag and most lengths are one byte.
	if c := b[i]; c < 0x80 {
		tag = Tag(c)
		i++
	} else {
		v, n := protowire.ConsumeVarint(b[i:])
		if n < 0 || v>>3 > uint64(protowire.MaxValidNumber) {
			return 0, 0, -1
		}
		tag = Tag(v)
		i += n
	}
	if tag>>3 == 0 {
		return 0, 0, -1
	}
	switch tag & typeMask {
	case Bytes:
		var size uint64
		if i < len(b) && b[i] < 0x80 {
			size = uint64(b[i])
			i++
		} else {
			v, n := protowire.ConsumeVarint(b[i:])
			if n < 0 {
				return 0, 0, -1
			}
			size = v
			i += n
		}
		if size > uint64(len(b)-i) {
			return 0, 0, -1
		}
		return tag, i, i + int(size)
	case Varint:
		if i < len(b) && b[i] < 0x80 {
			return tag, i, i + 1
		}
		_, n := protowire.ConsumeVarint(b[i:])
		if n < 0 {
			return 0, 0, -1
		}
		return tag, i, i + n
	case Fixed64:
		if len(b)-i < 8 {
			return 0, 0, -1
		}
		return tag, i, i + 8
	case Fixed32:
		if len(b)-i < 4 {
			return 0, 0, -1
		}
		return tag, i, i + 4
	case startGroup:
		// No message here has groups: skip to the end of an unknown one.
		n := protowire.ConsumeFieldValue(protowire.Number(tag>>3), protowire.StartGroupType, b[i:])
		if n < 0 {
			return 0, 0, -1
		}
		return tag, i, i + n
	default: // an end of group without its start, or a reserved type
		return 0, 0, -1
	}
}

// Uint64 decodes the value of a field of wire type Varint or Fixed64 as Next
// returned it.
func Uint64(tag Tag, value []byte) uint64 {
	if tag&typeMask == Fixed64 {
		return binary.LittleEndian.Uint64(value)
	}
	v, _ := protowire.ConsumeVarint(value)
	return v
}

// Uint32 decodes the value of a field of wire type Fixed32, or the low half of a Varint.
func Uint32(tag Tag, value []byte) uint32 {
	if tag&typeMask == Fixed32 {
		return binary.LittleEndian.Uint32(value)
	}
	return uint32(Uint64(Varint, value))
}

// AppendBytesTag appends the start of a length-delimited field: its tag, of a
// number below 16, and its length.
func AppendBytesTag(dst []byte, tag Tag, length int) []byte {
	dst = append(dst, byte(tag))
	return protowire.AppendVarint(dst, uint64(length))
}

// SizeBytesTag is the size of what AppendBytesTag appends.
func SizeBytesTag(length int) int {
	return 1 + protowire.SizeVarint(uint64(length))
}
