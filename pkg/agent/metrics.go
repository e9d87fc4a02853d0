package agent

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/metaflowys/metaflow-server/pkg/signal"
)

const (
	namespace = "metaflow"
	subsystem = "agent"
)

// Reasons for not acknowledging a request.
const (
	reasonDisabled    = "disabled"     // the group's configuration disables traces
	reasonMalformed   = "malformed"    // not OTLP
	reasonServer      = "server"       // the server rejected it permanently
	reasonSpoolFull   = "spool_full"   // the spool is full, and no server could be reached
	reasonSpoolBroken = "spool_failed" // the spool's disk failed, and no server could be reached
)

// Paths of items to a server.
const (
	pathLive   = "live"
	pathSpool  = "spool"
	pathParked = "parked"
)

// pipeMetrics counts every item of one signal: received = forwarded live +
// rejected live + spooled + failed, and spooled = forwarded from the spool +
// parked + in the spool. Parked items leave the folder as forwarded by that
// path, as lost, or removed by an operator.
type pipeMetrics struct {
	receivedItems, receivedBytes prometheus.Counter
	forwardedItems               *prometheus.CounterVec // by path
	rejectedItems                *prometheus.CounterVec // by path: rejected item by item
	spooled, failed              prometheus.Counter
	parked, lost                 prometheus.Counter
	refused                      *prometheus.CounterVec
	lostRequests                 prometheus.Counter
}

func newPipeMetrics(reg prometheus.Registerer, sig *signal.Signal) *pipeMetrics {
	items := sig.Items
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help})
	}
	vector := func(name, help, label string, values ...string) *prometheus.CounterVec {
		v := f.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}, []string{label})
		for _, value := range values {
			v.WithLabelValues(value) // expose 0 from the start
		}
		return v
	}
	bytes, requests := sig.Prefix+"received_bytes_total", sig.Prefix+"requests_total"
	return &pipeMetrics{
		receivedItems:  counter("received_"+items+"_total", "Received in valid requests: "+items+"."),
		receivedBytes:  counter(bytes, "Bytes of valid requests with "+items+", after decompression."),
		forwardedItems: vector("forwarded_"+items+"_total", "Acknowledged by a server, by path: "+items+".", "path", pathLive, pathSpool, pathParked),
		rejectedItems:  vector("rejected_"+items+"_total", "Rejected by a server item by item (partial success), by path: "+items+".", "path", pathLive, pathSpool, pathParked),
		spooled:        counter("spooled_"+items+"_total", "Appended to the spool: "+items+"."),
		failed:         counter("failed_"+items+"_total", "In valid requests that were not acknowledged; the sender still has them: "+items+"."),
		parked:         counter("parked_"+items+"_total", "Acknowledged, then rejected by servers out of the spool and parked: "+items+"."),
		lost:           counter("lost_"+items+"_total", "Acknowledged, then removed from the parked requests because of their age: "+items+"."),
		refused: vector("refused_"+requests, "Requests with "+items+" that were not acknowledged, by reason.", "reason",
			reasonDisabled, reasonMalformed, reasonServer, reasonSpoolFull, reasonSpoolBroken),
		lostRequests: counter("lost_"+requests, "Spooled requests with "+items+" that cannot be unpacked; they are parked unchanged."),
	}
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

// metrics are the metrics of the agent itself.
type metrics struct {
	controlled  prometheus.Gauge
	revision    prometheus.Gauge
	clockOffset prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help})
	}
	return &metrics{
		controlled:  gauge("control_connected", "1 while a control stream to a server is open."),
		revision:    gauge("configuration_revision", "Revision of the current configuration; 0 before the first."),
		clockOffset: gauge("clock_offset_seconds", "This host's clock minus the server's, at the last heartbeat."),
	}
}
