package answers

import (
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/metaflowys/metaflow-server/integration/internal/shop"
)

// dashboard holds the fields of a dashboard's file that the tests check.
type dashboard struct {
	UID        string
	Title      string
	Templating struct{ List []variable }
	Panels     []panel
}

type variable struct {
	Name, Type string
	Datasource source
	Query      json.RawMessage // an object for queries, a text for text boxes
}

type panel struct {
	ID          int
	Type, Title string
	Datasource  source
	GridPos     struct{ X, Y, W, H int }
	FieldConfig struct {
		Overrides []struct {
			Matcher    struct{ ID, Options string }
			Properties []struct {
				ID    string
				Value json.RawMessage
			}
		}
	}
	Targets []query
}

type source struct{ Type, UID string }

type query struct {
	RefID, EditorType, QueryType, RawSQL string
	Format                               int
	Expr                                 string // a Prometheus query
}

// formats are the plugin's numbers for the purposes of a query.
var formats = map[string]int{"timeseries": 0, "table": 1, "traces": 3}

const provisioned = "../../deploy/grafana"

func dashboards(t *testing.T) map[string]dashboard {
	t.Helper()
	paths, err := filepath.Glob(provisioned + "/dashboards/*.json")
	if err != nil || len(paths) < 5 {
		t.Fatalf("found %d dashboards, %v", len(paths), err)
	}
	all := map[string]dashboard{}
	for _, path := range paths {
		var d dashboard
		if err := json.Unmarshal([]byte(read(t, path)), &d); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all[filepath.Base(path)] = d
	}
	return all
}

// Every query of every dashboard returns rows of the shape that its panel
// needs.
func TestDashboards(t *testing.T) {
	db := open(t)
	for name, d := range dashboards(t) {
		t.Run(name, func(t *testing.T) {
			db := engine{t, db.engine}
			values := map[string]string{ // values of text boxes
				"trace": "'d4da03547ca6bbc79fb5ae8ed3906704'", "key": "'app.user.id'", "value": "'1017'", "minutes": "15",
			}
			for _, v := range d.Templating.List {
				if v.Type != "query" {
					continue
				}
				var q query
				if err := json.Unmarshal(v.Query, &q); err != nil {
					t.Fatal(err)
				}
				_, rows := db.rows(expand(t, q.RawSQL, values))
				var all []string
				for _, row := range rows {
					all = append(all, fmt.Sprintf("'%s'", row[0]))
				}
				if len(all) == 0 {
					t.Errorf("variable %s has no values", v.Name)
				}
				values[v.Name] = strings.Join(all, ",")
			}
			for _, p := range d.Panels {
				if p.Datasource.Type == "prometheus" {
					continue // covered by TestStagesQueryExposedMetrics
				}
				for _, q := range p.Targets {
					names, rows := db.rows(asOf(expand(t, q.RawSQL, values)))
					if len(rows) == 0 {
						t.Errorf("%s: no rows from %s", p.Title, q.RawSQL)
						continue
					}
					for _, problem := range unfit(p, q, names, rows) {
						t.Errorf("%s: %s", p.Title, problem)
					}
				}
			}
		})
	}
}

// unfit returns the reasons why a panel cannot show a result.
func unfit(p panel, q query, names []string, rows [][]any) (problems []string) {
	var needed []string
	switch {
	case q.QueryType == "timeseries":
		if _, err := time.Parse(time.DateTime, fmt.Sprint(rows[0][0])); err != nil {
			problems = append(problems, "the first column is not a time:  "+err.Error())
		}
		if len(rows) < 10 {
			problems = append(problems, fmt.Sprintf("a line of %d points", len(rows)))
		}
	case q.QueryType == "traces":
		needed = []string{"traceID", "spanID", "parentSpanID", "serviceName", "operationName", "startTime", "duration", "tags", "serviceTags"}
	case q.RefID == "nodes":
		needed = []string{"id", "title", "mainstat", "arc__bad", "arc__clean"}
	case q.RefID == "edges":
		needed = []string{"id", "source", "target", "mainstat"}
	}
	for _, o := range p.FieldConfig.Overrides {
		needed = append(needed, o.Matcher.Options)
	}
	for _, name := range needed {
		if !slices.Contains(names, name) {
			problems = append(problems, "no column "+name)
		}
	}
	return problems
}

var (
	macro     = regexp.MustCompile(`\$__(\w+)(?:\((\w+)\))?`)
	reference = regexp.MustCompile(`\$\{(\w+)(?::singlequote)?\}`)
)

