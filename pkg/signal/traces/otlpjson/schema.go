package otlpjson

import (
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// kind is how a field is written in JSON and in protobuf.
type kind uint8

const (
	kindMessage kind = iota
	kindText
	kindHex    // bytes, in JSON in hexadecimal
	kindBase64 // bytes
	kindBool
	kindEnum
	kindInt64
	kindUint32
	kindFixed32
	kindFixed64
	kindDouble
)

// what describes the values that a kind accepts.
var what = [...]string{
	kindMessage: "an object", kindText: "a string", kindHex: "hexadecimal", kindBase64: "base64", kindBool: "true or false",
	kindEnum: "a number or name of its enum", kindInt64: "a whole number of 64 bits", kindUint32: "a whole number of 32 bits without a sign",
	kindFixed32: "a whole number of 32 bits without a sign", kindFixed64: "a whole number of 64 bits without a sign", kindDouble: "a number",
}

// message is a message type by the names of its fields, of which each has two.
type message map[string]*field

type field struct {
	number protowire.Number
	kind   kind
	list   bool
	sub    message                           // of kindMessage
	names  protoreflect.EnumValueDescriptors // of kindEnum
	role   role
	// nullCounts makes null in a list the empty message, because elements have a place.
	nullCounts bool
}

// role is what a bad value in a field costs.
type role uint8

const (
	partOfWhole role = iota // rejects the message around it
	alone                   // the field, or the element of it that is bad
	spans                   // the element of it that is bad: a span
)

var request = messages()

func messages() message {
	one := func(number protowire.Number, k kind) *field { return &field{number: number, kind: k} }
	sub := func(number protowire.Number, m message) *field { return &field{number: number, sub: m} }
	list := func(number protowire.Number, m message) *field { return &field{number: number, sub: m, list: true} }
	enum := func(number protowire.Number, d protoreflect.EnumDescriptor) *field {
		return &field{number: number, kind: kindEnum, names: d.Values()}
	}
	costsItself := func(f *field) *field {
		c := *f
		c.role = alone
		return &c
	}

	anyValue, keyValue := message{}, message{}
	values := list(1, anyValue)
	values.nullCounts = true
	arrayValue := message{"values": values}
	keyValueList := message{"values": list(1, keyValue)}
	keyValue.add(message{"key": one(1, kindText), "value": sub(2, anyValue)})
	anyValue.add(message{
		"stringValue": one(1, kindText), "boolValue": one(2, kindBool), "intValue": one(3, kindInt64), "doubleValue": one(4, kindDouble),
		"arrayValue": sub(5, arrayValue), "kvlistValue": sub(6, keyValueList), "bytesValue": one(7, kindBase64),
	})
	texts := func(number protowire.Number) *field { return &field{number: number, kind: kindText, list: true} }
	entityRef := made(message{"schemaUrl": one(1, kindText), "type": one(2, kindText), "idKeys": texts(3), "descriptionKeys": texts(4)})
	resource := made(message{
		"attributes": costsItself(list(1, keyValue)), "droppedAttributesCount": costsItself(one(2, kindUint32)), "entityRefs": costsItself(list(3, entityRef)),
	})
	scope := made(message{
		"name": costsItself(one(1, kindText)), "version": costsItself(one(2, kindText)), "attributes": costsItself(list(3, keyValue)),
		"droppedAttributesCount": costsItself(one(4, kindUint32)),
	})
	event := made(message{
		"timeUnixNano": one(1, kindFixed64), "name": one(2, kindText), "attributes": list(3, keyValue), "droppedAttributesCount": one(4, kindUint32),
	})
	link := made(message{
		"traceId": one(1, kindHex), "spanId": one(2, kindHex), "traceState": one(3, kindText), "attributes": list(4, keyValue),
		"droppedAttributesCount": one(5, kindUint32), "flags": one(6, kindFixed32),
	})
	status := message{"message": one(2, kindText), "code": enum(3, tracepb.Status_STATUS_CODE_UNSET.Descriptor())}
	span := made(message{
		"traceId": one(1, kindHex), "spanId": one(2, kindHex), "traceState": one(3, kindText), "parentSpanId": one(4, kindHex),
		"name": one(5, kindText), "kind": enum(6, tracepb.Span_SPAN_KIND_UNSPECIFIED.Descriptor()), "startTimeUnixNano": one(7, kindFixed64),
		"endTimeUnixNano": one(8, kindFixed64), "attributes": list(9, keyValue), "droppedAttributesCount": one(10, kindUint32),
		"events": list(11, event), "droppedEventsCount": one(12, kindUint32), "links": list(13, link), "droppedLinksCount": one(14, kindUint32),
		"status": sub(15, status), "flags": one(16, kindFixed32),
	})
	spanList := list(2, span)
	spanList.role = spans
	scopeSpans := made(message{"scope": sub(1, scope), "spans": spanList, "schemaUrl": costsItself(one(3, kindText))})
	resourceSpans := made(message{"resource": sub(1, resource), "scopeSpans": list(2, scopeSpans), "schemaUrl": costsItself(one(3, kindText))})
	return made(message{"resourceSpans": list(1, resourceSpans)})
}

// made returns m with both names of every field.
func made(m message) message {
	out := message{}
	out.add(m)
	return out
}

// add adds the fields of more under both of their names.
func (m message) add(more message) {
	for name, f := range more {
		m[name] = f
		m[snake(name)] = f
	}
}

// snake is a name as it stands in the .proto file.
func snake(camel string) string {
	var out []byte
	for _, c := range []byte(camel) {
		if c >= 'A' && c <= 'Z' {
			out = append(out, '_', c+'a'-'A')
		} else {
			out = append(out, c)
		}
	}
	return string(out)
}
