// Package fielddoc keeps the comments of configuration structs equal to the texts
// that operators read: a test renders the comments and compares them with the
// source, or writes them.
package fielddoc

import (
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// Meaning returns what a field of an exported struct means, or "" to leave the
// field's comment alone.
type Meaning func(structName, fieldName string, tag reflect.StructTag) string

// Check fails the test when the comment of a field in a Go file is not its meaning.
// With update it writes the comments instead. It returns the number of fields that
// have a meaning.
func Check(t *testing.T, file string, meaning Meaning, update bool) int {
	t.Helper()
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want, fields, err := render(string(source), meaning)
	switch {
	case err != nil:
		t.Fatalf("%s: %v", file, err)
	case want == string(source):
	case update:
		if err := os.WriteFile(file, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("%s: comments of fields differ from what operators read; -update writes them (-operators +comments):\n%s", file, cmp.Diff(want, string(source)))
	}
	return fields
}

// render returns source with the comments, and how many it has.
func render(source string, meaning Meaning) (text string, fields int, err error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, "", source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return "", 0, err
	}
	type comment struct {
		from, to int // lines that it replaces, counted from 0
		lines    []string
	}
	var comments []comment
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.TypeSpec)
		if !ok || !spec.Name.IsExported() {
			return true
		}
		structure, ok := spec.Type.(*ast.StructType)
		if !ok {
			return true
		}
		for _, f := range structure.Fields.List {
			if len(f.Names) != 1 {
				continue
			}
			name := f.Names[0].Name
			if text := meaning(spec.Name.Name, name, tagOf(f)); text != "" {
				c := comment{to: set.Position(f.Pos()).Line - 1, lines: wrap(name, text)}
				c.from = c.to
				if f.Doc != nil {
					c.from = set.Position(f.Doc.Pos()).Line - 1
				}
				comments = append(comments, c)
			}
		}
		return true
	})
	lines := strings.SplitAfter(source, "\n")
	for _, c := range slices.Backward(comments) { // so that the lines before keep their numbers
		lines = slices.Replace(lines, c.from, c.to, c.lines...)
	}
	formatted, err := format.Source([]byte(strings.Join(lines, "")))
	if err != nil {
		return "", 0, fmt.Errorf("format: %w", err)
	}
	return string(formatted), len(comments), nil
}

func tagOf(f *ast.Field) reflect.StructTag {
	if f.Tag == nil {
		return ""
	}
	text, _ := strconv.Unquote(f.Tag.Value) // the parser has read it
	return reflect.StructTag(text)
}

// wrap makes a comment of a field that is indented by one tab of eight columns.
func wrap(name, text string) []string {
	const width, indent = 80, 8
	var lines []string
	line := "// " + name + ":"
	for word := range strings.FieldsSeq(strings.TrimSuffix(text, ".") + ".") {
		if indent+utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines = append(lines, "\t"+line+"\n")
			line = "//"
		}
		line += " " + word
	}
	return append(lines, "\t"+line+"\n")
}
