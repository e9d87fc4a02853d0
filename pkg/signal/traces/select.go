package traces

// Spans counts the spans of a valid request.
func Spans(req []byte) int {
	n := 0
	each(req, TagRequestResourceSpans, func(rs []byte) {
		each(rs, TagResourceSpansScopeSpans, func(ss []byte) {
			each(ss, TagScopeSpansSpans, func([]byte) { n++ })
		})
	})
	return n
}

// each calls f with the value of every field of b that has this tag. It stops
// at what is malformed.
func each(b []byte, want Tag, f func([]byte)) {
	for i := 0; i < len(b); {
		tag, lo, hi := Next(b, i)
		if hi < 0 {
			return
		}
		if tag == want {
			f(b[lo:hi])
		}
		i = hi
	}
}

// Select returns a request with those spans of req for which keep is true, and of its
// resources and scopes those that have such spans; index counts all spans of req from 0. Texts
// are repaired as by [Repair]; all other bytes that it keeps stay as they are. It is for the few that are diverted, not for speed.
func Select(req []byte, keep func(index int) bool) ([]byte, error) {
	req, _, err := Repair(nil, req)
	if err != nil {
		return nil, err
	}
	index := 0
	spans := func(ss []byte) ([]byte, bool) {
		return Filter(ss, TagScopeSpansSpans, func(sp []byte) ([]byte, bool) {
			wanted := keep(index)
			index++
			return sp, wanted
		})
	}
	scopes := func(rs []byte) ([]byte, bool) { return Filter(rs, TagResourceSpansScopeSpans, spans) }
	out, _ := Filter(req, TagRequestResourceSpans, scopes)
	return out, nil
}

// Filter returns the valid message b with the fields of this tag as f wants them, and all others as
// they are. found reports whether f wanted any. The tag must be of a length-delimited field
// with a number below 16.
func Filter(b []byte, want Tag, f func(value []byte) (changed []byte, wanted bool)) (out []byte, found bool) {
	for i := 0; i < len(b); {
		tag, lo, hi := Next(b, i)
		if tag != want {
			out = append(out, b[i:hi]...)
		} else if value, wanted := f(b[lo:hi]); wanted {
			found = true
			out = append(appendBytesTag(out, want, len(value)), value...)
		}
		i = hi
	}
	return out, found
}
