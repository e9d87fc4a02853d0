package otlpjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Decode returns the request in body as an ExportTraceServiceRequest without what problems says. Texts may
// hold bytes that are not UTF-8 where body has them: Signal.Repair mends those. The error says that body
// is no such request.
func Decode(body []byte) (out []byte, problems Problems, err error) {
	if err := check(body); err != nil {
		return nil, Problems{}, err
	}
	d := decoder{scanner: scanner{b: body}}
	if d.next() != '{' {
		return nil, Problems{}, d.bad(kindMessage)
	}
	if err := d.object(request); err != nil {
		return nil, Problems{}, err
	}
	return d.finish(), d.problems, nil
}

// check returns the first syntax error of body, with its place.
func check(body []byte) error {
	if json.Valid(body) {
		return nil
	}
	var raw json.RawMessage
	err := json.Unmarshal(body, &raw)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("byte %d: %w", syntax.Offset, err)
	}
	return err
}

// decoder is one Decode under way.
type decoder struct {
	scanner
	writer
	problems Problems
	span     int // index of the span being read, counting all from 0
}

// object reads an object of type m, at whose brace the scanner is.
func (d *decoder) object(m message) *valueError {
	for key := range d.members() {
		f := m[string(key)]
		if f == nil || d.next() == 'n' { // null: the field is absent
			d.skip()
			continue
		}
		start, undo := d.i, d.mark()
		err := d.member(f)
		if err == nil {
			continue
		}
		err = err.in(string(key))
		if f.role != alone {
			return err
		}
		d.problems.leaveOut(err)
		d.back(undo)
		d.i = start
		d.skip()
	}
	return nil
}

// member reads the value of a field that is not null.
func (d *decoder) member(f *field) *valueError {
	if !f.list {
		return d.value(f)
	}
	if d.next() != '[' {
		return d.notA("a list")
	}
	for range d.elements() {
		start, undo := d.i, d.mark()
		err := d.element(f)
		if f.role == spans {
			d.span++
		}
		if err == nil {
			continue
		}
		switch f.role {
		case spans:
			d.problems.reject(d.span-1, valueOf(d.b[start:]), err)
		case alone:
			d.problems.leaveOut(err)
		case partOfWhole:
			return err
		}
		d.back(undo)
		d.i = start
		d.skip()
	}
	return nil
}

// element reads an element of a list. One that is null is the empty message where elements are counted or have a
// place, and absent elsewhere.
func (d *decoder) element(f *field) *valueError {
	if d.next() != 'n' {
		return d.value(f)
	}
	d.skip()
	if f.role == spans || f.nullCounts {
		d.close(d.open(f.number))
	}
	return nil
}

// value reads a value, not null, of a field or of an element.
func (d *decoder) value(f *field) *valueError {
	c := d.next()
	switch f.kind {
	case kindMessage:
		if c != '{' {
			return d.bad(f.kind)
		}
		at := d.open(f.number)
		if err := d.object(f.sub); err != nil {
			return err
		}
		d.close(at)
		return nil
	case kindBool:
		if c != 't' && c != 'f' {
			return d.bad(f.kind)
		}
		d.skip()
		d.varint(f.number, protowire.EncodeBool(c == 't'))
		return nil
	case kindText, kindHex, kindBase64:
		if c != '"' {
			return d.bad(f.kind)
		}
		return d.bytesOf(f)
	default:
		if c == '{' || c == '[' || c == 't' || c == 'f' {
			return d.bad(f.kind)
		}
		return d.number(f)
	}
}

// bytesOf reads a string into a length-delimited field.
func (d *decoder) bytesOf(f *field) *valueError {
	start := d.i
	text := d.str()
	ok := true
	switch f.kind { //nolint:exhaustive // of these three alone
	case kindHex:
		text, ok = unhex(text)
	case kindBase64:
		text, ok = unbase64(text)
	}
	if !ok {
		d.i = start
		return d.bad(f.kind)
	}
	d.buf = protowire.AppendBytes(protowire.AppendTag(d.buf, f.number, protowire.BytesType), text)
	return nil
}

// number reads a number, or a string that stands for one.
func (d *decoder) number(f *field) *valueError {
	start := d.i
	quoted := d.b[d.i] == '"'
	var text []byte
	if quoted {
		text = d.str()
	} else {
		d.skip()
		text = d.b[start:d.i]
	}
	if !d.putNumber(f, text, quoted) {
		d.i = start
		return d.bad(f.kind)
	}
	return nil
}

func (d *decoder) putNumber(f *field, text []byte, quoted bool) bool {
	switch f.kind {
	case kindDouble:
		v, ok := parseDouble(text)
		d.fixed64(f.number, v)
		return ok
	case kindEnum:
		if quoted {
			if v := f.names.ByName(protoName(text)); v != nil {
				d.varint(f.number, uint64(v.Number()))
				return true
			}
		}
		v, ok := parseInt(text, 32)
		d.varint(f.number, uint64(v))
		return ok
	case kindInt64:
		v, ok := parseInt(text, 64)
		d.varint(f.number, uint64(v))
		return ok
	case kindUint32:
		v, ok := parseUint(text, 32)
		d.varint(f.number, v)
		return ok
	case kindFixed32:
		v, ok := parseUint(text, 32)
		d.buf = protowire.AppendFixed32(protowire.AppendTag(d.buf, f.number, protowire.Fixed32Type), uint32(v))
		return ok
	default:
		v, ok := parseUint(text, 64)
		d.fixed64(f.number, v)
		return ok
	}
}

// bad is the error for the value at the scanner, which is not of this kind.
func (d *decoder) bad(k kind) *valueError { return d.notA(what[k]) }

func (d *decoder) notA(wanted string) *valueError {
	return &valueError{found: shown(valueOf(d.b[d.i:])), wanted: wanted}
}

// valueOf returns the JSON value that b begins with.
func valueOf(b []byte) []byte {
	s := scanner{b: b}
	s.next()
	start := s.i
	s.skip()
	return bytes.TrimSpace(b[start:s.i])
}
