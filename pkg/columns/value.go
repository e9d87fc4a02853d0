package columns

import (
	"bytes"
	"encoding/base64"
	"math"
	"strconv"

	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// anyValue is the value of an AnyValue, still on the wire.
type anyValue struct {
	tag    signal.Tag // of the field that is set, 0 if none is
	wire   []byte     // unless pieces is set
	pieces *pieces    // of a list in several pieces, which is rare
}

// pieces is an array or a list of KeyValues that the wire splits into several pieces.
// Protobuf merges them: the list has the elements of all pieces. They are walked in
// place, because joining them at every level of nesting would not be linear in the bytes.
type pieces struct {
	in   []byte
	of   signal.Tag // 0 if in is the AnyValue, otherwise the tag of its pieces in in
	tag  signal.Tag // of the list in the AnyValue
	skip int        // number of leading fields with that tag that a later value replaced
}

// each calls f with every piece of the list.
func (p *pieces) each(f func(piece []byte)) {
	skip := p.skip
	eachField(p.in, p.of, func(anyValue []byte) {
		eachField(anyValue, p.tag, func(piece []byte) {
			if skip > 0 {
				skip--
				return
			}
			f(piece)
		})
	})
}

// eachField calls f with the value of every field of b with this tag, or with b itself if
// the tag is 0. b must be valid.
func eachField(b []byte, want signal.Tag, f func(value []byte)) {
	if want == 0 {
		f(b)
		return
	}
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		if tag == want {
			f(b[lo:hi])
		}
		i = hi
	}
}

// readAnyValue returns the effective value, which is the last one set. If a list is split
// into several pieces, all of them count, as protobuf merges them. b must be valid.
func readAnyValue(b []byte) anyValue {
	if len(b) > 0 { // nearly always a single string
		tag, lo, hi := signal.Next(b, 0)
		if hi == len(b) && tag == signal.TagAnyValueString {
			return anyValue{tag: tag, wire: b[lo:hi]}
		}
	}
	var v anyValue
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		switch tag {
		case signal.TagAnyValueString, signal.TagAnyValueBool, signal.TagAnyValueInt, signal.TagAnyValueDouble, signal.TagAnyValueBytes:
			v = anyValue{tag: tag, wire: b[lo:hi]}
		case signal.TagAnyValueArray, signal.TagAnyValueKvlist:
			if v.tag == tag {
				return readMergedValue(b, 0)
			}
			v = anyValue{tag: tag, wire: b[lo:hi]}
		case tagAnyValueStringIndex:
			v = anyValue{}
		}
		i = hi
	}
	return v
}

// readMergedValue is readAnyValue for an AnyValue with a list in several pieces, or one
// that is itself in several pieces: all fields of b with the tag of, concatenated.
func readMergedValue(b []byte, of signal.Tag) anyValue {
	var v anyValue
	var seen struct{ array, kvlist int } // fields so far
	var skip int
	eachField(b, of, func(piece []byte) {
		for i := 0; i < len(piece); {
			tag, lo, hi := signal.Next(piece, i)
			count := &seen.array
			switch tag {
			case signal.TagAnyValueString, signal.TagAnyValueBool, signal.TagAnyValueInt, signal.TagAnyValueDouble, signal.TagAnyValueBytes:
				v = anyValue{tag: tag, wire: piece[lo:hi]}
			case tagAnyValueStringIndex:
				v = anyValue{}
			case signal.TagAnyValueKvlist:
				count = &seen.kvlist
				fallthrough
			case signal.TagAnyValueArray:
				if v.tag != tag {
					v, skip = anyValue{tag: tag}, *count
				}
				*count++
			}
			i = hi
		}
	})
	if v.tag == signal.TagAnyValueArray || v.tag == signal.TagAnyValueKvlist {
		v.pieces = &pieces{in: b, of: of, tag: v.tag, skip: skip}
	}
	return v
}

