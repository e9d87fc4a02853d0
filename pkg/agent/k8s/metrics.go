package k8s

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// Outcomes of reports, as the metric's label has them.
const (
	reported = "reported"
	rejected = "rejected"
	failed   = "failed"
)

type metrics struct {
	reports     *prometheus.CounterVec
	watchErrors *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, w *Watcher) (*metrics, error) {
	m := &metrics{
		reports: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_kubernetes_reports_total",
			Help: "Reports of pods and services sent to servers, by outcome; those that failed are sent again.",
		}, []string{"outcome"}),
		watchErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_kubernetes_watch_errors_total",
			Help: "Errors of listing, watching and holding the lease, by resource; what was seen before stays in force.",
		}, []string{"resource"}),
	}
	for _, outcome := range []string{reported, rejected, failed} {
		m.reports.WithLabelValues(outcome)
	}
	for _, resource := range []string{"pods", "services", "endpointslices", leases} {
		m.watchErrors.WithLabelValues(resource)
	}
	if reg == nil {
		return m, nil
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	return m, errors.Join(
		reg.Register(m.reports), reg.Register(m.watchErrors),
		reg.Register(gauge("metaflow_kubernetes_pods", "Pods of this node that are there.",
			func() float64 { return float64(len(w.pods.GetStore().ListKeys())) })),
		reg.Register(gauge("metaflow_kubernetes_unreported", "Pods and services that changed and were not reported yet.",
			func() float64 {
				w.mu.Lock()
				defer w.mu.Unlock()
				return float64(len(w.news) + len(w.changed))
			})),
		reg.Register(gauge("metaflow_kubernetes_follows_services", "1 while this agent holds the lease and follows the services of its cluster.",
			func() float64 {
				if w.leadingNow() {
					return 1
				}
				return 0
			})),
	)
}
