// Package keydoc keeps the tables of keys in docs/configure.md as the programs
// are: each program's tests render their own section from the code and [Check]
// the page.
//
// A section lies between two comments, <!-- begin NAME --> and <!-- end NAME -->; what stands
// outside of them is written by hand and not touched.
package keydoc

import (
	"fmt"
	"os"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/config"
)

// Program renders the keys of a program's configuration file: a table for what
// is in no section, then one for each section.
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
			text += "; never printed"
		}
		row(t.section(title), "`"+k.Name+"`<br>`"+k.Env+"`", k.Type, k.Default, text)
	}
	return t.String()
}

// Group renders the keys of an agent group's configuration.
func Group(keys []agentconfig.Key) string {
	var t tables
	for _, k := range keys {
		parts := strings.SplitN(k.Name, ".", 3) // inputs.integration.compression.trace is one of inputs.integration
		kind := k.Type
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

// tables are the tables of a page's section, by their titles in the order of
// their first use.
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

// String leaves out tables without a row.
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

// cell makes a text safe inside a table: a | would end the cell, and a < begin
// an element.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "\n", " ").Replace(text)
}

// Check fails unless a section of the page at path is want; with update it writes
// want there first. It writes the page as a whole, so only one program at a time
// may update: go test -p 1.
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
		return fmt.Errorf("%s differs from the code; make generate writes it (-code +page):\n%s", path, diff)
	}
	return nil
}

// Section returns what stands in page between the comments of a section.
func Section(page, name string) (string, error) {
	from, to, err := bounds(page, name)
	if err != nil {
		return "", err
	}
	return page[from:to], nil
}

// Replace returns page with text in a section.
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
		return 0, 0, fmt.Errorf("find section %s: the page needs one line %q and one %q below it", name, strings.TrimSpace(begin), end)
	}
	return from + len(begin), to, nil
}
