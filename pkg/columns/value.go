package columns

import (
	"encoding/base64"
	"math"
	"strconv"

	"github.com/metaflowys/metaflow-server/pkg/otlp"
)

// anyValue is an AnyValue's one value as it stands on the wire.
type anyValue struct {
	tag  otlp.Tag // of the field that is set, 0 when none is
	wire []byte
}

// readAnyValue finds the value that counts: the last one set. Of a list that
// is given in several pieces all pieces count, as protobuf merges them.
// b must be valid.
func readAnyValue(b []byte) anyValue {
	var v anyValue
	for i := 0; i < len(b); {
		tag, lo, hi := otlp.Next(b, i)
		switch tag {
		case otlp.TagAnyValueString, otlp.TagAnyValueBool, otlp.TagAnyValueInt, otlp.TagAnyValueDouble, otlp.TagAnyValueBytes:
			v = anyValue{tag, b[lo:hi]}
		case otlp.TagAnyValueArray, otlp.TagAnyValueKvlist:
			if v.tag == tag {
				// Rare enough to allocate.
				v.wire = append(append([]byte(nil), v.wire...), b[lo:hi]...)
			} else {
				v = anyValue{tag, b[lo:hi]}
			}
		case tagAnyValueStringIndex:
			v = anyValue{}
		}
		i = hi
	}
	return v
}

// tagAnyValueStringIndex points into a table that only profiles have; in a
// span it means nothing, but it does replace what was set before it.
const tagAnyValueStringIndex = 8<<3 | otlp.Varint

// appendText appends the value as text without loss: strings as they are,
// numbers in decimal, bytes in base64, lists as JSON.
func (v anyValue) appendText(dst []byte) []byte {
	switch v.tag {
	case otlp.TagAnyValueString:
		return append(dst, v.wire...)
	case otlp.TagAnyValueBytes:
		return base64.StdEncoding.AppendEncode(dst, v.wire)
	case otlp.TagAnyValueDouble:
		return appendDouble(dst, math.Float64frombits(otlp.Uint64(v.tag, v.wire)))
	case 0:
		return dst
	default:
		return v.appendJSON(dst)
	}
}

// appendJSON appends the value as it stands inside a JSON list.
func (v anyValue) appendJSON(dst []byte) []byte {
	switch v.tag {
	case otlp.TagAnyValueString:
		return appendQuoted(dst, v.wire)
	case otlp.TagAnyValueBool:
		return strconv.AppendBool(dst, otlp.Uint64(v.tag, v.wire) != 0)
	case otlp.TagAnyValueInt:
		return strconv.AppendInt(dst, int64(otlp.Uint64(v.tag, v.wire)), 10)
	case otlp.TagAnyValueDouble:
		f := math.Float64frombits(otlp.Uint64(v.tag, v.wire))
		if math.IsNaN(f) || math.IsInf(f, 0) { // JSON has no numbers for these
			dst = append(dst, '"')
			return append(appendDouble(dst, f), '"')
		}
		return appendDouble(dst, f)
	case otlp.TagAnyValueBytes:
		dst = append(dst, '"')
		return append(base64.StdEncoding.AppendEncode(dst, v.wire), '"')
	case otlp.TagAnyValueArray:
		return appendArray(dst, v.wire)
	case otlp.TagAnyValueKvlist:
		return appendObject(dst, v.wire, otlp.TagValues)
	default:
		return append(dst, "null"...)
	}
}

func appendArray(dst, wire []byte) []byte {
	dst = append(dst, '[')
	first := true
	for i := 0; i < len(wire); {
		tag, lo, hi := otlp.Next(wire, i)
		if tag == otlp.TagValues {
			if !first {
				dst = append(dst, ',')
			}
			first = false
			dst = readAnyValue(wire[lo:hi]).appendJSON(dst)
		}
		i = hi
	}
	return append(dst, ']')
}

// appendObject appends the KeyValues that stand in wire under this tag.
func appendObject(dst, wire []byte, keyValues otlp.Tag) []byte {
	dst = append(dst, '{')
	first := true
	for i := 0; i < len(wire); {
		tag, lo, hi := otlp.Next(wire, i)
		if tag == keyValues {
			if !first {
				dst = append(dst, ',')
			}
			first = false
			key, value := readKeyValue(wire[lo:hi])
			dst = appendQuoted(dst, key)
			dst = append(dst, ':')
			dst = value.appendJSON(dst)
		}
		i = hi
	}
	return append(dst, '}')
}

// readKeyValue reads a KeyValue. b must be valid.
func readKeyValue(b []byte) (key []byte, value anyValue) {
	var wire []byte
	for i := 0; i < len(b); {
		tag, lo, hi := otlp.Next(b, i)
		switch tag {
		case otlp.TagKeyValueKey:
			key = b[lo:hi]
		case otlp.TagKeyValueValue:
			if wire == nil {
				wire = b[lo:hi:hi]
			} else { // several values merge: rare enough to allocate
				wire = append(wire, b[lo:hi]...)
			}
		}
		i = hi
	}
	return key, readAnyValue(wire)
}

// appendDouble appends the shortest decimal text that reads back as v, in the
// form of ECMAScript's Number.prototype.toString, as JSON encoders use it.
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
