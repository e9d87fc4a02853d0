// Package keydoc keeps the tables of keys in docs/configure.md in step with the
// programs. Each program's tests render their section from the code, and
// [Check] compares it with the page.
//
// A section lies between the comments <!-- begin NAME --> and <!-- end NAME
// -->. Text outside sections is written by hand and stays untouched.
package keydoc

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/config"
)

// Program renders the keys of a program's configuration file: a table of
// top-level keys, then one per section.
func Program(keys []config.Key) string {
	var t tables
	t.section("Top level")
	for _, k := range keys {
		title := "Top level"
		if section, _, nested := strings.Cut(k.Name, "."); nested {
			title = "`" + section + "`"
		}
		text := k.Doc
		if k.Secret {
			text = strings.TrimSuffix(text, ".") + "; never printed"
		}
		row(t.section(title), "`"+k.Name+"`<br>`"+k.Env+"`", typeNames.Replace(k.Type), k.Default, text)
	}
	return t.String()
}

// typeNames gives types the names of references; comments in files describe values in words.
var typeNames = strings.NewReplacer("list of text", "list of strings", "text", "string", "whole number", "integer", "true or false", "boolean")

// Group renders the keys of an agent group's configuration.
func Group(keys []agentconfig.Key) string {
	var t tables
	for _, k := range keys {
		parts := strings.SplitN(k.Name, ".", 3) // inputs.integration.compression.trace belongs to inputs.integration
		kind := typeNames.Replace(k.Type)
		if k.Range != "" {
			kind += ", " + k.Range
		}
		text := k.Doc
		if len(k.Aliases) > 0 {
			text += " The predecessor's name: `" + strings.Join(k.Aliases, "`, `") + "`."
		}
		row(t.section("`"+parts[0]+"."+parts[1]+"`"), "`"+k.Name+"`", kind, k.Default, text)
	}
	return t.String()
}

// tables holds the tables of a page's section by title, in the order of first
// use.
type tables struct {
	titles []string
	rows   map[string]*strings.Builder
}

func (t *tables) section(title string) *strings.Builder {
	if t.rows == nil {
		t.rows = map[string]*strings.Builder{}
	}
	if t.rows[title] == nil {
		t.titles = append(t.titles, title)
		t.rows[title] = &strings.Builder{}
	}
	return t.rows[title]
}

// String omits tables without rows.
func (t *tables) String() string {
	var b strings.Builder
	for _, title := range t.titles {
		if rows := t.rows[title].String(); rows != "" {
			fmt.Fprintf(&b, "\n### %s\n\n| key | value | default | meaning |\n|---|---|---|---|\n%s", title, rows)
		}
	}
	return b.String()
}

func row(b *strings.Builder, key, kind, value, text string) {
	if value == "" {
		value = "none"
	} else {
		value = "`" + value + "`"
	}
	fmt.Fprintf(b, "| %s | %s | %s | %s |\n", key, cell(kind), value, cell(text))
}

// cell escapes a text for a table: | would end the cell, and < would start an
// element.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "\n", " ").Replace(text)
}

// Check returns an error unless the section of the page at path equals want;
// with update it first writes want. It rewrites the whole page, so only one
// program may update at a time: go test -p 1.
func Check(path, section, want string, update bool) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read page: %w", err)
	}
	if update {
		updated, err := Replace(string(text), section, want)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(updated), 0o600); err != nil {
			return fmt.Errorf("write page: %w", err)
		}
		return nil
	}
	got, err := Section(string(text), section)
	if err != nil {
		return err
	}
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("%s differs from the code; run make generate (-code +page):\n%s", path, diff)
	}
	return nil
}

// Section returns the text between the comments of a section.
func Section(page, name string) (string, error) {
	from, to, err := bounds(page, name)
	if err != nil {
		return "", err
	}
	return page[from:to], nil
}

// Replace returns page with the text of a section replaced.
func Replace(page, name, text string) (string, error) {
	from, to, err := bounds(page, name)
	if err != nil {
		return "", err
	}
	return page[:from] + text + page[to:], nil
}

func bounds(page, name string) (from, to int, err error) {
	begin, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->"
	from, to = strings.Index(page, begin), strings.Index(page, end)
	if from < 0 || to < from || strings.Count(page, begin) != 1 || strings.Count(page, end) != 1 {
		return 0, 0, fmt.Errorf("find section %s: the page needs one line %q and below it one line %q", name, strings.TrimSpace(begin), end)
	}
	return from + len(begin), to, nil
}

// CheckCommands returns an error if the commands of a program, by its root, are not those that
// [program.Commands] tells other programs.
func CheckCommands(root *cobra.Command) error {
	var names []string
	for _, c := range root.Commands() {
		if c.Name() != "version" { // every program has it
			names = append(names, c.Name())
		}
	}
	slices.Sort(names)
	if told := slices.Sorted(slices.Values(program.Commands[root.Name()])); !slices.Equal(names, told) {
		return fmt.Errorf("program.Commands has %v of %s, want %v", told, root.Name(), names)
	}
	return nil
}