// tagAnyValueStringIndex refers to a table that only profiles have. In a span it has no
// meaning, but it replaces an earlier value.
const tagAnyValueStringIndex = 8<<3 | signal.Varint

// appendText appends the value as lossless text: strings unchanged, numbers in decimal,
// bytes in base64, lists as JSON.
func (v anyValue) appendText(dst []byte) []byte {
	switch v.tag {
	case signal.TagAnyValueString:
		return append(dst, v.wire...)
	case signal.TagAnyValueBytes:
		return base64.StdEncoding.AppendEncode(dst, v.wire)
	case signal.TagAnyValueDouble:
		return appendDouble(dst, math.Float64frombits(signal.Uint64(v.tag, v.wire)))
	case 0:
		return dst
	default:
		return v.appendJSON(dst)
	}
}

// appendJSON appends the value in the form it has inside a JSON list.
func (v anyValue) appendJSON(dst []byte) []byte {
	switch v.tag {
	case signal.TagAnyValueString:
		return appendQuoted(dst, v.wire)
	case signal.TagAnyValueBool:
		return strconv.AppendBool(dst, signal.Uint64(v.tag, v.wire) != 0)
	case signal.TagAnyValueInt:
		return strconv.AppendInt(dst, int64(signal.Uint64(v.tag, v.wire)), 10)
	case signal.TagAnyValueDouble:
		f := math.Float64frombits(signal.Uint64(v.tag, v.wire))
		if math.IsNaN(f) || math.IsInf(f, 0) { // JSON has no such numbers
			dst = append(dst, '"')
			return append(appendDouble(dst, f), '"')
		}
		return appendDouble(dst, f)
	case signal.TagAnyValueBytes:
		dst = append(dst, '"')
		return append(base64.StdEncoding.AppendEncode(dst, v.wire), '"')
	case signal.TagAnyValueArray:
		return v.appendList(dst, "[]", appendElements)
	case signal.TagAnyValueKvlist:
		return v.appendObject(dst)
	default:
		return append(dst, "null"...)
	}
}

// appendList appends a list as JSON in brackets. appendPiece is appendElements for an
// array and appendMembers for KeyValues.
func (v anyValue) appendList(dst []byte, brackets string, appendPiece func(dst, piece []byte) []byte) []byte {
	dst = append(dst, brackets[0])
	if v.pieces == nil {
		dst = appendPiece(dst, v.wire)
	} else {
		dst = v.pieces.append(dst, appendPiece)
	}
	return append(dst, brackets[1])
}

func (p *pieces) append(dst []byte, appendPiece func(dst, piece []byte) []byte) []byte {
	p.each(func(piece []byte) { dst = appendPiece(dst, piece) })
	return dst
}

// appendElements appends the elements of an array to an open JSON list.
func appendElements(dst, wire []byte) []byte {
	for i := 0; i < len(wire); {
		tag, lo, hi := signal.Next(wire, i)
		if tag == signal.TagValues {
			dst = readAnyValue(wire[lo:hi]).appendJSON(appendComma(dst))
		}
		i = hi
	}
	return dst
}

// appendObject appends a list of KeyValues as a JSON object. The last value of a repeated
// key counts.
func (v anyValue) appendObject(dst []byte) []byte {
	var few [16][]byte
	var keys [][]byte
	if v.pieces == nil {
		keys = appendKeys(few[:0], v.wire, signal.TagValues)
	} else {
		keys = v.pieces.keys()
	}
	last := repeatedKeys(keys)
	if last == nil {
		return v.appendList(dst, "{}", appendMembers)
	}
	index := 0
	return v.appendList(dst, "{}", func(dst, wire []byte) []byte {
		eachField(wire, signal.TagValues, func(kv []byte) {
			if key, value := readKeyValue(kv); last[string(key)] == index {
				dst = value.appendJSON(append(appendQuoted(appendComma(dst), key), ':'))
			}
			index++
		})
		return dst
	})
}

