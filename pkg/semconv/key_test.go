package semconv

import "testing"

func TestLookup(t *testing.T) {
	for k := keyUnknown + 1; k < keyCount; k++ {
		name := known[k].name
		if name == "" {
			t.Fatalf("key %d has no name", k)
		}
		if got := Lookup([]byte(name)); got != k {
			t.Errorf("Lookup(%q) = %d, want %d: is the name there twice?", name, got, k)
		}
		for _, other := range []string{name[1:], name[:len(name)-1], name + "x", "x" + name} {
			if got := Lookup([]byte(other)); got != keyUnknown && known[got].name != other {
				t.Errorf("Lookup(%q) = %q", other, known[got].name)
			}
		}
	}
	for _, name := range []string{"", "a", "db.nam", "DB.NAME", "\x00\x00\x00\x00\x00\x00\x00"} {
		if got := Lookup([]byte(name)); got != keyUnknown {
			t.Errorf("Lookup(%q) = %d, want unknown", name, got)
		}
	}
}

// A Key that no Lookup returned is ignored.
func TestSetForeignKey(t *testing.T) {
	var s Span
	s.Set(keyCount, []byte("x"))
	s.Set(255, []byte("x"))
	s.Resolve(Client, nil, address{})
	if s.attributes.count != 0 {
		t.Errorf("%d attributes were kept", s.attributes.count)
	}
}
