package clickhouse

import (
	"flag"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/migrations"
	"github.com/metaflowys/metaflow-server/pkg/testkit/golden"
)

var update = flag.Bool("update", false, "rewrite docs/columns.md")

// parameters are those of the parameterized views. ClickHouse knows their columns once they
// have values.
var parameters = map[string]string{
	"trace_network":   "(trace_id = '')",
	"network_trouble": "(minutes = 1)",
}

const columnsHead = `# Columns

The columns of the views, as ClickHouse describes them: ` + "`DESCRIBE metaflow.spans`" + ` shows the same. This page is
generated (` + "`go test ./pkg/clickhouse -run TestColumnsPage -update`" + `).

[Query](query.md) has examples, and [query-network](query-network.md) explains verdicts and measures. ` + "`otel_traces` and `otel_traces_trace_id_ts`" + ` have the
columns of the collector's ClickHouse exporter ([migrate](migrate-from-otel-exporter.md)).

` + "`edges`, `call_ends` and `flow_ends`" + ` are parts of other views: the ends of calls and of connections
before they are joined. Their columns change with every version; query ` + "`service_network`, `network_trouble` and `trace_network`" + ` instead.

## Values of attributes

Attributes are maps from text to text. A value of another type becomes text without loss:

| type in OTLP | text | example |
|---|---|---|
| string | as it is | ` + "`GET`" + ` |
| bool | true or false | ` + "`true`" + ` |
| int | decimal | ` + "`200`" + ` |
| double | decimal, the shortest that reads back as the same number; NaN, +Inf, -Inf | ` + "`0.25`" + ` |
| bytes | base64 | ` + "`aGk=`" + ` |
| array, list of keys and values | JSON; strings and bytes in quotes | ` + "`[\"a\",1]`, `{\"k\":true}`" + ` |
| no value | empty | |

Compare numbers with ` + "`toInt64OrZero(attributes['http.response.status_code']) >= 500`" + `, and read lists with
` + "`JSONExtract(attributes['k'], 'Array(String)')`" + `. ` + "`mapContains(attributes, 'k')`" + ` distinguishes an empty value from an absent key.
`

// Every column of a view has a comment, and docs/columns.md lists them all.
func TestColumnsPage(t *testing.T) {
	d := migrated(t, testConfig(t))
	page := columnsHead
	var named []string
	for _, views := range migrations.DescribedViews() {
		named = append(named, views...)
		name := views[0]
		described := "DESCRIBE " + d.cfg.Database + "." + name
		if p, ok := parameters[name]; ok {
			described = "DESCRIBE (SELECT * FROM " + d.cfg.Database + "." + name + p + ")"
		}
		meaning := map[string]string{}
		var left []string
		for _, c := range migrations.Columns(name) {
			meaning[c.Name] = c.Meaning
			left = append(left, c.Name)
		}
		page += "\n## " + strings.Join(views, ", ") + "\n\n| column | type | meaning |\n|---|---|---|\n"
		for line := range strings.Lines(queryText(t, d, described+" SETTINGS print_pretty_type_names = 0")) {
			column := strings.Split(strings.TrimSuffix(line, "\n"), "\t") // name, type, two of the default, comment
			want, ok := meaning[column[0]]
			if !ok {
				t.Errorf("migrations/columns.txt does not describe the column %s of %s", column[0], name)
			}
			if parameters[name] == "" && column[4] != want {
				t.Errorf("the comment of %s in %s is %q, want %q", column[0], name, column[4], want)
			}
			left = slices.DeleteFunc(left, func(c string) bool { return c == column[0] })
			page += "| " + column[0] + " | " + strings.ReplaceAll(column[1], "|", `\|`) + " | " + want + " |\n"
		}
		if len(left) > 0 {
			t.Errorf("migrations/columns.txt describes columns that %s does not have: %s", name, strings.Join(left, ", "))
		}
	}
	for view := range strings.Lines(queryText(t, d, "SELECT name FROM system.tables WHERE database = '"+d.cfg.Database+"' AND engine = 'View' ORDER BY name")) {
		if view = strings.TrimSpace(view); !slices.Contains(named, view) && !strings.Contains(columnsHead, "`"+view+"`") {
			t.Errorf("docs/columns.md does not name the view %s", view)
		}
	}
	path := filepath.Join("..", "..", "docs", "columns.md")
	golden.Check(t, path, page, *update)
}
