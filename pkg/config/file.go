package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/metaflowys/metaflow-server/pkg/values"
)

// fileValue is a value in the file, before parsing.
type fileValue struct {
	texts  []string
	source string // file:line
}

// file parses one YAML file against the keys of a configuration.
type file struct {
	name     string
	lists    map[string]bool // every key, true if it is a list
	sections map[string]bool
	values   map[string]fileValue
	seen     map[string]bool // every key and section so far
	problems []Problem
}

func readFile(name string, dst any, hint func(topLevel []string) string) *file {
	f := &file{name: name, lists: map[string]bool{}, sections: map[string]bool{}, values: map[string]fileValue{}, seen: map[string]bool{}}
	walk(dst, func(fd field) { f.lists[fd.key] = fd.isList() }, func(s section) { f.sections[s.key] = true })

	text, err := os.ReadFile(name)
	if err != nil {
		f.problem("", 0, "%v", err)
		return f
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document yaml.Node
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return f // an empty file sets nothing
	case err != nil:
		f.notYAML(text, err)
		return f
	}
	f.section("", document.Content[0])
	f.hint(hint)
	switch err := decoder.Decode(new(yaml.Node)); {
	case errors.Is(err, io.EOF):
	case err != nil:
		f.notYAML(text, err)
	default:
		f.problem("", 0, "more than one YAML document; a configuration is one")
	}
	return f
}

// hint adds a hint about the keys at the top level, if some of them are unknown.
func (f *file) hint(hint func(topLevel []string) string) {
	var topLevel []string
	unknown := false
	for key := range f.seen {
		if strings.Contains(key, ".") {
			continue
		}
		topLevel = append(topLevel, key)
		_, known := f.lists[key]
		unknown = unknown || !known && !f.sections[key]
	}
	if hint == nil || !unknown {
		return
	}
	if text := hint(topLevel); text != "" {
		f.problems = slices.Insert(f.problems, 0, Problem{Text: text})
	}
}

func (f *file) notYAML(text []byte, err error) {
	line, cause := values.SyntaxError(text, err)
	f.problem("", line, "not YAML: %s", cause)
}

func (f *file) problem(key string, line int, format string, args ...any) {
	source := f.name
	if line > 0 {
		source = fmt.Sprintf("%s:%d", f.name, line)
	}
	f.problems = append(f.problems, Problem{Key: key, Text: fmt.Sprintf(format, args...), Source: source})
}

// section parses the mapping of a section, or of the whole file if parent is
// empty.
func (f *file) section(parent string, node *yaml.Node) {
	node = resolve(node)
	if isNull(node) {
		return
	}
	if node.Kind != yaml.MappingNode {
		f.problem(parent, node.Line, "%s where a section of keys is expected%s", kindName(node), f.keysOf(parent))
		return
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := joinKey(parent, node.Content[i].Value), resolve(node.Content[i+1])
		line := node.Content[i].Line
		_, known := f.lists[key]
		switch {
		case f.seen[key]:
			f.problem(key, line, "set twice")
		case f.sections[key]:
			f.section(key, value)
		case known:
			f.value(key, value)
		default:
			f.problem(key, line, "unknown key%s", f.suggestion(key))
		}
		f.seen[key] = true
	}
}

func (f *file) value(key string, node *yaml.Node) {
	v := fileValue{source: fmt.Sprintf("%s:%d", f.name, node.Line)}
	switch {
	case isNull(node):
		return // a key without a value sets nothing
	case node.Kind == yaml.ScalarNode:
		v.texts = []string{node.Value}
		if f.lists[key] {
			v.texts = values.List(node.Value)
		}
	case node.Kind == yaml.SequenceNode && f.lists[key]:
		v.texts = []string{}
		for i, item := range node.Content {
			if item = resolve(item); item.Kind != yaml.ScalarNode || isNull(item) {
				f.problem(fmt.Sprintf("%s[%d]", key, i), item.Line, "%s where a single value is expected", kindName(item))
				return
			}
			v.texts = append(v.texts, item.Value)
		}
	default:
		f.problem(key, node.Line, "%s where a single value is expected", kindName(node))
		return
	}
	f.values[key] = v
}

// keysOf lists the keys of a section, as the end of a sentence.
func (f *file) keysOf(section string) string {
	const shown = 8
	var keys []string
	for _, known := range []map[string]bool{f.lists, f.sections} {
		for key := range known {
			if name, ok := strings.CutPrefix(key, section+"."); ok && !strings.Contains(name, ".") {
				keys = append(keys, name)
			}
		}
	}
	slices.Sort(keys)
	if len(keys) == 0 {
		return ""
	}
	if len(keys) > shown {
		keys = append(keys[:shown], "…")
	}
	return ": " + strings.Join(keys, ", ")
}

// suggestion returns the known key that an unknown one most likely misspells.
func (f *file) suggestion(key string) string {
	var known []string
	for k := range f.lists {
		known = append(known, k)
	}
	for k := range f.sections {
		known = append(known, k)
	}
	if best := values.Nearest(key, known); best != "" {
		return ", did you mean " + best + "?"
	}
	return ""
}

func resolve(node *yaml.Node) *yaml.Node {
	for node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	return node
}

func isNull(node *yaml.Node) bool {
	return node.Kind == yaml.ScalarNode && node.Tag == "!!null"
}

func kindName(node *yaml.Node) string {
	switch node.Kind {
	case yaml.MappingNode:
		return "a section of keys"
	case yaml.SequenceNode:
		return "a list"
	default:
		return "a single value"
	}
}
