package migrations

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// viewFiles are the files of views/ and the version that added each. They are in the
// order of creation: a view reads only tables and views of the lines before it.
var viewFiles = []struct {
	name  string
	since uint32
}{
	{"spans", 1},
	{"otel_traces", 2},
	{"flows", 3},
	{"addresses", 4},
	{"ends", 8},
	{"trace_network", 4},
	{"edges", 8},
	{"service_network", 4},
	{"network_trouble", 4},
	{"pods", 5},
	{"services", 5},
	{"agents", 5},
}

// bringsViews reports whether a version added a view.
func bringsViews(fsys fs.FS, version uint32) bool {
	for _, f := range viewFiles {
		if _, err := fs.Stat(fsys, "views/"+f.name+".sql"); err == nil && f.since == version {
			return true
		}
	}
	return false
}

// View is the form of a view at one version of the schema.
type View struct {
	Name string
	// Form identifies the definition: it is part of the view's comment and changes with
	// every character.
	Form string
	// Replace brings the view into this form, whether it exists or not. Each statement
	// can be run again. Inserts are neither blocked nor lost in between: a materialized
	// view stays and gets another query.
	Replace []string
	// Drop removes the view.
	Drop string
}

// Views returns the views of a schema version in the order of creation.
func Views(p Params, version uint32) ([]View, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	var views []View
	for _, f := range viewFiles {
		if f.since > version {
			continue
		}
		name, err := formAt(files, f.name, version)
		if err != nil {
			return nil, err
		}
		statements, err := renderFile(files, name, p)
		if err != nil {
			return nil, err
		}
		for _, s := range statements {
			v, err := viewOf(s, p)
			if err != nil {
				return nil, fmt.Errorf("render view %s: %w", name, err)
			}
			views = append(views, v)
		}
	}
	return views, nil
}

// formAt returns the file with a view's form at a version: that of the lowest until_NNNN
// that is not below the version, otherwise the current one.
func formAt(fsys fs.FS, view string, version uint32) (string, error) {
	old, err := fs.Glob(fsys, "views/until_*/"+view+".sql")
	if err != nil {
		return "", fmt.Errorf("list views: %w", err)
	}
	slices.Sort(old)
	for _, name := range old {
		if path.Dir(name) >= fmt.Sprintf("views/until_%04d", version) {
			return name, nil
		}
	}
	return "views/" + view + ".sql", nil
}

var createView = regexp.MustCompile(`^CREATE (OR REPLACE VIEW|MATERIALIZED VIEW IF NOT EXISTS) (\S+)\.(\w+)`)

func viewOf(create string, p Params) (View, error) {
	match := createView.FindStringSubmatch(create)
	if match == nil {
		return View{}, fmt.Errorf("%q is neither CREATE OR REPLACE VIEW nor CREATE MATERIALIZED VIEW IF NOT EXISTS", firstLine(create))
	}
	comments := commentColumns(match[3])
	sum := sha256.Sum256([]byte(create + comments))
	v := View{Name: match[3], Form: "made by metaflow-server, form " + hex.EncodeToString(sum[:8])}
	name := match[2] + "." + v.Name + p.OnCluster()
	v.Drop = "DROP VIEW IF EXISTS " + name + " SYNC"
	if comments != "" {
		// The view's own comment comes last: it confirms that the columns have theirs.
		v.Replace = []string{create, "ALTER TABLE " + name + " " + comments + "MODIFY COMMENT '" + v.Form + "'"}
		return v, nil
	}
	v.Replace = []string{create + "\nCOMMENT '" + v.Form + "'"}
	if match[1] == "OR REPLACE VIEW" {
		return v, nil
	}
	_, query, ok := strings.Cut(create, "\nAS ")
	if !ok {
		return View{}, fmt.Errorf("view %s has no line that begins with AS", v.Name)
	}
	// The comment comes last: it confirms that the view has the query.
	v.Replace = append(v.Replace,
		"ALTER TABLE "+name+" MODIFY QUERY "+query,
		"ALTER TABLE "+name+" MODIFY COMMENT '"+v.Form+"'")
	return v, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
