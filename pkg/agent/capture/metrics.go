package capture

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	rows, lost, destroyed, overruns, untracked, unclear prometheus.Counter
	connections, namespaces                             prometheus.Gauge
	dumps                                               prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Namespace: "metaflow", Subsystem: "capture", Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Namespace: "metaflow", Subsystem: "capture", Name: name, Help: help})
	}
	return &metrics{
		rows:        counter("rows_total", "Rows of flow data passed on."),
		lost:        counter("lost_rows_total", "Rows of flow data lost before they were passed on."),
		destroyed:   counter("destroyed_sockets_total", "Notifications of destroyed sockets received from the kernel."),
		overruns:    counter("overruns_total", "Times that destroy notifications overran the receive buffer."),
		untracked:   counter("untracked_connections_total", "Times that a living connection did not fit into the connection table."),
		unclear:     counter("unclear_connections_total", "Connections not reported because they may have been counted before."),
		connections: gauge("connections", "Connections in the connection table."),
		namespaces:  gauge("network_namespaces", "Network namespaces found by the last scan."),
		dumps: f.NewHistogram(prometheus.HistogramOpts{
			Namespace: "metaflow", Subsystem: "capture", Name: "dump_duration_seconds",
			Help:    "Time taken to list the sockets of one network namespace.",
			Buckets: []float64{.0003, .001, .003, .01, .03, .1, .3, 1, 3},
		}),
	}
}
