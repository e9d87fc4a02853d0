package migrations

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
)

//go:embed columns.txt
var columnTexts string

// Column is a column of a view and what it means.
type Column struct{ Name, Meaning string }

// DescribedViews returns the views whose columns columns.txt describes, in its order. Views on
// one line have the same columns.
func DescribedViews() [][]string {
	var views [][]string
	for _, section := range sections() {
		views = append(views, section.views)
	}
	return views
}

// Columns returns what the columns of a view mean; none if columns.txt does not describe it.
func Columns(view string) []Column {
	for _, section := range sections() {
		if slices.Contains(section.views, view) {
			return section.columns
		}
	}
	return nil
}

type section struct {
	views   []string
	columns []Column
}

func sections() []section {
	var all []section
	for line := range strings.Lines(columnTexts) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case !strings.HasPrefix(line, "\t"):
			all = append(all, section{views: strings.Split(line, ", ")})
		default:
			name, meaning, ok := strings.Cut(line[1:], "  ")
			if !ok || len(all) == 0 {
				panic(fmt.Sprintf("columns.txt: %q is no column with its meaning", line)) // a test reads the whole file
			}
			last := &all[len(all)-1]
			last.columns = append(last.columns, Column{name, meaning})
		}
	}
	return all
}

// commentColumns returns the commands of an ALTER that set the comments of a view's columns.
// Old forms of a view lack some of them, and a parameterized view has none before it is
// called.
func commentColumns(view string) (commands string) {
	for _, c := range Columns(view) {
		commands += "COMMENT COLUMN IF EXISTS " + c.Name + " '" + strings.ReplaceAll(c.Meaning, "'", `\'`) + "',\n    "
	}
	return commands
}
