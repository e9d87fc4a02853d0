package prom

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestValue(t *testing.T) {
	reg := prometheus.NewRegistry()
	counters := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "requests_total"}, []string{"path", "outcome"})
	times := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "seconds"})
	reg.MustRegister(counters, times)
	counters.WithLabelValues("a", "ok").Add(1)
	counters.WithLabelValues("a", "failed").Add(2)
	counters.WithLabelValues("b", "ok").Add(4)
	times.Observe(7)
	times.Observe(8)
	for _, tc := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"requests_total", nil, 7},
		{"requests_total", []string{"a"}, 3},
		{"requests_total", []string{"ok"}, 5},
		{"requests_total", []string{"ok", "b"}, 4},
		{"seconds", nil, 2},
	} {
		if got := Value(t, reg, tc.name, tc.labels...); got != tc.want {
			t.Errorf("%s %q = %v, want %v", tc.name, tc.labels, got, tc.want)
		}
	}
}

func TestSum(t *testing.T) {
	const metrics = `# TYPE requests_total counter
requests_total{path="a b",outcome="ok"} 1
requests_total{path="b",outcome="ok"} 4e+00
requests_total{path="b",outcome="failed"} 0.5
requests_total_of_all 100
plain 8
broken x
last 9`
	for _, tc := range []struct {
		name, label string
		want        float64
	}{
		{"requests_total", "", 5.5},
		{"requests_total", `outcome="ok"`, 5},
		{"requests_total", `path="c"`, 0},
		{"plain", "", 8},
		{"requests", "", 0},
		{"last", "", 9},
	} {
		if got, err := Sum(metrics, tc.name, tc.label); got != tc.want || err != nil {
			t.Errorf("%s with %q = %v, %v; want %v", tc.name, tc.label, got, err, tc.want)
		}
	}
	if got, err := Sum(metrics, "broken", ""); err == nil {
		t.Errorf("broken = %v", got)
	}
	if got, err := Sum("cut", "cut", ""); got != 0 || err != nil {
		t.Errorf("cut = %v, %v", got, err)
	}
}