func (p *pieces) keys() (keys [][]byte) {
	p.each(func(piece []byte) { keys = appendKeys(keys, piece, signal.TagValues) })
	return keys
}

// appendKeys appends the key of every KeyValue with this tag in wire.
func appendKeys(keys [][]byte, wire []byte, keyValues signal.Tag) [][]byte {
	for i := 0; i < len(wire); {
		tag, lo, hi := signal.Next(wire, i)
		if tag == keyValues {
			var key []byte
			for kv, j := wire[lo:hi], 0; j < len(kv); {
				tag, lo, hi := signal.Next(kv, j)
				if tag == signal.TagKeyValueKey {
					key = kv[lo:hi]
				}
				j = hi
			}
			keys = append(keys, key)
		}
		i = hi
	}
	return keys
}

// repeatedKeys returns the index of each key's last occurrence, or nil if no key is
// repeated.
func repeatedKeys(keys [][]byte) (last map[string]int) {
	const few = 32 // comparing so many in pairs is faster than a map
	repeated := false
	if len(keys) <= few {
		for i := range keys {
			for j := range i {
				repeated = repeated || bytes.Equal(keys[i], keys[j])
			}
		}
		if !repeated {
			return nil
		}
	}
	last = make(map[string]int, len(keys))
	for i, key := range keys {
		last[string(key)] = i
	}
	if len(last) == len(keys) {
		return nil
	}
	return last
}

// appendMembers appends KeyValues to an open JSON object.
func appendMembers(dst, wire []byte) []byte {
	for i := 0; i < len(wire); {
		tag, lo, hi := signal.Next(wire, i)
		if tag == signal.TagValues {
			key, value := readKeyValue(wire[lo:hi])
			dst = append(appendQuoted(appendComma(dst), key), ':')
			dst = value.appendJSON(dst)
		}
		i = hi
	}
	return dst
}

// eachAttribute calls f with the KeyValues with this tag in wire, and only with the last
// one of a repeated key.
func eachAttribute(wire []byte, keyValues signal.Tag, f func(key []byte, value anyValue)) {
	last := repeatedKeys(appendKeys(nil, wire, keyValues))
	index := 0
	eachField(wire, keyValues, func(kv []byte) {
		key, value := readKeyValue(kv)
		if last == nil || last[string(key)] == index {
			f(key, value)
		}
		index++
	})
}

// appendComma appends a separator unless an open JSON list or object is still empty. No
// value ends with an opening bracket.
func appendComma(dst []byte) []byte {
	if last := dst[len(dst)-1]; last != '[' && last != '{' {
		dst = append(dst, ',')
	}
	return dst
}

// readKeyValue reads a KeyValue. b must be valid.
func readKeyValue(b []byte) (key []byte, value anyValue) {
	var wire []byte
	merged := false
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		switch tag {
		case signal.TagKeyValueKey:
			key = b[lo:hi]
		case signal.TagKeyValueValue:
			merged = wire != nil
			wire = b[lo:hi]
		}
		i = hi
	}
	if merged { // protobuf merges a message that is split into several pieces
		return key, readMergedValue(b, signal.TagKeyValueValue)
	}
	return key, readAnyValue(wire)
}

// appendDouble appends the shortest decimal text that parses back to v, in the form of
// ECMAScript's Number.prototype.toString, as JSON encoders use it.
func appendDouble(dst []byte, v float64) []byte {
	if abs := math.Abs(v); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		return strconv.AppendFloat(dst, v, 'g', -1, 64)
	}
	return strconv.AppendFloat(dst, v, 'f', -1, 64)
}

// appendQuoted appends s as a JSON string (RFC 8259, section 7).
func appendQuoted(dst, s []byte) []byte {
	dst = append(dst, '"')
	from := 0
	for i, c := range s {
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\t':
			dst = append(dst, '\\', 't')
		case '\r':
			dst = append(dst, '\\', 'r')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	dst = append(dst, s[from:]...)
	return append(dst, '"')
}
