package deploytest

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"
)

// story is a test of the alerts: what Prometheus scraped, and the alerts that fire at a
// time, with their labels; no other does.
type story struct {
	Name   string              `json:"name"`
	Series map[string]*string  `json:"series"`
	At     string              `json:"at"`
	Fires  map[string][]string `json:"fires"`
}

// promtool returns the path of Prometheus's tool, or skips the test.
func promtool(t *testing.T) string {
	t.Helper()
	if path, err := exec.LookPath("promtool"); err == nil {
		return path
	}
	path, err := filepath.Abs("../../.cache/promtool/promtool")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skip("promtool is neither on the PATH nor fetched: make promtool")
	}
	return path
}

// Prometheus's own tool evaluates the chart's alerts over stories of pipelines in
// trouble. Every alert has a story in which it fires.
func TestAlertStories(t *testing.T) {
	tool := promtool(t)
	var file struct {
		Healthy map[string]*string `json:"healthy"`
		Stories []story            `json:"stories"`
	}
	if err := yaml.UnmarshalStrict([]byte(read(t, "testdata/alerts/stories.yaml")), &file); err != nil {
		t.Fatal(err)
	}
	var groups []monitoring.RuleGroup
	severities := map[string]string{} // by alert
	each(release{values: "{prometheusRule: {enabled: true}, verify: {enabled: true}}"}.objects(t), func(r *monitoring.PrometheusRule) {
		groups = append(groups, r.Spec.Groups...)
	})
	for _, g := range groups {
		for i, r := range g.Rules {
			severities[r.Alert] = r.Labels["severity"]
			g.Rules[i].Annotations = nil // promtool compares them word by word
		}
	}
	fired := map[string]bool{}
	for _, s := range file.Stories {
		t.Run(s.Name, func(t *testing.T) {
			for alert := range s.Fires {
				fired[alert] = true
			}
			dir := t.TempDir()
			write := func(name string, content any) {
				text, err := yaml.Marshal(content)
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, name), text, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			write("rules.yaml", map[string]any{"groups": groups})
			write("test.yaml", s.test(t, file.Healthy, severities))
			if out, err := exec.CommandContext(t.Context(), tool, "test", "rules", filepath.Join(dir, "test.yaml")).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	for alert := range severities {
		if !fired[alert] {
			t.Errorf("no story lets %s fire", alert)
		}
	}
}

// test returns the story as a test of promtool, which asks for every alert.
func (s story) test(t *testing.T, healthy map[string]*string, severities map[string]string) any {
	t.Helper()
	series := maps.Clone(healthy)
	maps.Copy(series, s.Series)
	var input []any
	for _, name := range slices.Sorted(maps.Keys(series)) {
		if values := series[name]; values != nil {
			inNamespace := strings.Replace(name, "{", `{namespace="observability", `, 1)
			input = append(input, map[string]any{"series": inNamespace, "values": *values})
		}
	}
	var alerts []any
	for _, alert := range slices.Sorted(maps.Keys(severities)) {
		expected := []any{}
		for _, text := range s.Fires[alert] {
			labels := map[string]string{"severity": severities[alert]}
			for _, label := range regexp.MustCompile(`(\w+)="([^"]*)"`).FindAllStringSubmatch(text, -1) {
				labels[label[1]] = label[2]
			}
			expected = append(expected, map[string]any{"exp_labels": labels})
		}
		alerts = append(alerts, map[string]any{"alertname": alert, "eval_time": s.At, "exp_alerts": expected})
	}
	for alert := range s.Fires {
		if severities[alert] == "" {
			t.Errorf("there is no alert %s", alert)
		}
	}
	return map[string]any{
		"rule_files": []string{"rules.yaml"}, "evaluation_interval": "1m",
		"tests": []any{map[string]any{"interval": "1m", "input_series": input, "alert_rule_test": alerts}},
	}
}
