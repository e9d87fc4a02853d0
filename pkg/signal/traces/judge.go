package traces

import (
	"fmt"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// The reasons why a span cannot be stored, in the order in which it is judged.
// Those about its time come last, so that they alone are left when another time
// of receipt could change the verdict.
const (
	BadTraceID signal.Reason = 1 + iota
	BadSpanID
	BadParentSpanID
	BadStartTime
	BadEndTime
)

var rules = []signal.Rule{
	{Label: "trace_id", Violated: "trace_id is not 16 bytes or all zero"},
	{Label: "span_id", Violated: "span_id is not 8 bytes or all zero"},
	{Label: "parent_span_id", Violated: "parent_span_id is neither empty nor 8 bytes"},
	{Label: "start_time"},
	{Label: "end_time"},
}

func judge(span []byte, w signal.Window) (v signal.Verdict, ok bool) {
	var head Head
	if !head.read(span) {
		return v, false
	}
	v.Reason = head.Judge(w)
	v.Late = v.Reason >= BadStartTime
	if v.Reason == signal.Accepted || v.Late {
		v.Hash = hash(head.TraceID)
	}
	return v, true
}

// hash chooses the partition of a trace by its 16-byte id.
func hash(traceID []byte) uint64 { return xxhash.Sum64(traceID) }

// Partition returns the Kafka partition of a trace: XXH64 of its 16-byte id,
// modulo the number of partitions.
func Partition(traceID []byte, partitions int) int { return int(hash(traceID) % uint64(partitions)) }

// Head is the part of a span by which it is judged and placed. The slices
// point into the span's bytes.
type Head struct {
	TraceID, SpanID, ParentSpanID []byte
	Start, End                    uint64 // nanoseconds since the Unix epoch
}

// Judge returns signal.Accepted or the first reason why a span with this head
// cannot be stored. An all-zero parent span id counts as none, as in W3C Trace
// Context.
func (h *Head) Judge(w signal.Window) signal.Reason {
	switch {
	case len(h.TraceID) != 16 || zero(h.TraceID):
		return BadTraceID
	case len(h.SpanID) != 8 || zero(h.SpanID):
		return BadSpanID
	case len(h.ParentSpanID) != 0 && len(h.ParentSpanID) != 8:
		return BadParentSpanID
	case !w.Contains(h.Start):
		return BadStartTime
	case !w.Contains(h.End):
		return BadEndTime
	default:
		return signal.Accepted
	}
}

func zero(id []byte) bool {
	for _, c := range id {
		if c != 0 {
			return false
		}
	}
	return true
}

// read validates a span and takes out its h. As everywhere in protobuf, the
// last occurrence of a field counts.
func (h *Head) read(b []byte) bool {
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		if hi < 0 {
			return false
		}
		switch value := b[lo:hi]; tag {
		case TagSpanTraceID:
			h.TraceID = value
		case TagSpanSpanID:
			h.SpanID = value
		case TagSpanParentSpanID:
			h.ParentSpanID = value
		case TagSpanStartTime:
			h.Start = signal.Uint64(tag, value)
		case TagSpanEndTime:
			h.End = signal.Uint64(tag, value)
		default:
			if !span.ValidField(tag, value, depthSpan) {
				return false
			}
		}
		i = hi
	}
	return true
}

// How much of a span's name or id describe shows.
const (
	maxShownName  = 64
	maxShownBytes = 16
)

// describe tells a sender which span was rejected by its ids and name, and shows
// the value for which it was.
func describe(span []byte, reason signal.Reason) (which, has string) {
	var head Head
	var name []byte
	head.read(span)
	signal.Each(span, TagSpanName, func(b []byte) { name = b })
	switch reason { //nolint:exhaustive // the ids are shown already
	case BadParentSpanID:
		has = "parent_span_id " + shownID(head.ParentSpanID)
	case BadStartTime:
		has = "start_time " + signal.FormatTime(head.Start)
	case BadEndTime:
		has = "end_time " + signal.FormatTime(head.End)
	}
	return fmt.Sprintf("trace_id %s, span_id %s, name %q", shownID(head.TraceID), shownID(head.SpanID), shownName(name)), has
}

func shownID(id []byte) string {
	if len(id) == 0 {
		return "missing"
	}
	if len(id) > maxShownBytes {
		return fmt.Sprintf("%x... of %d bytes", id[:maxShownBytes], len(id))
	}
	return fmt.Sprintf("%x", id)
}

func shownName(name []byte) string {
	if len(name) > maxShownName {
		return strings.ToValidUTF8(string(name[:maxShownName]), "") + "..."
	}
	return string(name)
}
