package capture

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	rows, lost, words, overruns, untracked, unclear prometheus.Counter
	connections, namespaces                         prometheus.Gauge
	dumps                                           prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "metaflow", Subsystem: "capture", Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "metaflow", Subsystem: "capture", Name: name, Help: help})
	}
	m := &metrics{
		rows:        counter("rows_total", "Rows of flow data that were handed over."),
		lost:        counter("lost_rows_total", "Rows of flow data that nobody took."),
		words:       counter("destroyed_sockets_total", "Sockets that the kernel said it destroyed."),
		overruns:    counter("overruns_total", "Times that the kernel's notifications of destroyed sockets overran the receive buffer."),
		untracked:   counter("untracked_connections_total", "Times that a living connection did not fit into the table."),
		unclear:     counter("unclear_connections_total", "Connections left out because they might have been counted before."),
		connections: gauge("connections", "Connections that are remembered."),
		namespaces:  gauge("network_namespaces", "Network namespaces that are known."),
		dumps: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "metaflow", Subsystem: "capture", Name: "dump_duration_seconds",
			Help:    "Time that listing the sockets of one network namespace took.",
			Buckets: []float64{.0003, .001, .003, .01, .03, .1, .3, 1, 3},
		}),
	}
	if reg != nil {
		reg.MustRegister(m.rows, m.lost, m.words, m.overruns, m.untracked, m.unclear, m.connections, m.namespaces, m.dumps)
	}
	return m
}
