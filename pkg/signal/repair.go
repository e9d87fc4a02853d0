package signal

import (
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// Repair returns b as a valid m: it repairs every text that is not UTF-8 as
// strings.ToValidUTF8 does with U+FFFD, one for each run of bad bytes. All other
// bytes stay as they are, but for the lengths around a repaired text. The same b
// always gives the same bytes. Repair returns a valid b itself, and otherwise
// appends the result to dst. It takes time and memory in proportion to b.
//
// texts is how many it repaired. The error is nil or ErrMalformed: then the wire
// is broken, and nobody can tell where a text begins.
func (m *Message) Repair(dst, b []byte) (out []byte, texts int, err error) {
	if m.Valid(b) {
		return b, 0, nil
	}
	var r repairer
	if _, ok := r.measure(m, b, Depth); !ok {
		return nil, 0, ErrMalformed
	}
	return r.appendMessage(m, dst, b), r.texts, nil
}

// repairer rewrites a message in two passes, because a length stands before what
// it is the length of.
type repairer struct {
	// sizes are of the messages in the order in which they begin: the new size, or
	// unchanged for one that stays as it is and whose own messages are not listed.
	sizes []int
	next  int // entry of sizes that the second pass uses next
	texts int
}

const unchanged = -1

// measure fills sizes with m and the messages in it. It returns the size of b when
// repaired, and reports whether b is well-formed.
func (r *repairer) measure(m *Message, b []byte, depth int) (size int, ok bool) {
	if depth < 0 {
		return 0, false
	}
	at, texts := len(r.sizes), r.texts
	r.sizes = append(r.sizes, unchanged)
	for i := 0; i < len(b); {
		tag, lo, hi := Next(b, i)
		if hi < 0 {
			return 0, false
		}
		switch f := m.fieldOf(tag); {
		case f.text && !utf8.Valid(b[lo:hi]):
			length := validTextSize(b[lo:hi])
			r.texts++
			size += tagSize(tag, length) + length
		case f.sub != nil:
			before := r.texts
			length, ok := r.measure(f.sub, b[lo:hi], depth-1)
			if !ok {
				return 0, false
			}
			if r.texts == before {
				size += hi - i
			} else {
				size += tagSize(tag, length) + length
			}
		default:
			size += hi - i
		}
		i = hi
	}
	if r.texts == texts {
		r.sizes = r.sizes[:at+1]
	} else {
		r.sizes[at] = size
	}
	return size, true
}

// appendMessage appends b, which has been measured, repaired.
func (r *repairer) appendMessage(m *Message, dst, b []byte) []byte {
	if r.take() == unchanged {
		return append(dst, b...)
	}
	for i := 0; i < len(b); {
		tag, lo, hi := Next(b, i)
		switch f := m.fieldOf(tag); {
		case f.text && !utf8.Valid(b[lo:hi]):
			dst = appendTag(dst, tag, validTextSize(b[lo:hi]))
			dst = appendValidText(dst, b[lo:hi])
		case f.sub != nil && r.sizes[r.next] != unchanged:
			dst = appendTag(dst, tag, r.sizes[r.next])
			dst = r.appendMessage(f.sub, dst, b[lo:hi])
		case f.sub != nil:
			r.take()
			dst = append(dst, b[i:hi]...)
		default:
			dst = append(dst, b[i:hi]...)
		}
		i = hi
	}
	return dst
}

func (r *repairer) take() int {
	r.next++
	return r.sizes[r.next-1]
}

// fieldOf returns what m has under this tag; the zero field is of no interest.
func (m *Message) fieldOf(tag Tag) field {
	if tag&typeMask != Bytes || tag>>3 >= Tag(len(m.fields)) {
		return field{}
	}
	return m.fields[tag>>3]
}

func tagSize(tag Tag, length int) int {
	return protowire.SizeVarint(uint64(tag)) + protowire.SizeVarint(uint64(length))
}

func appendTag(dst []byte, tag Tag, length int) []byte {
	return protowire.AppendVarint(protowire.AppendVarint(dst, uint64(tag)), uint64(length))
}

// appendValidText appends b with U+FFFD for each run of bytes that are not UTF-8.
func appendValidText(dst, b []byte) []byte {
	inRun := false
	for i := 0; i < len(b); {
		_, n := utf8.DecodeRune(b[i:])
		bad := n == 1 && b[i] >= utf8.RuneSelf
		if !bad {
			dst = append(dst, b[i:i+n]...)
		} else if !inRun {
			dst = append(dst, "\uFFFD"...)
		}
		inRun = bad
		i += n
	}
	return dst
}

// validTextSize is how many bytes appendValidText appends.
func validTextSize(b []byte) int {
	size, inRun := 0, false
	for i := 0; i < len(b); {
		_, n := utf8.DecodeRune(b[i:])
		bad := n == 1 && b[i] >= utf8.RuneSelf
		if !bad {
			size += n
		} else if !inRun {
			size += len("\uFFFD")
		}
		inRun = bad
		i += n
	}
	return size
}
