package otlpjson

import (
	"bytes"
	"encoding/base64"
	"math"
	"strconv"

	"google.golang.org/protobuf/reflect/protoreflect"
)

func protoName(text []byte) protoreflect.Name { return protoreflect.Name(text) }

// digit is the value of a hexadecimal digit.
func digit(c byte) (d byte, ok bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	default:
		return 0, false
	}
}

func unhex(text []byte) (out []byte, ok bool) {
	if len(text)%2 != 0 {
		return nil, false
	}
	out = make([]byte, 0, len(text)/2)
	for i := 0; i < len(text); i += 2 {
		high, ok1 := digit(text[i])
		low, ok2 := digit(text[i+1])
		if !ok1 || !ok2 {
			return nil, false
		}
		out = append(out, high<<4|low)
	}
	return out, true
}

// unbase64 reads either alphabet, padded or not.
func unbase64(text []byte) (out []byte, ok bool) {
	text = bytes.TrimRight(text, "=")
	encoding := base64.RawStdEncoding
	if bytes.ContainsAny(text, "-_") {
		encoding = base64.RawURLEncoding
	}
	out = make([]byte, encoding.DecodedLen(len(text)))
	n, err := encoding.Decode(out, text)
	return out[:n], err == nil && !bytes.ContainsAny(text, "\r\n")
}

// parseDouble returns the bits of a double.
func parseDouble(text []byte) (bits uint64, ok bool) {
	switch string(text) {
	case "NaN":
		return math.Float64bits(math.NaN()), true
	case "Infinity":
		return math.Float64bits(math.Inf(1)), true
	case "-Infinity":
		return math.Float64bits(math.Inf(-1)), true
	}
	if v, err := strconv.ParseFloat(string(text), 64); err == nil {
		return math.Float64bits(v), true
	}
	return 0, false
}

// parseInt reads a signed integer of the given number of bits.
func parseInt(text []byte, bits int) (v int64, ok bool) {
	negative, size, ok := whole(text)
	limit := uint64(1) << (bits - 1)
	switch {
	case !ok || size > limit || size == limit && !negative:
		return 0, false
	case negative:
		return -int64(size), true
	default:
		return int64(size), true
	}
}

// parseUint reads an unsigned integer of the given number of bits.
func parseUint(text []byte, bits int) (v uint64, ok bool) {
	negative, size, ok := whole(text)
	if !ok || negative && size != 0 || bits < 64 && size >= 1<<bits {
		return 0, false
	}
	return size, true
}

// whole reads a decimal number with or without fraction and exponent that is exactly a whole one.
func whole(text []byte) (negative bool, size uint64, ok bool) {
	if len(text) > 0 && (text[0] == '-' || text[0] == '+') {
		negative = text[0] == '-'
		text = text[1:]
	}
	if v, err := strconv.ParseUint(string(text), 10, 64); err == nil {
		return negative, v, true
	}
	mantissa, exponent, hasExponent := text, []byte(nil), false
	if e := bytes.IndexAny(text, "eE"); e >= 0 {
		mantissa, exponent, hasExponent = text[:e], text[e+1:], true
	}
	before, after, hasPoint := bytes.Cut(mantissa, []byte{'.'})
	if !digits(before) || hasPoint && !digits(after) {
		return false, 0, false
	}
	shift := 0
	if hasExponent {
		var err error
		if shift, err = strconv.Atoi(string(exponent)); err != nil || shift > math.MaxInt32 || shift < math.MinInt32 {
			return false, 0, false
		}
	}
	// The number is all digits times ten to the power of shift.
	all := append(append(make([]byte, 0, len(before)+len(after)), before...), after...)
	shift -= len(after)
	all = bytes.TrimLeft(all, "0")
	trimmed := bytes.TrimRight(all, "0")
	shift += len(all) - len(trimmed)
	const most = 20 // digits of 64 bits
	switch {
	case len(trimmed) == 0:
		return negative, 0, true
	case shift < 0 || len(trimmed)+shift > most:
		return false, 0, false
	}
	size, err := strconv.ParseUint(string(append(trimmed, bytes.Repeat([]byte{'0'}, shift)...)), 10, 64)
	return negative, size, err == nil
}

// digits reports whether text is one decimal digit or more, and nothing else.
func digits(text []byte) bool {
	for _, c := range text {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(text) > 0
}
