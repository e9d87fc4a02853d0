package otlptest

import (
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
)

// Hostile returns valid requests of about size bytes each, by name, that cost a
// careless decoder more than their bytes are worth: messages in many pieces, deep nesting,
// and many elements that hold nothing. Spans in them are at time, in nanoseconds
// since the Unix epoch.
func Hostile(size int, time uint64) map[string][]byte {
	head := slices.Concat(field(1, []byte("0123456789abcdef")), field(2, []byte("01234567")),
		protowire.AppendFixed64(protowire.AppendTag(nil, 7, protowire.Fixed64Type), time),
		protowire.AppendFixed64(protowire.AppendTag(nil, 8, protowire.Fixed64Type), time))
	inScope := func(fields ...[]byte) []byte { return field(1, field(2, slices.Concat(fields...))) }
	inSpan := func(fields ...[]byte) []byte { return inScope(field(2, append(slices.Concat(fields...), head...))) }
	attribute := func(value []byte) []byte { return inSpan(field(9, append(field(1, []byte("k")), value...))) }
	many := func(b []byte) []byte { return slices.Repeat(b, size/len(b)) }
	number := []byte{0x18, 1} // field 3: an AnyValue's integer, unknown elsewhere
	span := field(2, head)

	return map[string][]byte{
		"array in pieces":               attribute(field(2, many(field(5, field(1, nil))))),
		"object in pieces":              attribute(field(2, many(field(6, field(1, nil))))),
		"array in pieces, replaced":     attribute(field(2, many(slices.Concat(field(5, nil), field(5, nil), number)))),
		"value in pieces":               attribute(many(field(2, field(5, field(1, nil))))),
		"value in pieces of two kinds":  attribute(many(slices.Concat(field(2, field(5, nil)), field(2, field(6, nil))))),
		"nested lists":                  attribute(field(2, nested(size, 3000, nil, nil))),
		"nested lists in pieces":        attribute(field(2, nested(size, 3000, field(5, nil), field(2, field(6, nil))))),
		"resource in pieces":            field(1, append(many(field(1, field(1, nil))), field(2, span)...)),
		"scope in pieces":               inScope(many(field(1, field(3, nil))), span),
		"status in pieces":              inSpan(many(field(15, field(2, []byte("m"))))),
		"attributes without anything":   inSpan(many(field(9, nil))),
		"events without anything":       inSpan(many(field(11, nil))),
		"links without anything":        inSpan(many(field(13, nil))),
		"resources without spans":       many(field(1, nil)),
		"scopes without spans":          field(1, append(many(field(2, nil)), field(2, span)...)),
		"scopes and fields in turn":     field(1, append(many(append(field(2, nil), number...)), field(2, span)...)),
		"spans without anything":        inScope(many(field(2, nil))),
		"resources of one span each":    many(field(1, append(field(1, field(1, field(1, []byte("k")))), field(2, span)...))),
		"distinct resources, no span":   distinct(size, func(id []byte) []byte { return field(1, field(3, id)) }),
		"distinct scopes":               field(1, distinct(size, func(id []byte) []byte { return field(2, append(field(3, id), span...)) })),
		"distinct resources":            distinct(size, func(id []byte) []byte { return field(1, append(field(3, id), field(2, span)...)) }),
		"distinct attributes":           inSpan(distinct(size, func(id []byte) []byte { return field(9, field(1, id)) })),
		"distinct resource attributes":  field(1, append(field(1, distinct(size, func(id []byte) []byte { return field(1, field(1, id)) })), field(2, span)...)),
		"one attribute again and again": inSpan(many(field(9, append(field(1, []byte("http.method")), field(2, field(1, []byte("GET")))...)))),
		"unknown groups":                inSpan(many(slices.Concat([]byte{0xa3, 0x06}, number, []byte{0xa4, 0x06}))),
	}
}

// field is a length-delimited field.
func field(number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
}

// nested is an AnyValue of lists of KeyValues to this depth, with a text that fills it to the size. Every
// AnyValue begins with before, and every KeyValue with beforeValue.
func nested(size, depth int, before, beforeValue []byte) []byte {
	text := make([]byte, size)
	heads := [][]byte{text, start(1, len(text))} // innermost first
	n := len(text) + len(heads[1])
	wrap := func(before []byte, number protowire.Number) {
		head := append(slices.Clone(before), start(number, n)...)
		heads = append(heads, head)
		n += len(head)
	}
	for range depth {
		wrap(beforeValue, 2) // the KeyValue
		wrap(nil, 1)         // the list
		wrap(before, 6)      // the AnyValue
	}
	slices.Reverse(heads)
	return slices.Concat(heads...)
}

// start is the tag and length of a field.
func start(number protowire.Number, length int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.BytesType), uint64(length))
}

// distinct is what one makes of one text after the other.
func distinct(size int, one func(id []byte) []byte) []byte {
	var out []byte
	for i := uint64(0); len(out) < size; i++ {
		out = append(out, one(strconv.AppendUint(nil, i, 36))...)
	}
	return out
}
