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
