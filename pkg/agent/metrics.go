package agent

import "github.com/prometheus/client_golang/prometheus"

// Why a request was not acknowledged.
const (
	reasonDisabled    = "disabled"     // traces are switched off by the group's configuration
	reasonMalformed   = "malformed"    // not OTLP
	reasonServer      = "server"       // the server refused it for good
	reasonSpoolFull   = "spool_full"   // and no server could be reached
	reasonSpoolBroken = "spool_failed" // the disk failed, and no server could be reached
)

// How spans reached a server.
const (
	pathLive  = "live"
	pathSpool = "spool"
)

// metrics follow every span: received = forwarded live + spooled + failed, and
// spooled = forwarded from the spool + lost + what the spool holds.
type metrics struct {
	receivedSpans, receivedBytes prometheus.Counter
	forwardedSpans               *prometheus.CounterVec // by path
	rejectedSpans                *prometheus.CounterVec // by path: acknowledged, but refused by the server one by one
	spooledSpans                 prometheus.Counter
	failedSpans                  prometheus.Counter // not acknowledged: the sender still has them
	refusedRequests              *prometheus.CounterVec
	lostSpans, lostRequests      prometheus.Counter
	controlled                   prometheus.Gauge
	revision                     prometheus.Gauge
	clockOffset                  prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	const namespace, subsystem = "metaflow", "agent"
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
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help})
	}
	m := &metrics{
		receivedSpans:  counter("received_spans_total", "Spans of valid requests received from senders."),
		receivedBytes:  counter("received_bytes_total", "Bytes of valid requests received from senders, after decompression."),
		forwardedSpans: vector("forwarded_spans_total", "Spans acknowledged by a server, by the path they took.", "path", pathLive, pathSpool),
		rejectedSpans:  vector("rejected_spans_total", "Spans that a server rejected one by one (partial success).", "path", pathLive, pathSpool),
		spooledSpans:   counter("spooled_spans_total", "Spans put into the spool."),
		failedSpans:    counter("failed_spans_total", "Spans of valid requests that were not acknowledged; the sender has them still."),
		refusedRequests: vector("refused_requests_total", "Requests not acknowledged, by reason.", "reason",
			reasonDisabled, reasonMalformed, reasonServer, reasonSpoolFull, reasonSpoolBroken),
		lostSpans:    counter("lost_spans_total", "Spans that were acknowledged from the spool and that a server then refused for good."),
		lostRequests: counter("lost_requests_total", "Requests of the spool that could not be read again."),
		controlled:   gauge("control_connected", "1 while the stream of configuration to a server is open."),
		revision:     gauge("configuration_revision", "Revision of the configuration in force; 0 before the first."),
		clockOffset:  gauge("clock_offset_seconds", "This host's clock minus the server's, at the last heartbeat."),
	}
	if reg != nil {
		reg.MustRegister(m.receivedSpans, m.receivedBytes, m.forwardedSpans, m.rejectedSpans, m.spooledSpans, m.failedSpans,
			m.refusedRequests, m.lostSpans, m.lostRequests, m.controlled, m.revision, m.clockOffset)
	}
	return m
}

func (m *metrics) received(spans, bytes int) {
	m.receivedSpans.Add(float64(spans))
	m.receivedBytes.Add(float64(bytes))
}

func (m *metrics) forwarded(path string, spans int, rejected int64) {
	m.forwardedSpans.WithLabelValues(path).Add(float64(int64(spans) - rejected))
	m.rejectedSpans.WithLabelValues(path).Add(float64(rejected))
}

func (m *metrics) spooled(spans int)     { m.spooledSpans.Add(float64(spans)) }
func (m *metrics) failed(spans int)      { m.failedSpans.Add(float64(spans)) }
func (m *metrics) lost(spans int)        { m.lostSpans.Add(float64(spans)) }
func (m *metrics) refused(reason string) { m.refusedRequests.WithLabelValues(reason).Inc() }
