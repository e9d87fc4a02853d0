package agentconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/metaflowys/metaflow-server/pkg/values"
)

// MaxTextBytes bounds a text. It is two orders of magnitude above a text that
// sets everything.
const MaxTextBytes = 1 << 20

// Parse parses a text written by people. It rejects unknown keys, wrong types,
// values out of range and duplicates; err is then an *Error with all problems,
// and doc sets nothing. An empty text sets nothing and is valid.
//
// groupID is the agent group that the text names, by id or name; it is empty if
// the text names none, and is returned with an error too, as far as it could be
// read. An unexpanded shell variable, such as ${VTAP_GROUP_ID}, counts as no
// group.
func Parse(text []byte) (doc Document, groupID string, err error) {
	r := newReader()
	r.text(text)
	if len(r.problems) > 0 {
		return Document{}, r.groupID, &Error{r.inOrder()}
	}
	return Document{r.values}, r.groupID, nil
}

// ParseLenient parses a text from a server that may be newer than this program.
// It skips every key that Parse would reject and returns the reasons, one line
// per key. An error is an *Error: the text cannot be read at all.
func ParseLenient(text []byte) (doc Document, ignored []string, err error) {
	r := newReader()
	r.text(text)
	if r.broken {
		return Document{}, nil, &Error{r.inOrder()}
	}
	for _, p := range r.inOrder() {
		ignored = append(ignored, p.String())
	}
	return Document{r.values}, ignored, nil
}

// reader parses one text.
type reader struct {
	values   map[string]any
	groupID  string
	set      map[string]written // by name in the catalogue
	problems []Problem
	more     int  // number of problems beyond maxProblems
	broken   bool // the text is unusable
}

// written is the place and the name under which a key was set.
type written struct {
	name string
	line int
}

func newReader() *reader {
	return &reader{values: map[string]any{}, set: map[string]written{}}
}

// maxProblems is more than anyone reads before correcting the text.
const maxProblems = 100

func (r *reader) problem(line int, key, format string, args ...any) {
	if len(r.problems) >= maxProblems {
		r.more++
		return
	}
	r.problems = append(r.problems, Problem{Line: line, Key: key, Text: fmt.Sprintf(format, args...)})
}

func (r *reader) inOrder() []Problem {
	slices.SortStableFunc(r.problems, func(a, b Problem) int { return a.Line - b.Line })
	if r.more > 0 {
		r.problems = append(r.problems, Problem{Text: fmt.Sprintf("and %d more problems", r.more)})
	}
	return r.problems
}

// fail records a problem that makes the whole text unusable.
func (r *reader) fail(line int, format string, args ...any) {
	r.broken = true
	r.problem(line, "", format, args...)
}

func (r *reader) text(text []byte) {
	if len(text) > MaxTextBytes {
		r.fail(0, "the text has %d bytes, more than the %d that a configuration may have", len(text), MaxTextBytes)
		return
	}
	if isTable(text) {
		r.fail(1, "this is the table that 'agent-group-config list' prints, and not a configuration; 'agent-group-config list -o yaml' prints one")
		return
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document yaml.Node
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return // only comments
	case err != nil:
		r.notYAML(text, err)
		return
	}
	switch err := decoder.Decode(new(yaml.Node)); {
	case errors.Is(err, io.EOF):
	case err != nil:
		r.notYAML(text, err)
		return
	default:
		r.fail(0, "more than one YAML document; a configuration is one")
		return
	}
	root := input{node: document.Content[0]}
	switch {
	case root.tag() == tagNull:
	case root.node.Kind != yaml.MappingNode:
		r.fail(root.node.Line, "%s where keys with values are expected", root.found())
	default:
		r.section("", root.node)
	}
}

func (r *reader) notYAML(text []byte, err error) {
	line, cause := values.SyntaxError(text, err)
	r.fail(line, "not YAML: %s", cause)
}