// expand expands macros like Grafana and the plugin (pkg/macros of
// grafana-clickhouse-datasource 4), for the shop's hour and an interval of a
// minute.
func expand(t *testing.T, query string, values map[string]string) string {
	t.Helper()
	from, to := fmt.Sprintf("toDateTime(%d)", shop.Start.Unix()), fmt.Sprintf("toDateTime(%d)", shop.End.Unix())
	query = reference.ReplaceAllStringFunc(query, func(m string) string {
		name := reference.FindStringSubmatch(m)[1]
		if values[name] == "" {
			t.Errorf("variable %s is not set", name)
		}
		return values[name]
	})
	return macro.ReplaceAllStringFunc(query, func(m string) string {
		parts := macro.FindStringSubmatch(m)
		switch name, column := parts[1], parts[2]; name {
		case "fromTime":
			return from
		case "toTime":
			return to
		case "timeFilter":
			return column + " >= " + from + " AND " + column + " <= " + to
		case "timeInterval":
			return "toStartOfInterval(toDateTime(" + column + "), INTERVAL 60 second)"
		case "interval_s":
			return "60"
		default:
			t.Errorf("the plugin has no macro %s", m)
			return m
		}
	})
}

// Dashboards are consistent with the provisioning files and with each other.
func TestDashboardsFitTogether(t *testing.T) {
	clickhouse, prometheus := provisionedSource(t, "metaflow.yaml"), provisionedSource(t, "prometheus.yaml")
	all := dashboards(t)
	variables := map[string][]string{} // by the dashboard's uid
	for name, d := range all {
		if _, taken := variables[d.UID]; taken || d.UID == "" || d.Title == "" {
			t.Errorf("%s: the uid or title is missing or not unique", name)
		}
		variables[d.UID] = []string{}
		for _, v := range d.Templating.List {
			variables[d.UID] = append(variables[d.UID], v.Name)
			if v.Type == "query" && v.Datasource != clickhouse {
				t.Errorf("%s: variable %s queries %v", name, v.Name, v.Datasource)
			}
		}
	}
	tempo := provisionedSource(t, "tempo.yaml")
	explore := regexp.MustCompile(`"/explore\?schemaVersion=1&panes=([^"]+)"`)
	target := regexp.MustCompile(`/d/([\w-]+)\?var-(\w+)=`)
	for name, d := range all {
		for i, p := range d.Panels {
			if p.ID != i+1 || p.Datasource != clickhouse && p.Datasource != prometheus || len(p.Targets) == 0 {
				t.Errorf("%s: %s: id %d, %v, %d queries", name, p.Title, p.ID, p.Datasource, len(p.Targets))
			}
			for _, q := range p.Targets {
				if p.Datasource == prometheus {
					if q.Expr == "" {
						t.Errorf("%s: %s: query %s is empty", name, p.Title, q.RefID)
					}
					continue
				}
				if format, known := formats[q.QueryType]; !known || format != q.Format || q.EditorType != "sql" {
					t.Errorf("%s: %s: format %d does not match %q", name, p.Title, q.Format, q.QueryType)
				}
			}
			if p.GridPos.X+p.GridPos.W > 24 {
				t.Errorf("%s: %s is too wide", name, p.Title)
			}
			for _, other := range d.Panels[:i] {
				a, b := p.GridPos, other.GridPos
				if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
					t.Errorf("%s: %s overlaps %s", name, p.Title, other.Title)
				}
			}
		}
		for _, m := range explore.FindAllStringSubmatch(read(t, provisioned+"/dashboards/"+name), -1) {
			var panes map[string]struct {
				Datasource string
				Queries    []struct{ QueryType, Query string }
			}
			text, err := url.PathUnescape(m[1])
			if err == nil {
				err = json.Unmarshal([]byte(text), &panes)
			}
			// The trace is that of a row, or of the dashboard.
			asks := []string{"${__value.raw}", "${trace}"}
			if a := panes["a"]; err != nil || a.Datasource != tempo.UID || len(a.Queries) != 1 || !slices.Contains(asks, a.Queries[0].Query) {
				t.Errorf("%s: a link to Explore has the panes %q: %v", name, text, err)
			}
		}
		for _, m := range target.FindAllStringSubmatch(read(t, provisioned+"/dashboards/"+name), -1) {
			if !slices.Contains(variables[m[1]], m[2]) {
				t.Errorf("%s: a link refers to the variable %s of %s", name, m[2], m[1])
			}
		}
	}
}

// provisionedSource returns the only data source of a file.
func provisionedSource(t *testing.T, file string) source {
	t.Helper()
	var provider struct {
		Datasources []struct{ Name, UID, Type string }
	}
	if err := yaml.Unmarshal([]byte(read(t, provisioned+"/datasources/"+file)), &provider); err != nil {
		t.Fatal(err)
	}
	if len(provider.Datasources) != 1 {
		t.Fatalf("%s has %d data sources", file, len(provider.Datasources))
	}
	return source{provider.Datasources[0].Type, provider.Datasources[0].UID}
}

// rows returns a query's result as an array of arrays.
func (q engine) rows(query string) (names []string, rows [][]any) {
	q.t.Helper()
	var answer struct {
		Meta []struct{ Name string }
		Data [][]any
	}
	if err := json.Unmarshal([]byte(q.ask(query, url.Values{"default_format": {"JSONCompact"}})), &answer); err != nil {
		q.t.Fatal(err)
	}
	for _, m := range answer.Meta {
		names = append(names, m.Name)
	}
	return names, answer.Data
}
