package config

import (
	"fmt"
	"io"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/metaflowys/metaflow-server/pkg/values"
)

// commentWidth is the width of comments without their indentation.
const commentWidth = 96

// Print writes effective as a YAML file that Load can read: every key with its
// meaning, type, default and environment variable. defaults is a second struct
// of the same type. The values of secrets are omitted, and shown as *** if they
// are set.
func Print(w io.Writer, effective, defaults any, prefix string) error {
	if reflect.TypeOf(effective) != reflect.TypeOf(defaults) {
		panic(fmt.Sprintf("config: defaults of %T are not those of %T", defaults, effective))
	}
	keys := map[string]Key{}
	for _, k := range Keys(defaults, prefix) {
		keys[k.Name] = k
	}
	root := &yaml.Node{Kind: yaml.MappingNode}
	sections := map[string]*yaml.Node{"": root}
	walk(effective, func(f field) {
		sections[parentOf(f.key)].Content = append(sections[parentOf(f.key)].Content, keyNode(f.key, describe(keys[f.key])), f.node())
	}, func(s section) {
		node := &yaml.Node{Kind: yaml.MappingNode}
		sections[s.key] = node
		sections[parentOf(s.key)].Content = append(sections[parentOf(s.key)].Content, keyNode(s.key, s.doc), node)
	})
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	if err := encoder.Encode(root); err != nil {
		return fmt.Errorf("print configuration: %w", err)
	}
	if err := encoder.Close(); err != nil {
		return fmt.Errorf("print configuration: %w", err)
	}
	return nil
}

func parentOf(key string) string {
	if i := strings.LastIndexByte(key, '.'); i >= 0 {
		return key[:i]
	}
	return ""
}

func keyNode(key, comment string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Value: values.LastPart(key), HeadComment: wrap(comment)}
}

func describe(k Key) string {
	value := k.Default
	if value == "" {
		value = "none"
	}
	return fmt.Sprintf("%s\n%s, default %s, %s", k.Doc, k.Type, value, k.Env)
}

func (f field) node() *yaml.Node {
	if f.secret {
		return secretNode(!f.value.IsZero())
	}
	texts := f.texts()
	if !f.isList() {
		return f.scalarNode(f.value.Type(), texts[0])
	}
	list := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for _, text := range texts {
		list.Content = append(list.Content, f.scalarNode(f.value.Type().Elem(), text))
	}
	return list
}

func (f field) scalarNode(t reflect.Type, text string) *yaml.Node {
	node := &yaml.Node{Kind: yaml.ScalarNode, Value: text}
	if f.scalarName(t) == "text" {
		node.Tag = "!!str" // quoted if YAML would interpret it
	}
	return node
}

// secretNode returns a node without a value, which Load treats as a key that is
// not set.
func secretNode(set bool) *yaml.Node {
	node := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"}
	if set {
		node.LineComment = "# " + hidden
	}
	return node
}

// wrap makes text a comment and preserves its line breaks.
func wrap(text string) string {
	if text == "" {
		return ""
	}
	var lines []string
	for paragraph := range strings.SplitSeq(text, "\n") {
		line := "#"
		for word := range strings.FieldsSeq(paragraph) {
			if len(line)+1+len(word) > commentWidth && line != "#" {
				lines = append(lines, line)
				line = "#"
			}
			line += " " + word
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}
