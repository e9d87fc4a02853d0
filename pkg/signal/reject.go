package signal

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Reason says why an item cannot be stored. The zero value is Accepted. Reason
// i+1 is Signal.Rules[i], and TooLarge is the Splitter's own.
type Reason uint8

// The reasons that all signals share.
const (
	Accepted Reason = 0
	TooLarge Reason = maxReasons - 1

	maxReasons = 16
)

// Rule is one thing that an item must comply with.
type Rule struct {
	// Label names a violation in metrics, dead letters and answers: it is the
	// field's name, where there is one.
	Label string
	// Violated describes the error for a sender, and the expected value. Empty means
	// that the time which Label names does not lie in the window.
	Violated string
}

// Verdict holds whether an item can be stored, and where.
type Verdict struct {
	Reason Reason
	// Late means that Reason concerns time only: at another time of receipt the
	// item would be accepted. So the content hash covers it.
	Late bool
	// Hash chooses the item's partition, when it is accepted or late. It is part
	// of what is stored: items that belong together meet in one partition only as
	// long as nobody changes it.
	Hash uint64
}

// Label names a reason in words that suit a metric's label.
func (s *Signal) Label(r Reason) string {
	switch r {
	case Accepted:
		return "accepted"
	case TooLarge:
		return "too_large"
	default:
		return s.Rules[r-1].Label
	}
}

// Rejected says which items of a request were left out.
type Rejected struct {
	Count         [maxReasons]int64 // by reason
	RepairedTexts int               // texts of the request that were not UTF-8
	named         []string          // the first few: which item, and what it has where another value is wanted
}

// Total returns the number of items rejected.
func (r *Rejected) Total() int64 {
	var n int64
	for _, v := range r.Count[Accepted+1:] {
		n += v
	}
	return n
}

// Each calls f for every reason that occurred.
func (r *Rejected) Each(f func(Reason, int64)) {
	for reason := Accepted + 1; reason < maxReasons; reason++ {
		if n := r.Count[reason]; n > 0 {
			f(reason, n)
		}
	}
}

// Explain explains rejections to the sender, as OTLP's partial_success wants it:
// what was wrong, how often, what would have been right, and which items the
// first ones are. The text has less than 2 kB, whatever the items hold.
func (s *Signal) Explain(r *Rejected, w Window, maxRecordBytes int) string {
	var b strings.Builder
	r.Each(func(reason Reason, n int64) {
		if b.Len() > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%d %s rejected: ", n, s.Items)
		switch {
		case reason == TooLarge:
			fmt.Fprintf(&b, "larger than %d bytes with %s, or these would be repeated too often", maxRecordBytes, s.Around)
		case s.Rules[reason-1].Violated == "":
			fmt.Fprintf(&b, "%s is not between %s and %s", s.Label(reason), formatNanos(w.Earliest), formatNanos(w.Latest))
		default:
			b.WriteString(s.Rules[reason-1].Violated)
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

func formatNanos(ns uint64) string {
	return time.Unix(0, int64(min(ns, math.MaxInt64))).UTC().Format(time.RFC3339)
}

// FormatTime returns a time in nanoseconds since the Unix epoch as people read
// it, or the number itself where it cannot be meant as a time.
func FormatTime(ns uint64) string {
	if ns == 0 || ns > math.MaxInt64 {
		return strconv.FormatUint(ns, 10)
	}
	return time.Unix(0, int64(ns)).UTC().Format(time.RFC3339Nano)
}

// maxNamed is how many items an explanation names.
const maxNamed = 4

// rejectedItem is an item that was rejected, and where in the request it ends.
type rejectedItem struct {
	reason Reason
	to     int
}

// name describes items for Explain.
func (s *Signal) name(r *Rejected, req []byte, items []rejectedItem) {
	for _, it := range items {
		index, from := s.itemAt(req, it.to)
		which, has := s.Describe(req[from:it.to], it.reason)
		if it.reason == TooLarge {
			has = fmt.Sprintf("%d bytes", it.to-from)
		}
		text := fmt.Sprintf("%s %d (counted from 0; %s)", s.Item, index, which)
		if has != "" {
			text += " has " + has
		}
		r.named = append(r.named, text)
	}
}

// itemAt finds the item of a valid request that ends at to: its index, counting
// all items from 0, and where it begins.
func (s *Signal) itemAt(req []byte, to int) (index, from int) {
	var level func(b []byte, i int, path []Tag)
	level = func(b []byte, i int, path []Tag) {
		for i < len(b) {
			tag, lo, hi := Next(b, i)
			switch {
			case tag != path[0]:
			case len(path) > 1:
				level(b[:hi], lo, path[1:])
			case hi < to:
				index++
			case hi == to:
				from = lo
			}
			i = hi
		}
	}
	level(req, 0, s.Path)
	return index, from
}
