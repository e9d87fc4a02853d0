package migrations

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
)

//go:embed *.sql views
var files embed.FS

// Migration is one rendered step of the tables. Up and Down have one statement per
// element, without the closing semicolon. They are empty if the step only changes views.
type Migration struct {
	Version uint32
	Name    string
	Up      []string
	Down    []string
}

// Render returns every migration for p, ordered by version.
func Render(p Params) ([]Migration, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	return render(files, p)
}

// Bootstrap returns the statements that must run before the record of migrations can be
// read: the database and the table of that record.
func Bootstrap(p Params) ([]string, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	return renderFile(files, "bootstrap.sql", p)
}

var createTable = regexp.MustCompile(`^CREATE TABLE IF NOT EXISTS \w+\.(\w+)`)

// Tables returns the names of the tables in the order of creation, that of the record of
// migrations included.
func Tables(p Params) ([]string, error) {
	statements, err := Bootstrap(p)
	if err != nil {
		return nil, err
	}
	all, err := Render(p)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		statements = append(statements, m.Up...)
	}
	var names []string
	for _, s := range statements {
		if match := createTable.FindStringSubmatch(s); match != nil {
			names = append(names, match[1])
		}
	}
	return names, nil
}

// Latest returns the version of a fully migrated database.
func Latest() uint32 {
	names, err := fs.Glob(files, "*.up.sql")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	return uint32(len(names))
}

var fileName = regexp.MustCompile(`^(\d{4})_([a-z0-9_]+)\.up\.sql$`)

func render(fsys fs.FS, p Params) ([]Migration, error) {
	names, err := fs.Glob(fsys, "*.up.sql")
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	slices.Sort(names)
	all := make([]Migration, 0, len(names))
	for i, name := range names {
		m, err := renderPair(fsys, name, p)
		if err != nil {
			return nil, err
		}
		if int(m.Version) != i+1 {
			return nil, fmt.Errorf("read migration %s: version %d is not %d", name, m.Version, i+1)
		}
		all = append(all, m)
	}
	return all, nil
}

func renderPair(fsys fs.FS, up string, p Params) (Migration, error) {
	parts := fileName.FindStringSubmatch(up)
	if parts == nil {
		return Migration{}, fmt.Errorf("read migration %s: the name is not NNNN_name.up.sql", up)
	}
	version, err := strconv.ParseUint(parts[1], 10, 32)
	if err != nil {
		return Migration{}, fmt.Errorf("read migration %s: %w", up, err)
	}
	m := Migration{Version: uint32(version), Name: parts[2]}
	if m.Up, err = renderFile(fsys, up, p); err != nil {
		return Migration{}, err
	}
	down := strings.TrimSuffix(up, ".up.sql") + ".down.sql"
	if m.Down, err = renderFile(fsys, down, p); err != nil {
		return Migration{}, err
	}
	if len(m.Up) == 0 && !bringsViews(fsys, m.Version) {
		return Migration{}, fmt.Errorf("render migration %s: %w", up, errNoStatement)
	}
	return m, nil
}

func renderFile(fsys fs.FS, name string, p Params) ([]string, error) {
	text, err := fs.ReadFile(fsys, name)
	if err != nil {
		return nil, fmt.Errorf("read migration: %w", err)
	}
	var rec records
	t, err := template.New(name).Option("missingkey=error").Funcs(p.funcs()).Funcs(template.FuncMap{
		"record": rec.tuple, "array": rec.array, "values": rec.valuesOf,
	}).Parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("parse migration: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, p); err != nil {
		return nil, fmt.Errorf("render migration: %w", err)
	}
	numbered, err := rec.number(out.String())
	if err != nil {
		return nil, fmt.Errorf("render migration %s: %w", name, err)
	}
	return split(numbered), nil
}

var errNoStatement = errors.New("it has no statement and adds no view")

// split splits SQL into statements at semicolons that end a line, and drops whole-line
// comments and lines that a template action left empty.
func split(sql string) []string {
	var statements []string
	var open []string
	for line := range strings.Lines(sql) {
		line = strings.TrimRight(line, " \t\r\n")
		if line == "" || strings.HasPrefix(strings.TrimSpace(line), "--") {
			continue
		}
		end := strings.HasSuffix(line, ";")
		open = append(open, strings.TrimSuffix(line, ";"))
		if end {
			statements = append(statements, strings.Join(open, "\n"))
			open = nil
		}
	}
	if len(open) > 0 {
		statements = append(statements, strings.Join(open, "\n"))
	}
	return statements
}
