package traces

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/signal"
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

// Rejected says which spans of a request were left out.
type Rejected struct {
	Count         [numReasons]int64 // by reason
	RepairedTexts int               // texts of the request that were not UTF-8
	named         []string          // the first few: which span, and what it has where another value is wanted
}

// Total is the number of spans rejected.
func (r *Rejected) Total() int64 {
	var n int64
	for _, v := range r.Count[BadTraceID:] {
		n += v
	}
	return n
}

// Each calls f for every reason that occurred.
func (r *Rejected) Each(f func(Reason, int64)) {
	for reason := BadTraceID; reason < numReasons; reason++ {
		if n := r.Count[reason]; n > 0 {
			f(reason, n)
		}
	}
}

// Message explains the rejections to the sender, as OTLP's partial_success
// wants it: what was wrong, how often, what would have been right, and which spans the
// first ones are. It has less than 2 kB, whatever the spans hold.
func (r *Rejected) Message(w signal.Window, maxRecordBytes int) string {
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
	for i, name := range r.named {
		if i == 0 {
			b.WriteString("; the first: ")
		} else {
			b.WriteString(", ")
		}
		b.WriteString(name)
	}
	return b.String()
}

// How many spans Message names, and how much of a span's name or id it shows.
const (
	maxNamed      = 4
	maxShownName  = 64
	maxShownBytes = 16
)

// rejectedSpan is a span that was rejected, and where in the request it ends.
type rejectedSpan struct {
	reason Reason
	to     int
}

// name describes the spans for Message.
func (r *Rejected) name(req []byte, spans []rejectedSpan) {
	for _, sp := range spans {
		index, from := spanAt(req, sp.to)
		r.named = append(r.named, describe(index, req[from:sp.to], sp.reason))
	}
}

// spanAt finds the span of a valid request that ends at to: its index, counting all spans from 0, and
// where it begins.
func spanAt(req []byte, to int) (index, from int) {
	eachAt(req, 0, TagRequestResourceSpans, func(lo, hi int) {
		eachAt(req[:hi], lo, TagResourceSpansScopeSpans, func(lo, hi int) {
			eachAt(req[:hi], lo, TagScopeSpansSpans, func(lo, hi int) {
				if hi < to {
					index++
				} else if hi == to {
					from = lo
				}
			})
		})
	})
	return index, from
}

// eachAt calls f with the place of every field of b[i:] that has this tag.
func eachAt(b []byte, i int, want signal.Tag, f func(lo, hi int)) {
	for i < len(b) {
		tag, lo, hi := signal.Next(b, i)
		if tag == want {
			f(lo, hi)
		}
		i = hi
	}
}

// describe names a span by its place in the request, ids and name, and shows the value for which it was
// rejected.
func describe(index int, span []byte, reason Reason) string {
	var head Head
	var name []byte
	walkSpan(span, &head)
	signal.Each(span, TagSpanName, func(b []byte) { name = b })
	var b strings.Builder
	fmt.Fprintf(&b, "span %d (counted from 0; trace_id %s, span_id %s, name %q)", index, shownID(head.TraceID), shownID(head.SpanID), shownName(name))
	switch reason { //nolint:exhaustive // the ids are shown already
	case BadParentSpanID:
		fmt.Fprintf(&b, " has parent_span_id %s", shownID(head.ParentSpanID))
	case BadStartTime:
		fmt.Fprintf(&b, " has start_time %s", shownTime(head.Start))
	case BadEndTime:
		fmt.Fprintf(&b, " has end_time %s", shownTime(head.End))
	case TooLarge:
		fmt.Fprintf(&b, " has %d bytes", len(span))
	}
	return b.String()
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

// shownTime is a time in nanoseconds since the Unix epoch as people read it, or the number
// itself where it is no time that can be meant.
func shownTime(ns uint64) string {
	if ns == 0 || ns > math.MaxInt64 {
		return strconv.FormatUint(ns, 10)
	}
	return time.Unix(0, int64(ns)).UTC().Format(time.RFC3339Nano)
}

func formatNanos(ns uint64) string {
	return time.Unix(0, int64(min(ns, math.MaxInt64))).UTC().Format(time.RFC3339)
}

// Head is the part of a span by which it is judged and placed. The slices
// point into the span's bytes.
type Head struct {
	TraceID, SpanID, ParentSpanID []byte
	Start, End                    uint64 // nanoseconds since the Unix epoch
}

// Judge returns Accepted or the first reason why a span with this head cannot
// be stored. An all-zero parent span id counts as none, as in W3C Trace Context.
func (h *Head) Judge(w signal.Window) Reason {
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
