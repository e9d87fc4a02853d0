package signal

import (
	"encoding/binary"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// Message lists what to check in a message: which of its length-delimited fields
// are text and which are messages themselves. Every other field only has to be
// well-formed.
type Message struct {
	fields [16]field // by number
	flat   bool      // no field is text or a message
}

// NewMessage returns a Message with these fields, whose numbers are below 16.
func NewMessage(texts []int, messages map[int]*Message) *Message {
	m := &Message{flat: len(texts)+len(messages) == 0}
	for _, number := range texts {
		m.fields[number].text = true
	}
	for number, sub := range messages {
		m.fields[number].sub = sub
	}
	return m
}

// Valid reports whether b is a well-formed m whose texts are all UTF-8: whether
// the official protobuf runtime would unmarshal it.
func (m *Message) Valid(b []byte) bool { return m.valid(b, Depth) }

type field struct {
	text bool
	sub  *Message
}

// Depth is how many levels of messages may stand below a request: the official
// runtime counts the request itself as the first of its limit.
const Depth = protowire.DefaultRecursionLimit - 1

// valid reports whether b is a well-formed m, all the way down. depth is how
// many levels may stand below m.
//
// Most of b is short texts, plain or in attributes, one behind the other. The
// tags and lengths between them are below 128 and so ASCII. So a run of texts is
// UTF-8 exactly when each text is, and valid checks it as a whole.
func (m *Message) valid(b []byte, depth int) bool {
	if depth < 0 {
		return false
	}
	if m.flat {
		return wellFormed(b)
	}
	run := 0 // b[run:i] is such a run
	for i := 0; i < len(b); {
		var tag Tag
		var lo, hi int
		if len(b)-i >= 2 && b[i] < 0x80 && b[i]&typeMask == byte(Bytes) && b[i+1] < 0x80 && b[i]>>3 != 0 {
			lo = i + 2
			hi = lo + int(b[i+1])
			if hi > len(b) {
				return false
			}
			tag = Tag(b[i])
			f := &m.fields[tag>>3]
			if f.text || f.sub == KeyValue && depth >= levelsOfAttribute && plainText(b[lo:hi]) {
				i = hi
				continue
			}
		} else if tag, lo, hi = Next(b, i); hi < 0 {
			return false
		}
		if run < i && !validText(b[run:i]) || !m.ValidField(tag, b[lo:hi], depth) {
			return false
		}
		i = hi
		run = hi
	}
	return run == len(b) || validText(b[run:])
}

// wellFormed reports whether b is a message of any kind.
func wellFormed(b []byte) bool {
	for i := 0; i < len(b); {
		if _, _, i = Next(b, i); i < 0 {
			return false
		}
	}
	return true
}

// levelsOfAttribute are the levels of a KeyValue with a text: itself and its value.
const levelsOfAttribute = 2

// ValidField reports whether value, as Next found it, may stand in a field of m
// under this tag. depth is how many levels may stand below m; a request has
// Depth.
func (m *Message) ValidField(tag Tag, value []byte, depth int) bool {
	if tag&typeMask != Bytes || tag>>3 >= Tag(len(m.fields)) {
		return true
	}
	switch f := &m.fields[tag>>3]; {
	case f.text:
		return validText(value)
	case f.sub == KeyValue && depth >= levelsOfAttribute && plainText(value):
		return validText(value)
	case f.sub == KeyValue && depth >= levelsOfAttribute && plainNumber(value):
		return validText(value[2 : 2+int(value[1])])
	case f.sub != nil:
		return f.sub.valid(value, depth-1)
	default:
		return true
	}
}

// plainText reports whether b is a KeyValue in the form that nearly all have: a
// key and a text, each shorter than 128 bytes. Its tags and lengths are ASCII
// then, so it is valid when b as a whole is UTF-8.
func plainText(b []byte) bool {
	if len(b) < 6 || Tag(b[0]) != TagKeyValueKey || b[1] >= 0x80 || int(b[1]) > len(b)-6 {
		return false
	}
	v := b[2+int(b[1]):] // the value's tag and length, the text's tag and length, the text
	return Tag(v[0]) == TagKeyValueValue && int(v[1]) == len(v)-2 && v[1] < 0x80 &&
		Tag(v[2]) == TagAnyValueString && int(v[3]) == len(v)-4
}

// plainNumber does the same for a key and a whole number, a bool or a double. Such a
// KeyValue is valid when its key is UTF-8.
func plainNumber(b []byte) bool {
	if len(b) < 6 || Tag(b[0]) != TagKeyValueKey || b[1] >= 0x80 || int(b[1]) > len(b)-6 {
		return false
	}
	v := b[2+int(b[1]):]
	if Tag(v[0]) != TagKeyValueValue || int(v[1]) != len(v)-2 || v[1] >= 0x80 {
		return false
	}
	switch Tag(v[2]) {
	case TagAnyValueInt, TagAnyValueBool:
		_, n := protowire.ConsumeVarint(v[3:])
		return n == len(v)-3
	case TagAnyValueDouble:
		return len(v) == 3+8
	default:
		return false
	}
}

// validText is utf8.Valid with a fast path for ASCII, the usual case.
func validText(b []byte) bool {
	const high = 0x8080808080808080
	rest := b
	for ; len(rest) >= 32; rest = rest[32:] {
		if (le64(rest)|le64(rest[8:])|le64(rest[16:])|le64(rest[24:]))&high != 0 {
			return utf8.Valid(b)
		}
	}
	for ; len(rest) >= 8; rest = rest[8:] {
		if le64(rest)&high != 0 {
			return utf8.Valid(b)
		}
	}
	if len(b) >= 8 { // the last eight, some of them for the second time
		return le64(b[len(b)-8:])&high == 0 || utf8.Valid(b)
	}
	return utf8.Valid(rest)
}

func le64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
