package agentconfig

import (
	"maps"
	"strings"

	"github.com/metaflowys/metaflow-server/pkg/values"
)

// Document holds the keys that are set. The zero value sets none. It is
// immutable and can be copied and shared.
type Document struct {
	values map[string]any // by name in the catalogue; of the type of the setting's field
}

// Empty reports whether no key is set.
func (d Document) Empty() bool { return len(d.values) == 0 }

// Equal reports whether d and o set the same keys to the same values.
func (d Document) Equal(o Document) bool {
	return string(d.YAML("")) == string(o.YAML(""))
}

// Merge returns the keys of d and patch; where both set a key, the value of
// patch counts.
func (d Document) Merge(patch Document) Document {
	merged := make(map[string]any, len(d.values)+len(patch.values))
	maps.Copy(merged, d.values)
	maps.Copy(merged, patch.values)
	return Document{merged}
}

// Config returns the defaults overridden by d.
func (d Document) Config() Config {
	c := Default()
	for _, s := range settings {
		if v, ok := d.values[s.Name]; ok {
			s.store(&c, v)
		}
	}
	return c
}

// YAML returns the canonical text of d, which Parse reads back. If groupID is
// not empty, the text starts with it. A document without keys and group has an
// empty text.
func (d Document) YAML(groupID string) []byte {
	var w nested
	if groupID != "" {
		w.key(groupKey, scalarText(groupID))
	}
	for _, s := range settings {
		if v, ok := d.values[s.Name]; ok {
			w.key(s.Name, s.text(v))
		}
	}
	return []byte(w.text.String())
}

// Change is a key whose effective value changed.
type Change struct {
	Key string `json:"key"`
	Old string `json:"old"` // in YAML
	New string `json:"new"`
}

// Diff returns the effective changes from before to after, in the order of the
// catalogue. A key set to its default equals a key that is not set.
func Diff(before, after Document) []Change {
	was, is := before.Config(), after.Config()
	var changes []Change
	for _, s := range settings {
		if old, now := s.text(s.load(&was)), s.text(s.load(&is)); old != now {
			changes = append(changes, Change{Key: s.Name, Old: old, New: now})
		}
	}
	return changes
}

// nested writes keys with dots as sections of YAML. Keys of one section must be
// adjacent.
type nested struct {
	text    strings.Builder
	section []string
}

// key writes one key with its value, which is YAML already.
func (w *nested) key(name, value string) {
	w.text.WriteString(w.open(name) + values.LastPart(name) + ": " + value + "\n")
}

// open writes the sections of name that are not open yet, and returns the
// indentation of the key.
func (w *nested) open(name string) (indent string) {
	parts := strings.Split(name, ".")
	parts = parts[:len(parts)-1]
	same := 0
	for same < len(parts) && same < len(w.section) && parts[same] == w.section[same] {
		same++
	}
	for i := same; i < len(parts); i++ {
		w.text.WriteString(strings.Repeat("  ", i) + parts[i] + ":\n")
	}
	w.section = parts
	return strings.Repeat("  ", len(parts))
}

// in reports whether the last key was in the same section as name.
func (w *nested) in(name string) bool {
	return strings.Join(w.section, ".")+"."+values.LastPart(name) == name
}

// Value is a key with its effective value.
type Value struct {
	Key   string `json:"key"`
	Value string `json:"value"` // in YAML
	Set   bool   `json:"set"`   // set by the document, not a default
}

// Values returns every key of the catalogue, in its order.
func (d Document) Values() []Value {
	c := d.Config()
	all := make([]Value, len(settings))
	for i, s := range settings {
		_, set := d.values[s.Name]
		all[i] = Value{Key: s.Name, Value: s.text(s.load(&c)), Set: set}
	}
	return all
}
