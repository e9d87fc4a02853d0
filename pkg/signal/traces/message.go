package traces

import (
	"encoding/binary"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// Tags of the fields that are read by name.
const (
	TagRequestResourceSpans = 1<<3 | Bytes

	TagResourceSpansResource   = 1<<3 | Bytes
	TagResourceSpansScopeSpans = 2<<3 | Bytes
	TagResourceSpansSchemaURL  = 3<<3 | Bytes

	TagScopeSpansScope     = 1<<3 | Bytes
	TagScopeSpansSpans     = 2<<3 | Bytes
	TagScopeSpansSchemaURL = 3<<3 | Bytes

	TagResourceAttributes   = 1<<3 | Bytes
	TagResourceDroppedCount = 2<<3 | Varint

	TagScopeName         = 1<<3 | Bytes
	TagScopeVersion      = 2<<3 | Bytes
	TagScopeAttributes   = 3<<3 | Bytes
	TagScopeDroppedCount = 4<<3 | Varint

	TagSpanTraceID                = 1<<3 | Bytes
	TagSpanSpanID                 = 2<<3 | Bytes
	TagSpanTraceState             = 3<<3 | Bytes
	TagSpanParentSpanID           = 4<<3 | Bytes
	TagSpanName                   = 5<<3 | Bytes
	TagSpanKind                   = 6<<3 | Varint
	TagSpanStartTime              = 7<<3 | Fixed64
	TagSpanEndTime                = 8<<3 | Fixed64
	TagSpanAttributes             = 9<<3 | Bytes
	TagSpanDroppedAttributesCount = 10<<3 | Varint
	TagSpanEvents                 = 11<<3 | Bytes
	TagSpanDroppedEventsCount     = 12<<3 | Varint
	TagSpanLinks                  = 13<<3 | Bytes
	TagSpanDroppedLinksCount      = 14<<3 | Varint
	TagSpanStatus                 = 15<<3 | Bytes
	TagSpanFlags                  = 16<<3 | Fixed32

	TagEventTime         = 1<<3 | Fixed64
	TagEventName         = 2<<3 | Bytes
	TagEventAttributes   = 3<<3 | Bytes
	TagEventDroppedCount = 4<<3 | Varint

	TagLinkTraceID      = 1<<3 | Bytes
	TagLinkSpanID       = 2<<3 | Bytes
	TagLinkTraceState   = 3<<3 | Bytes
	TagLinkAttributes   = 4<<3 | Bytes
	TagLinkDroppedCount = 5<<3 | Varint
	TagLinkFlags        = 6<<3 | Fixed32

	TagStatusMessage = 2<<3 | Bytes
	TagStatusCode    = 3<<3 | Varint

	TagKeyValueKey   = 1<<3 | Bytes
	TagKeyValueValue = 2<<3 | Bytes

	TagAnyValueString = 1<<3 | Bytes
	TagAnyValueBool   = 2<<3 | Varint
	TagAnyValueInt    = 3<<3 | Varint
	TagAnyValueDouble = 4<<3 | Fixed64
	TagAnyValueArray  = 5<<3 | Bytes
	TagAnyValueKvlist = 6<<3 | Bytes
	TagAnyValueBytes  = 7<<3 | Bytes

	// TagValues is the only field of both ArrayValue and KeyValueList.
	TagValues = 1<<3 | Bytes
)

// Message says what has to be checked inside a message: which of its
// length-delimited fields are text and which are messages themselves. Every other
// field only has to be well-formed.
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

// Valid reports whether b is a well-formed m all of whose texts are UTF-8: whether the
// official protobuf runtime would unmarshal it.
func (m *Message) Valid(b []byte) bool { return m.valid(b, depthRequest) }

type field struct {
	text bool
	sub  *Message
}

var (
	anyValue     = &Message{}
	keyValue     = &Message{fields: [16]field{1: {text: true}, 2: {sub: anyValue}}}
	arrayValue   = &Message{fields: [16]field{1: {sub: anyValue}}}
	keyValueList = &Message{fields: [16]field{1: {sub: keyValue}}}
	entityRef    = &Message{fields: [16]field{1: {text: true}, 2: {text: true}, 3: {text: true}, 4: {text: true}}}
	resource     = &Message{fields: [16]field{1: {sub: keyValue}, 3: {sub: entityRef}}}
	scope        = &Message{fields: [16]field{1: {text: true}, 2: {text: true}, 3: {sub: keyValue}}}
	event        = &Message{fields: [16]field{2: {text: true}, 3: {sub: keyValue}}}
	link         = &Message{fields: [16]field{3: {text: true}, 4: {sub: keyValue}}}
	status       = &Message{fields: [16]field{2: {text: true}}}
	span         = &Message{fields: [16]field{
		3: {text: true}, 5: {text: true}, 9: {sub: keyValue}, 11: {sub: event}, 13: {sub: link}, 15: {sub: status},
	}}
	scopeSpans    = &Message{fields: [16]field{1: {sub: scope}, 2: {sub: span}, 3: {text: true}}}
	resourceSpans = &Message{fields: [16]field{1: {sub: resource}, 2: {sub: scopeSpans}, 3: {text: true}}}
	request       = &Message{fields: [16]field{1: {sub: resourceSpans}}}
)

func init() {
	// An AnyValue holds lists of AnyValues: the only cycle, closed here.
	anyValue.fields = [16]field{1: {text: true}, 5: {sub: arrayValue}, 6: {sub: keyValueList}}
}

// How deep each level of a request stands, counted as the official runtime
// counts: the request itself is the first of DefaultRecursionLimit levels.
const (
	depthRequest       = protowire.DefaultRecursionLimit - 1
	depthResourceSpans = depthRequest - 1
	depthScopeSpans    = depthResourceSpans - 1
	depthSpan          = depthScopeSpans - 1
)

// valid reports whether b is a well-formed m, all the way down.
// depth is how many more levels may follow below this one.
//
// Most of b are short texts, plain or in attributes, one behind the other. What stands between
// them, tags and lengths below 128, is ASCII, so that a run of them is UTF-8 exactly
// when each of them is: it is checked as a whole.
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
			if f.text || f.sub == keyValue && depth >= levelsOfAttribute && plainText(b[lo:hi]) {
				i = hi
				continue
			}
		} else if tag, lo, hi = Next(b, i); hi < 0 {
			return false
		}
		if run < i && !validText(b[run:i]) || !m.validField(tag, b[lo:hi], depth) {
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

// validField reports whether value, as Next found it, may stand in a field of
// m under this tag.
func (m *Message) validField(tag Tag, value []byte, depth int) bool {
	if tag&typeMask != Bytes || tag>>3 >= Tag(len(m.fields)) {
		return true
	}
	switch f := &m.fields[tag>>3]; {
	case f.text:
		return validText(value)
	case f.sub == keyValue && depth >= levelsOfAttribute && plainText(value):
		return validText(value)
	case f.sub == keyValue && depth >= levelsOfAttribute && plainNumber(value):
		return validText(value[2 : 2+int(value[1])])
	case f.sub != nil:
		return f.sub.valid(value, depth-1)
	default:
		return true
	}
}

// plainText reports whether b is a KeyValue in the form in which nearly all
// are written: a key and a text, each shorter than 128 bytes. Its tags and lengths
// are ASCII then, so that it is valid when b as a whole is UTF-8.
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

// validText is utf8.Valid, faster for what is ASCII, as nearly all is.
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

// Check returns ErrMalformed unless req is a valid ExportTraceServiceRequest.
// An empty req is valid.
func Check(req []byte) error {
	if !request.Valid(req) {
		return ErrMalformed
	}
	return nil
}
