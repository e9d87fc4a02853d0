// Package prom reads metrics in tests.
package prom

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Value returns the sum of the series of a metric that have all these label
// values: values of counters and gauges, counts of histograms. It fails the test
// when there is no such series.
func Value(t testing.TB, from prometheus.Gatherer, name string, labelValues ...string) float64 {
	t.Helper()
	families, err := from.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum, found := 0.0, false
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if has(m, labelValues) {
				found = true
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	if !found {
		t.Fatalf("no metric %s with the label values %q", name, labelValues)
	}
	return sum
}

func has(m *dto.Metric, labelValues []string) bool {
	for _, want := range labelValues {
		if !slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetValue() == want }) {
			return false
		}
	}
	return true
}

// Sum returns the sum of a metric's series in Prometheus's text format whose line contains label, which may
// be empty. It is 0 without such a series.
func Sum(metrics, name, label string) (sum float64, err error) {
	for line := range strings.Lines(metrics) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || !strings.HasPrefix(rest, " ") && !strings.HasPrefix(rest, "{") || !strings.Contains(line, label) {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' ')+1:]), 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", strings.TrimSpace(line), err)
		}
		sum += value
	}
	return sum, nil
}
