package otlphttp

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics are the metrics of one port, across the Servers that serve it: a port that
// closes and reopens keeps its counts. Create them with NewMetrics.
type Metrics struct {
	requests *prometheus.CounterVec
	refused  *prometheus.CounterVec
	unread   *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	duration prometheus.Histogram
	panics   prometheus.Counter
	evicted  *prometheus.CounterVec

	current atomic.Pointer[Server] // nil while the port is closed
}

// NewMetrics creates the metrics and registers them with reg, unless reg is nil. It
// panics if they are already registered.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	m := &Metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_otlphttp_requests_total",
			Help: "OTLP/HTTP requests answered, by status code.",
		}, []string{"code"}),
		refused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_otlphttp_refused_requests_total",
			Help: "OTLP/HTTP requests refused before they reached the consumer, by reason.",
		}, []string{"reason"}),
		unread: f.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_otlphttp_json_left_out_total",
			Help: "Spans rejected and resource and scope values omitted from JSON requests because a value could not be read.",
		}, []string{"what"}),
		bytes: f.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_otlphttp_received_bytes_total",
			Help: "Bytes of completely received OTLP/HTTP request bodies, on the wire and after decompression.",
		}, []string{"form"}),
		duration: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "metaflow_otlphttp_request_duration_seconds",
			Help:    "Time from the headers of an OTLP/HTTP request to its response.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16), // 0.5 ms to 16 s, as for the gateway
		}),
		panics: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_otlphttp_panics_total",
			Help: "Requests whose handler panicked.",
		}),
		evicted: f.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_otlphttp_evicted_connections_total",
			Help: "Idle connections closed because there were too many, in total or from one address, by exceeded bound.",
		}, []string{"bound"}),
	}
	for _, code := range []int{200, 204, 400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 503} {
		m.requests.WithLabelValues(strconv.Itoa(code))
	}
	for _, why := range reasons {
		m.refused.WithLabelValues(string(why))
	}
	for _, what := range []string{"spans", "values"} {
		m.unread.WithLabelValues(what)
	}
	for _, bound := range []string{boundConnections, boundPeerConnections} {
		m.evicted.WithLabelValues(bound)
	}
	for _, form := range []string{formWire, formPlain} {
		m.bytes.WithLabelValues(form)
	}
	gauge := func(name, help string, of func(*Server) int64) {
		f.NewGaugeFunc(prometheus.GaugeOpts{Name: "metaflow_otlphttp_" + name, Help: help}, func() float64 {
			if s := m.current.Load(); s != nil {
				return float64(of(s))
			}
			return 0
		})
	}
	gauge("bytes_in_flight", "Bytes of OTLP/HTTP requests not yet answered, including estimates for unread bodies.",
		func(s *Server) int64 { n, _ := s.budget.InFlight(); return n })
	gauge("requests_in_flight", "OTLP/HTTP requests not yet answered.",
		func(s *Server) int64 { _, n := s.budget.InFlight(); return int64(n) })
	gauge("connections", "Open connections, including idle ones.",
		func(s *Server) int64 { return int64(s.connections.count()) })
	return m
}

// Label values for byte counts.
const (
	formWire  = "wire"
	formPlain = "decompressed"
)

func (m *Metrics) answered(r *reply, took time.Duration) {
	m.requests.WithLabelValues(strconv.Itoa(r.status)).Inc()
	m.duration.Observe(took.Seconds())
	if r.reason != "" {
		m.refused.WithLabelValues(string(r.reason)).Inc()
	}
}
