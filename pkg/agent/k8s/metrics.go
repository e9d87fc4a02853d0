package k8s

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Values of the metric's label outcome.
const (
	reported = "reported"
	rejected = "rejected"
	failed   = "failed"
)

type metrics struct {
	reports     *prometheus.CounterVec
	watchErrors *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, w *Watcher) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		reports: f.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_kubernetes_reports_total",
			Help: "Reports of pods and services sent to servers, by outcome; failed ones are retried.",
		}, []string{"outcome"}),
		watchErrors: f.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_kubernetes_watch_errors_total",
			Help: "Errors while listing, watching or holding the lease, by resource; the last known state stays valid.",
		}, []string{"resource"}),
	}
	for _, outcome := range []string{reported, rejected, failed} {
		m.reports.WithLabelValues(outcome)
	}
	for _, resource := range []string{"pods", "services", "endpointslices", leases} {
		m.watchErrors.WithLabelValues(resource)
	}
	gauge := func(name, help string, of func() float64) {
		f.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, of)
	}
	gauge("metaflow_kubernetes_pods", "Pods that exist on this node.",
		func() float64 { return float64(len(w.pods.GetStore().ListKeys())) })
	gauge("metaflow_kubernetes_unreported", "Changed pods and services that were not reported yet.",
		func() float64 {
			w.mu.Lock()
			defer w.mu.Unlock()
			return float64(len(w.news) + len(w.changed))
		})
	gauge("metaflow_kubernetes_follows_services", "1 while this agent holds the lease and watches the services of its cluster.",
		func() float64 {
			if w.leadingNow() {
				return 1
			}
			return 0
		})
	return m
}
