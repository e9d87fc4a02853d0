package semconv

// attributes holds the value of each known attribute that was set. The zero
// value is empty.
type attributes struct {
	values [keyCount][]byte
	// used lists the keys that have a value, so that reset touches no more
	// than was set, and leaves nothing that would hold a buffer of the caller.
	used  [keyCount]Key
	count int
}

func (a *attributes) reset() {
	for _, k := range a.used[:a.count] {
		a.values[k] = nil
	}
	a.count = 0
}

// set remembers value for k and reports whether it did. It ignores empty values. OTLP
// forbids repeated names; here the last value that is not empty wins. A caller that wants
// the last value to win must omit the earlier ones, as pkg/columns does.
func (a *attributes) set(k Key, value []byte) bool {
	if k == keyUnknown || k >= keyCount || len(value) == 0 {
		return false
	}
	if a.values[k] == nil {
		a.used[a.count] = k
		a.count++
	}
	a.values[k] = value
	return true
}

func (a *attributes) has(k Key) bool { return a.values[k] != nil }

// pick returns the value of the first key from first to last that has one.
func (a *attributes) pick(first, last Key) []byte {
	for k := first; k <= last; k++ {
		if v := a.values[k]; v != nil {
			return v
		}
	}
	return nil
}
