package agentconfig

import (
	"strings"
)

const exampleHead = `# The configuration of an agent group: every key, with its default.
# 'agent-group-config update' sets the keys that a file has and leaves the others as they
# are; with --replace, the others go back to their defaults. Delete here what you do not
# want to set.

# Which group this is for. May be left out where the command line names the group.
# agent_group_id: g-default000
`

// Example returns a text with every key, its meaning, range and default. Parse
// accepts it unchanged, and it sets every key to its default.
func Example() []byte {
	var w nested
	w.text.WriteString(exampleHead)
	defaults := Default()
	for _, s := range settings {
		if !w.in(s.Name) {
			w.text.WriteString("\n")
		}
		indent := w.open(s.Name)
		comment(&w.text, indent, s.Doc)
		comment(&w.text, indent, s.meta())
		w.key(s.Name, s.text(s.load(&defaults)))
	}
	return []byte(w.text.String())
}

// meta returns the type, range and default of a key.
func (k Key) meta() string {
	text := "Type: " + k.Type + "."
	if k.Range != "" {
		text += " Range: " + k.Range + "."
	}
	text += " Default: " + k.Default + "."
	for _, alias := range k.Aliases {
		text += " Also: " + alias + "."
	}
	return text
}

// lineWidth is the width at which comments wrap.
const lineWidth = 92

func comment(w *strings.Builder, indent, text string) {
	line := indent + "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > lineWidth && line != indent+"#" {
			w.WriteString(line + "\n")
			line = indent + "#"
		}
		line += " " + word
	}
	w.WriteString(line + "\n")
}
