package otlpjson

import (
	"fmt"
	"slices"
	"strings"
)

// Problems lists the parts of a request that could not be read and were left out.
type Problems struct {
	Spans  int64 // spans with a bad value
	Values int64 // attributes and fields of resources and scopes
	first  []string
}

// How much Message shows.
const (
	maxNamed = 4  // spans and values
	maxPath  = 8  // names of fields around a bad value
	maxShown = 48 // bytes of a value, and of a span's name
)

// Message describes for the sender what was left out, and why, in less than 2 kB. It is empty if nothing was.
func (p *Problems) Message() string {
	if p.Spans == 0 && p.Values == 0 {
		return ""
	}
	var parts []string
	if p.Spans > 0 {
		parts = append(parts, fmt.Sprintf("%d spans rejected: a value is not what OTLP/JSON has there", p.Spans))
	}
	if p.Values > 0 {
		parts = append(parts, fmt.Sprintf("%d values of resources or scopes left out", p.Values))
	}
	return strings.Join(parts, "; ") + "; the first: " + strings.Join(p.first, ", ")
}

func (p *Problems) reject(index int, span []byte, err *valueError) {
	p.Spans++
	if len(p.first) < maxNamed {
		traceID, spanID, name := identify(span)
		p.first = append(p.first, fmt.Sprintf("span %d (counted from 0; traceId %s, spanId %s, name %s): %v", index, traceID, spanID, name, err))
	}
}

func (p *Problems) leaveOut(err *valueError) {
	p.Values++
	if len(p.first) < maxNamed {
		p.first = append(p.first, err.Error())
	}
}

// identify returns the ids and the name of a span as they stand in its JSON.
func identify(span []byte) (traceID, spanID, name string) {
	traceID, spanID, name = "missing", "missing", "missing"
	s := scanner{b: span}
	if s.next() != '{' {
		return traceID, spanID, name
	}
	for key := range s.members() {
		key := string(key)
		start := s.i
		s.skip()
		value := shown(s.b[start:s.i])
		switch key {
		case "traceId", "trace_id":
			traceID = value
		case "spanId", "span_id":
			spanID = value
		case "name":
			name = value
		}
	}
	return traceID, spanID, name
}

// valueError is a value that is not what its field wants.
type valueError struct {
	path          []string // names of fields, innermost first
	found, wanted string
}

// in returns e with the name of the field around it.
func (e *valueError) in(name string) *valueError {
	if len(e.path) < maxPath {
		e.path = append(e.path, name)
	}
	return e
}

func (e *valueError) Error() string {
	path := slices.Clone(e.path)
	slices.Reverse(path)
	return fmt.Sprintf("%s: %s is not %s", strings.Join(path, "."), e.found, e.wanted)
}

// shown is JSON, cut to what fits into a message.
func shown(value []byte) string {
	if len(value) > maxShown {
		return strings.ToValidUTF8(string(value[:maxShown]), "\uFFFD") + "..."
	}
	return strings.ToValidUTF8(string(value), "\uFFFD")
}
