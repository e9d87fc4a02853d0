package answers

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/integration/internal/shop"
)

const root = "../.."

var (
	link   = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	anchor = regexp.MustCompile(`[^\w\- ]`)
	metric = regexp.MustCompile(`metaflow_[a-z]+_[a-z_]+`)
	alert  = regexp.MustCompile(`\bMetaFlow[A-Z][a-z]+[A-Za-z]*`)
)

// pages returns the handwritten pages for operators, by their path in the
// repository.
func pages(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(root + "/docs/*.md")
	if err != nil || len(paths) < 7 {
		t.Fatalf("found only %d pages, %v", len(paths), err)
	}
	all := map[string]string{}
	for _, path := range append(paths, root+"/README.md") {
		all[path] = read(t, path)
	}
	return all
}

// Links between the pages resolve.
func TestLinks(t *testing.T) {
	for path, text := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			file, heading, _ := strings.Cut(m[1], "#")
			if strings.Contains(file, "://") {
				continue
			}
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: broken link to %s", path, m[1])
				continue
			}
			if heading != "" && !strings.Contains(headings(read(t, target)), "\n"+heading+"\n") {
				t.Errorf("%s: no heading for %s", path, m[1])
			}
		}
	}
}

// headings returns the anchors of a page, one per line.
func headings(page string) string {
	anchors := "\n"
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, "#") {
			title := strings.ToLower(strings.TrimSpace(strings.TrimLeft(line, "#")))
			anchors += strings.ReplaceAll(anchor.ReplaceAllString(title, ""), " ", "-") + "\n"
		}
	}
	return anchors
}

// Metrics and alerts named on the pages exist.
func TestMetricsAndAlertsExist(t *testing.T) {
	var code strings.Builder
	err := filepath.WalkDir(root+"/pkg", func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			code.WriteString(read(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	rules := read(t, root+"/deploy/helm/metaflow/templates/server/monitoring.yaml")
	texts := pages(t)
	stages := provisioned + "/dashboards/stages.json"
	texts[stages] = regexp.MustCompile(`_(?:bucket|sum|count)\b`).ReplaceAllString(read(t, stages), "")
	for path, text := range texts {
		for _, name := range metric.FindAllString(text, -1) {
			if !exposed(code.String(), name) {
				t.Errorf("%s: no program exposes the metric %s", path, name)
			}
		}
		if filepath.Base(path) != "operate.md" {
			continue
		}
		for _, name := range alert.FindAllString(text, -1) {
			if !strings.Contains(rules, "alert: "+name+"\n") {
				t.Errorf("%s: the chart has no alert %s", path, name)
			}
		}
		for _, line := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(rules, -1) {
			if !strings.Contains(text, line[1]) {
				t.Errorf("%s does not name the alert %s", path, line[1])
			}
		}
	}
}

// exposed reports whether the code contains a metric's name: completely, or
// within its subsystem, with the signal written in or inserted by a variable.
func exposed(code, name string) bool {
	_, rest, _ := strings.Cut(strings.TrimPrefix(name, "metaflow_"), "_")
	pattern := "(?:" + strings.TrimSuffix(name, rest) + ")?" + rest + `"`
	for _, items := range []string{"spans", "flows"} {
		pattern = strings.Replace(pattern, items, `(?:`+items+`|(?:"\s*\+\s*)?[\w.()]+\s*\+\s*")`, 1)
	}
	if after, ok := strings.CutPrefix(rest, "flows_"); ok && strings.Contains(code, `.Prefix+"`+after+`"`) {
		return true // the prefix is the signal's
	}
	return regexp.MustCompile(`(?:"|\b)` + pattern).MatchString(code)
}

// The view that joins the exporter's table with ours.
func TestBothTablesAsOne(t *testing.T) {
	_, block, ok := strings.Cut(read(t, root+"/docs/migrate-from-otel-exporter.md"), "       CREATE VIEW")
	block, _, closed := strings.Cut(block, "\n\n")
	if !ok || !closed {
		t.Fatal("the page contains no view")
	}
	db := open(t)
	db.ask("CREATE DATABASE otel", nil)
	db.ask("CREATE TABLE otel.otel_traces ENGINE = MergeTree ORDER BY Timestamp AS SELECT * FROM metaflow.otel_traces", nil)
	db.ask("CREATE VIEW"+block, nil)
	got := db.ask("SELECT (SELECT (count(), uniqExact(SpanId)) FROM otel.traces) = (SELECT (count(), uniqExact(SpanId)) FROM metaflow.otel_traces)", nil)
	if got != "1\n" {
		t.Errorf("the view of both tables does not contain every span once (hour of %s)", shop.Start)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
