package inventory

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	written    prometheus.Counter
	rejected   prometheus.Counter
	unreadable prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, r *Resources) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		written:    counter("metaflow_resources_written_total", "Records of pods and services that Kafka has acknowledged."),
		rejected:   counter("metaflow_resources_rejected_total", "Pods and services in reports that were rejected for good."),
		unreadable: counter("metaflow_resources_records_unreadable_total", "Malformed records that were skipped."),
	}
	if reg != nil {
		reg.MustRegister(&collector{r})
	}
	return m
}

var objectsDesc = prometheus.NewDesc("metaflow_resources_objects", "Known pods and services, including ended ones; every replica counts all of them.", []string{"kind"}, nil)

// collector counts known objects at collection.
type collector struct{ r *Resources }

func (c *collector) Describe(ch chan<- *prometheus.Desc) { ch <- objectsDesc }

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	c.r.mu.RLock()
	pods, services := c.r.index.Count()
	c.r.mu.RUnlock()
	ch <- prometheus.MustNewConstMetric(objectsDesc, prometheus.GaugeValue, float64(pods), "pod")
	ch <- prometheus.MustNewConstMetric(objectsDesc, prometheus.GaugeValue, float64(services), "service")
}
