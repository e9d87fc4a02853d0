package signal

// Each calls f with the value of every field of b that has this tag. It stops
// where b is malformed.
func Each(b []byte, want Tag, f func(value []byte)) {
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

// fields calls f with every field of b, until f returns an error. It returns
// that, or ErrMalformed.
func fields(b []byte, f func(tag Tag, value []byte) error) error {
	for i := 0; i < len(b); {
		tag, lo, hi := Next(b, i)
		if hi < 0 {
			return ErrMalformed
		}
		if err := f(tag, b[lo:hi]); err != nil {
			return err
		}
		i = hi
	}
	return nil
}

// filter returns the valid message b with the fields of this tag as f wants
// them, and all others as they are. found reports whether f wanted any.
func filter(b []byte, want Tag, f func(value []byte) (changed []byte, wanted bool)) (out []byte, found bool) {
	for i := 0; i < len(b); {
		tag, lo, hi := Next(b, i)
		if tag != want {
			out = append(out, b[i:hi]...)
		} else if value, wanted := f(b[lo:hi]); wanted {
			found = true
			out = append(AppendBytesTag(out, want, len(value)), value...)
		}
		i = hi
	}
	return out, found
}
