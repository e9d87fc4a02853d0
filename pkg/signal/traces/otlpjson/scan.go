package otlpjson

import (
	"iter"
	"unicode/utf16"
	"unicode/utf8"
)

// scanner reads JSON that has been found valid.
type scanner struct {
	b       []byte
	i       int
	scratch []byte // of the last string that had escapes
}

// next skips white space and returns the byte that follows, which shows the kind of the value. At the end it returns 0.
func (s *scanner) next() byte {
	for ; s.i < len(s.b); s.i++ {
		switch c := s.b[s.i]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

// skip skips one value.
func (s *scanner) skip() {
	for depth := 0; s.i < len(s.b); {
		switch s.next() {
		case 0:
			return
		case '{', '[':
			depth++
			s.i++
			continue // before the first element
		case '}', ']':
			depth--
			s.i++
		case '"':
			s.raw()
		case ',', ':':
			s.i++
			continue // before another value
		default:
			s.literal()
		}
		if depth == 0 {
			return
		}
	}
}

// literal skips a number or a word.
func (s *scanner) literal() {
	for ; s.i < len(s.b); s.i++ {
		switch s.b[s.i] {
		case ' ', '\t', '\r', '\n', ',', ':', ']', '}', '[', '{', '"':
			return
		}
	}
}

// members goes through the members of the object at whose brace the scanner is, with the scanner at the value. The body must
// read or skip the value. The key is valid until the next string is read.
func (s *scanner) members() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		s.i++
		for s.next() != '}' && s.i < len(s.b) {
			if s.b[s.i] == ',' {
				s.i++
				continue
			}
			key := s.str()
			s.next()
			s.i++ // the colon
			s.next()
			if !yield(key) {
				return
			}
		}
		s.i++
	}
}

// elements goes through the elements of the list at whose bracket the scanner is, in the same way.
func (s *scanner) elements() iter.Seq[struct{}] {
	return func(yield func(struct{}) bool) {
		s.i++
		for s.next() != ']' && s.i < len(s.b) {
			if s.b[s.i] == ',' {
				s.i++
				continue
			}
			if !yield(struct{}{}) {
				return
			}
		}
		s.i++
	}
}

// raw skips the string that begins here and returns what stands between its quotes.
func (s *scanner) raw() (text []byte, escapes bool) {
	s.i++
	start := s.i
	for ; s.i < len(s.b); s.i++ {
		switch s.b[s.i] {
		case '"':
			s.i++
			return s.b[start : s.i-1], escapes
		case '\\':
			escapes = true
			s.i++
		}
	}
	return s.b[start:], escapes
}

// str reads the string that begins here. The result is valid until the next call.
func (s *scanner) str() []byte {
	raw, escapes := s.raw()
	if !escapes {
		return raw
	}
	out := s.scratch[:0]
	for i := 0; i < len(raw); {
		if raw[i] != '\\' || i+1 == len(raw) {
			out = append(out, raw[i])
			i++
			continue
		}
		c := raw[i+1]
		i += 2
		switch c {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r := hex4(raw[i:])
			i = min(i+4, len(raw))
			if utf16.IsSurrogate(r) {
				// Half of a pair without its other half becomes U+FFFD, as in encoding/json.
				pair := rune(utf8.RuneError)
				if len(raw)-i >= 6 && raw[i] == '\\' && raw[i+1] == 'u' {
					pair = utf16.DecodeRune(r, hex4(raw[i+2:]))
				}
				if r = pair; r != utf8.RuneError {
					i += 6
				}
			}
			out = utf8.AppendRune(out, r)
		default: // a quote, a slash or a backslash
			out = append(out, c)
		}
	}
	s.scratch = out
	return out
}

// hex4 reads four hexadecimal digits.
func hex4(b []byte) (r rune) {
	for _, c := range b[:min(4, len(b))] {
		d, _ := digit(c)
		r = r<<4 | rune(d)
	}
	return r
}
