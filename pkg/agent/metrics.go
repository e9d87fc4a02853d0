package agent

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/metaflowys/metaflow-server/pkg/signal"
)

const (
	namespace = "metaflow"
	subsystem = "agent"
)

// Why a request was not acknowledged.
const (
	reasonDisabled    = "disabled"     // traces are switched off by the group's configuration
	reasonMalformed   = "malformed"    // not OTLP
	reasonServer      = "server"       // the server refused it for good
	reasonSpoolFull   = "spool_full"   // and no server could be reached
	reasonSpoolBroken = "spool_failed" // the disk failed, and no server could be reached
)

// How items reached a server.
const (
	pathLive   = "live"
	pathSpool  = "spool"
	pathParked = "parked"
)

// pipeMetrics follow every item of one signal: received = forwarded live + rejected live + spooled +
// failed, and spooled = forwarded from the spool + parked + what the spool holds. What is parked leaves the folder as
// forwarded by that path, or lost, or by an operator's hand.
type pipeMetrics struct {
	receivedItems, receivedBytes prometheus.Counter
	forwardedItems               *prometheus.CounterVec // by path
	rejectedItems                *prometheus.CounterVec // by path: refused by the server one by one
	spooled, failed              prometheus.Counter
	parked, lost                 prometheus.Counter
	refused                      *prometheus.CounterVec
	lostRequests                 prometheus.Counter
}

func newPipeMetrics(reg prometheus.Registerer, sig *signal.Signal) *pipeMetrics {
	items := sig.Items
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help})
	}
	vector := func(name, help, label string, values ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}, []string{label})
		for _, value := range values {
			v.WithLabelValues(value) // shown as 0 from the start
		}
		return v
	}
	bytes, requests := sig.Prefix+"received_bytes_total", sig.Prefix+"requests_total"
	m := &pipeMetrics{
		receivedItems:  counter("received_"+items+"_total", "What valid requests held: "+items+"."),
		receivedBytes:  counter(bytes, "Bytes of valid requests with "+items+", after decompression."),
		forwardedItems: vector("forwarded_"+items+"_total", "Acknowledged by a server, by the path they took: "+items+".", "path", pathLive, pathSpool, pathParked),
		rejectedItems:  vector("rejected_"+items+"_total", "Rejected one by one (partial success): "+items+".", "path", pathLive, pathSpool, pathParked),
		spooled:        counter("spooled_"+items+"_total", "Put into the spool: "+items+"."),
		failed:         counter("failed_"+items+"_total", "Of valid requests that were not acknowledged; the sender has them still: "+items+"."),
		parked:         counter("parked_"+items+"_total", "Acknowledged from the spool, then not taken by servers, and put into the folder of parked requests: "+items+"."),
		lost:           counter("lost_"+items+"_total", "Acknowledged from the spool, and then removed from the folder of parked requests for their age: "+items+"."),
		refused: vector("refused_"+requests, "Requests with "+items+" that were not acknowledged, by reason.", "reason",
			reasonDisabled, reasonMalformed, reasonServer, reasonSpoolFull, reasonSpoolBroken),
		lostRequests: counter("lost_"+requests, "Requests with "+items+" in the spool that could not be unpacked; they are parked as they are."),
	}
	if reg != nil {
		reg.MustRegister(m.receivedItems, m.receivedBytes, m.forwardedItems, m.rejectedItems, m.spooled, m.failed, m.parked, m.lost, m.refused, m.lostRequests)
	}
	return m
}

func (m *pipeMetrics) received(n, bytes int) {
	m.receivedItems.Add(float64(n))
	m.receivedBytes.Add(float64(bytes))
}

func (m *pipeMetrics) forwarded(path string, n int, rejected int64) {
	m.forwardedItems.WithLabelValues(path).Add(float64(int64(n) - rejected))
	m.rejectedItems.WithLabelValues(path).Add(float64(rejected))
}

func (m *pipeMetrics) refuse(reason string) { m.refused.WithLabelValues(reason).Inc() }

// metrics are of the agent itself.
type metrics struct {
	controlled  prometheus.Gauge
	revision    prometheus.Gauge
	clockOffset prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help})
	}
	m := &metrics{
		controlled:  gauge("control_connected", "1 while the stream of configuration to a server is open."),
		revision:    gauge("configuration_revision", "Revision of the configuration in force; 0 before the first."),
		clockOffset: gauge("clock_offset_seconds", "This host's clock minus the server's, at the last heartbeat."),
	}
	if reg != nil {
		reg.MustRegister(m.controlled, m.revision, m.clockOffset)
	}
	return m
}
