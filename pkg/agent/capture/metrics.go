package capture

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	rows, lost, destroyed, overruns, untracked, unclear prometheus.Counter
	connections, namespaces                             prometheus.Gauge

	dnsQuestions, dnsAnswers, dnsUnmatched, dnsUntracked prometheus.Counter
	dnsDropped, dnsMalformed, dnsForwarded               prometheus.Counter
	dnsNames, dnsSpaces, trackedSpaces, addresses        prometheus.Gauge
	translations, translationsUntracked, trackedOverruns prometheus.Counter

	dumps prometheus.Histogram
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

		dnsQuestions:          counter("dns_questions_total", "DNS questions seen, repeated ones included."),
		dnsAnswers:            counter("dns_answers_total", "DNS answers matched with their question."),
		dnsUnmatched:          counter("dns_unmatched_answers_total", "DNS answers without a question, and those to another device's copy of one."),
		dnsUntracked:          counter("dns_untracked_total", "DNS questions that did not fit into memory, and exchanges reported without their name."),
		dnsDropped:            counter("dns_dropped_packets_total", "DNS packets that the kernel dropped because the agent's buffer was full."),
		dnsMalformed:          counter("dns_malformed_packets_total", "Packets of port 53 that are not DNS."),
		dnsForwarded:          counter("dns_forwarded_packets_total", "DNS packets that a network namespace forwarded for others."),
		dnsNames:              gauge("dns_names", "Addresses with the name that they were resolved from."),
		dnsSpaces:             gauge("dns_network_namespaces", "Network namespaces whose DNS packets are observed."),
		trackedSpaces:         gauge("conntrack_network_namespaces", "Network namespaces whose connection tracking is read."),
		addresses:             gauge("addresses", "Addresses of the network namespaces, without loopback and link-local ones."),
		translations:          counter("translated_connections_total", "Translated connections that connection tracking reported."),
		translationsUntracked: counter("untracked_translations_total", "Translated connections that did not fit into memory."),
		trackedOverruns:       counter("conntrack_overruns_total", "Times that reports of connection tracking overran the receive buffer."),
		dumps: f.NewHistogram(prometheus.HistogramOpts{
			Namespace: "metaflow", Subsystem: "capture", Name: "dump_duration_seconds",
			Help:    "Time taken to list the sockets of one network namespace.",
			Buckets: []float64{.0003, .001, .003, .01, .03, .1, .3, 1, 3},
		}),
	}
}
