package agentconfig

import (
	"maps"
	"strings"

	"github.com/metaflowys/metaflow-server/pkg/values"
)

// Document holds the keys that are set. The zero value sets none. It is never changed
// after it was made, so it can be copied and shared.
type Document struct {
	values map[string]any // by name of the catalogue; of the type of the setting's field
}

// Empty says that no key is set.
func (d Document) Empty() bool { return len(d.values) == 0 }

// Equal says whether d and o set the same keys to the same values.
func (d Document) Equal(o Document) bool {
	return string(d.YAML("")) == string(o.YAML(""))
}

// Merge returns what is set after patch was applied to d: the keys of both, with the
// values of patch where both set one.
func (d Document) Merge(patch Document) Document {
	merged := make(map[string]any, len(d.values)+len(patch.values))
	maps.Copy(merged, d.values)
	maps.Copy(merged, patch.values)
	return Document{merged}
}

// Config returns the configuration in force: the defaults, and over them what d sets.
func (d Document) Config() Config {
	c := Default()
	for _, s := range settings {
		if v, ok := d.values[s.Name]; ok {
			s.store(&c, v)
		}
	}
	return c
}

// YAML returns the canonical text of d, the agent group first unless groupID is empty.
// Parse reads it back. A document without keys and group has no text.
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

// Change is a key whose value in force is another one.
type Change struct {
	Key string `json:"key"`
	Old string `json:"old"` // as YAML writes it
	New string `json:"new"`
}

// Diff tells what is different for agents when before becomes after, in the order of the catalogue. A key that is set to its default is no difference
// from one that is not set.
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

// nested writes keys with dots as sections of YAML. Keys of one section must follow each
// other.
type nested struct {
	text    strings.Builder
	section []string
}

// key writes one key with its value, which is YAML already.
func (w *nested) key(name, value string) {
	w.text.WriteString(w.open(name) + values.LastPart(name) + ": " + value + "\n")
}

// open writes the sections that name is in as far as they are not open, and returns the
// indentation of the key itself.
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

// in says whether the last key was in the section that name is in.
func (w *nested) in(name string) bool {
	return strings.Join(w.section, ".")+"."+values.LastPart(name) == name
}

// Value is a key with the value in force.
type Value struct {
	Key   string `json:"key"`
	Value string `json:"value"` // as YAML writes it
	Set   bool   `json:"set"`   // by the document, and no default
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