// isTable reports whether text starts with the header of the table that lists
// print: users who forget -o yaml have it in the file.
func isTable(text []byte) bool {
	line, _, _ := bytes.Cut(bytes.TrimSpace(text), []byte("\n"))
	fields := strings.Fields(string(line[:min(len(line), 256)]))
	return len(fields) >= 2 && fields[0] == "NAME" && strings.HasSuffix(fields[len(fields)-1], "ID")
}

// section parses the keys of a section, or of the whole text if parent is
// empty.
func (r *reader) section(parent string, node *yaml.Node) {
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := input{node: node.Content[i]}, input{node: node.Content[i+1]}
		line := key.node.Line
		if key.node.Kind != yaml.ScalarNode {
			r.problem(line, parent, "%s where a key is expected", key.found())
			continue
		}
		name := key.node.Value
		if parent != "" {
			name = parent + "." + name
		}
		s, known := names[name]
		switch {
		case known:
			value.alias = s != nil && name != s.Name
			r.value(name, line, s, value)
		case sections[name]:
			r.subsection(name, line, value)
		default:
			r.unknown(name, line)
		}
	}
}

func (r *reader) subsection(name string, line int, value input) {
	switch {
	case value.tag() == tagNull:
		// Everything in it is commented out.
	case value.node.Kind != yaml.MappingNode:
		r.problem(line, name, "%s where a section of keys is expected", value.found())
	default:
		r.section(name, value.node)
	}
}

// value parses the value of a setting, or of the group's key if s is nil.
func (r *reader) value(name string, line int, s *setting, value input) {
	canonical := groupKey
	if s != nil {
		canonical = s.Name
	}
	if before, twice := r.set[canonical]; twice {
		r.twice(before, written{name, line})
		return
	}
	r.set[canonical] = written{name, line}
	if s == nil {
		r.group(name, line, value)
		return
	}
	if value.tag() == tagNull {
		r.problem(line, name, "has no value; leave the key out if it is not to be set")
		return
	}
	v, err := s.read(value)
	if err != nil {
		for _, text := range strings.Split(err.Error(), "\n") {
			r.problem(line, name, "%s", text)
		}
		return
	}
	r.values[s.Name] = v
}

// twice reports a key that was set before. ParseLenient uses the first one.
func (r *reader) twice(before, again written) {
	if before.name == again.name {
		r.problem(again.line, again.name, "set twice, first in line %d; was the file appended to?", before.line)
		return
	}
	r.problem(again.line, again.name, "the same as %s in line %d; keep one of them", before.name, before.line)
}

// unexpanded matches a shell variable that the shell did not expand.
var unexpanded = regexp.MustCompile(`^\$(\{[A-Za-z_][A-Za-z0-9_]*\}|[A-Za-z_][A-Za-z0-9_]*)$`)

func (r *reader) group(name string, line int, value input) {
	switch text := value.node.Value; {
	case value.tag() == tagNull, value.tag() == tagText && text == "":
	case value.tag() != tagText:
		r.problem(line, name, "%v", value.not("the id or the name of an agent group"))
	case unexpanded.MatchString(text):
	default:
		r.groupID = text
	}
}

func (r *reader) unknown(name string, line int) {
	if len(r.problems) >= maxProblems { // finding the nearest name takes time
		r.problem(line, name, "unknown key")
		return
	}
	if predecessorKeys[name] {
		r.predecessor(name, line)
		return
	}
	near := values.Nearest(name, knownNames)
	switch {
	case values.LastPart(name) == "<<":
		r.problem(line, name, "anchors are not supported; write the keys out")
	case near != "" && values.Edits(name, near) <= 2:
		r.problem(line, name, "unknown key; did you mean %s?", near)
	case underPredecessor(name):
		r.predecessor(name, line)
	case near != "":
		r.problem(line, name, "unknown key; did you mean %s?", near)
	default:
		r.problem(line, name, "unknown key")
	}
}

func (r *reader) predecessor(name string, line int) {
	r.problem(line, name, "is a key of the predecessor that has no meaning here; remove it")
}
