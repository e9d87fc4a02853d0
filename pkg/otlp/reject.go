package otlp

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Reason says why a span cannot be stored.
type Reason uint8

// The reasons, in the order in which a span is judged.
const (
	Accepted Reason = iota
	BadTraceID
	BadSpanID
	BadParentSpanID
	BadStartTime
	BadEndTime
	TooLarge
	numReasons
)

// String names the reason in words that suit a metric's label.
func (r Reason) String() string {
	return [numReasons]string{
		"accepted", "trace_id", "span_id", "parent_span_id", "start_time", "end_time", "too_large",
	}[r]
}

// Window is the time in which a span must start and end, in nanoseconds
// since the Unix epoch, both ends included. A span whose clock is far off would open a
// partition of its own in ClickHouse, and be deleted by its TTL or never.
type Window struct {
	Earliest, Latest uint64
}

// Anytime is the window that rejects no time. It is for what nobody knows the time of receipt of.
var Anytime = Window{Latest: math.MaxInt64}

// WindowAt is the window that reaches from past before now to future after it.
func WindowAt(now time.Time, past, future time.Duration) Window {
	return Window{
		Earliest: uint64(max(0, now.Add(-past).UnixNano())),
		Latest:   uint64(max(0, now.Add(future).UnixNano())),
	}
}

// Rejected counts spans by reason.
type Rejected [numReasons]int64

// Total is the number of spans rejected.
func (r *Rejected) Total() int64 {
	var n int64
	for _, v := range r[BadTraceID:] {
		n += v
	}
	return n
}

// Each calls f for every reason that occurred.
func (r *Rejected) Each(f func(Reason, int64)) {
	for reason := BadTraceID; reason < numReasons; reason++ {
		if n := r[reason]; n > 0 {
			f(reason, n)
		}
	}
}

// Message explains the rejections to the sender, as OTLP's partial_success
// wants it: what was wrong, how often, and what would have been right.
func (r *Rejected) Message(w Window, maxRecordBytes int) string {
	var b strings.Builder
	r.Each(func(reason Reason, n int64) {
		if b.Len() > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%d spans rejected: ", n)
		switch reason { //nolint:exhaustive // Each calls with reasons for a rejection only
		case BadTraceID:
			b.WriteString("trace_id is not 16 bytes or all zero")
		case BadSpanID:
			b.WriteString("span_id is not 8 bytes or all zero")
		case BadParentSpanID:
			b.WriteString("parent_span_id is neither empty nor 8 bytes")
		case BadStartTime, BadEndTime:
			fmt.Fprintf(&b, "%s is not between %s and %s", reason, formatNanos(w.Earliest), formatNanos(w.Latest))
		case TooLarge:
			fmt.Fprintf(&b, "larger than %d bytes with resource and scope", maxRecordBytes)
		}
	})
	return b.String()
}

func formatNanos(ns uint64) string {
	return time.Unix(0, int64(ns)).UTC().Format(time.RFC3339)
}

// Head is the part of a span by which it is judged and placed. The slices
// point into the span's bytes.
type Head struct {
	TraceID, SpanID, ParentSpanID []byte
	Start, End                    uint64 // nanoseconds since the Unix epoch
}

// Judge returns Accepted or the first reason why a span with this head cannot
// be stored. An all-zero parent span id counts as none, as in W3C Trace Context.
func (w Window) Judge(h *Head) Reason {
	switch {
	case len(h.TraceID) != 16 || zero(h.TraceID):
		return BadTraceID
	case len(h.SpanID) != 8 || zero(h.SpanID):
		return BadSpanID
	case len(h.ParentSpanID) != 0 && len(h.ParentSpanID) != 8:
		return BadParentSpanID
	case h.Start < w.Earliest || h.Start > w.Latest:
		return BadStartTime
	case h.End < w.Earliest || h.End > w.Latest:
		return BadEndTime
	default:
		return Accepted
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
