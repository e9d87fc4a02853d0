package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// onlyWhenItHappens lists metrics with labels that a program exposes only after
// the first event. TestMetricsAndAlertsExist looks them up in the code.
var onlyWhenItHappens = []string{
	"metaflow_gateway_spans_rejected_total", "metaflow_gateway_flows_rejected_total", "metaflow_clickhouse_insert_errors_total",
	"metaflow_kafka_produce_errors_total", "metaflow_writer_retries_total", "metaflow_gateway_refused_requests_total",
	"metaflow_writer_flows_duplicate_total",
}

// The dashboard of the stages queries only metrics that the programs expose.
func TestStagesQueryExposedMetrics(t *testing.T) {
	text, err := os.ReadFile("../deploy/grafana/dashboards/stages.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil || len(dashboard.Panels) == 0 {
		t.Fatalf("%d panels, %v", len(dashboard.Panels), err)
	}
	s := startStandalone(t, t.TempDir())
	a := startAgent(t, filepath.Join(t.TempDir(), "agent"), s.at.GRPC)
	sendWithSDK(t, s.at.GRPC)
	s.eventually(time.Minute, exactly(open(t, s.at.ClickHouseNative), 2))
	told := ""
	for _, addr := range []string{s.at.HTTP, a.http} {
		_, body, err := get("http://" + addr + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		told += body
	}
	name := regexp.MustCompile(`\b(?:metaflow|process)_[a-z_]+`)
	grouped := regexp.MustCompile(`by \(([a-z, ]+)\)`)
	legend := regexp.MustCompile(`\{\{(\w+)\}\}`)
	for _, p := range dashboard.Panels {
		for _, q := range p.Targets {
			var labels []string
			if m := grouped.FindStringSubmatch(q.Expr); m != nil {
				labels = strings.Split(m[1], ", ")
			}
			for _, m := range legend.FindAllStringSubmatch(q.LegendFormat, -1) {
				if !slices.Contains(labels, m[1]) {
					t.Errorf("%s: the legend %q uses a label that %s drops", p.Title, q.LegendFormat, q.Expr)
				}
			}
			names := name.FindAllString(q.Expr, -1)
			if len(names) == 0 {
				t.Errorf("%s: %s queries no metric", p.Title, q.Expr)
			}
			for _, n := range names {
				if slices.Contains(onlyWhenItHappens, n) {
					continue
				}
				if !regexp.MustCompile(`(?m)^` + n + `[{ ]`).MatchString(told) {
					t.Errorf("%s: no program exposes %s", p.Title, n)
				}
				for _, label := range labels {
					if label != "instance" && !regexp.MustCompile(`(?m)^`+n+`\{[^}]*\b`+label+`="`).MatchString(told) {
						t.Errorf("%s: %s has no label %s", p.Title, n, label)
					}
				}
			}
		}
	}
}
