package gateway

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/metaflowys/metaflow-server/pkg/otlp"
)

// metrics counts spans so that received = produced + failed + rejected once
// every request is answered.
type metrics struct {
	accepted  prometheus.Counter
	produced  prometheus.Counter
	failed    prometheus.Counter
	malformed prometheus.Counter
	rejected  *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		accepted: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_gateway_spans_received_total", Help: "Spans in well-formed requests, rejected ones included.",
		}),
		produced: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_gateway_spans_produced_total", Help: "Spans that Kafka has acknowledged.",
		}),
		failed: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_gateway_spans_failed_total", Help: "Spans of requests that were answered with an error, for the client to send again.",
		}),
		malformed: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_gateway_requests_malformed_total", Help: "Requests that are not OTLP protobuf.",
		}),
		rejected: f.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_gateway_spans_rejected_total", Help: "Spans rejected by partial_success, by reason.",
		}, []string{"reason"}),
	}
}

func (m *metrics) received(accepted int, rejected *otlp.Rejected) {
	m.accepted.Add(float64(int64(accepted) + rejected.Total()))
	rejected.Each(func(r otlp.Reason, n int64) {
		m.rejected.WithLabelValues(r.String()).Add(float64(n))
	})
}
