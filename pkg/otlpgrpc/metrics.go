package otlpgrpc

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/metaflowys/metaflow-server/pkg/inflight"
)

// signalMetrics are of one signal.
type signalMetrics struct {
	requests *prometheus.CounterVec
	refused  *prometheus.CounterVec
	bytes    prometheus.Counter
	duration prometheus.Histogram
}

func newSignalMetrics(reg prometheus.Registerer, signal string) (*signalMetrics, error) {
	m := &signalMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_gateway_requests_total",
			Help: "Export requests answered, by signal and gRPC status code.",
		}, []string{"code"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_gateway_refused_requests_total",
			Help: "Export requests refused because a bound in flight was reached, by signal and bound.",
		}, []string{"bound"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_gateway_received_bytes_total",
			Help: "Bytes of export requests received, after decompression.",
		}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "metaflow_gateway_request_duration_seconds",
			Help:    "Time from the headers of an export request to its answer.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16), // 0.5 ms to 16 s: a loopback acknowledgement to a slow broker
		}),
	}
	for _, code := range []codes.Code{codes.OK, codes.InvalidArgument, codes.ResourceExhausted, codes.Unavailable, codes.Internal} {
		m.requests.WithLabelValues(code.String())
	}
	for _, bound := range []inflight.Refusal{inflight.TooManyBytes, inflight.TooManyRequests} {
		m.refused.WithLabelValues(string(bound))
	}
	if reg == nil {
		return m, nil
	}
	reg = prometheus.WrapRegistererWith(prometheus.Labels{"signal": signal}, reg)
	return m, errors.Join(reg.Register(m.requests), reg.Register(m.refused), reg.Register(m.bytes), reg.Register(m.duration))
}

func (m *signalMetrics) answered(code codes.Code, took time.Duration) {
	m.requests.WithLabelValues(code.String()).Inc()
	m.duration.Observe(took.Seconds())
}

// newMetrics registers what all signals have in common, and returns what is counted of it.
func newMetrics(reg prometheus.Registerer, b *inflight.Budget) (panics prometheus.Counter, err error) {
	panics = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "metaflow_gateway_panics_total",
		Help: "Requests whose handler panicked.",
	})
	if reg == nil {
		return panics, nil
	}
	bytesInFlight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "metaflow_gateway_bytes_in_flight",
		Help: "Bytes of export requests not yet answered, estimates for those not yet read included.",
	}, func() float64 {
		bytes, _ := b.InFlight()
		return float64(bytes)
	})
	requestsInFlight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "metaflow_gateway_requests_in_flight",
		Help: "Export requests not yet answered.",
	}, func() float64 {
		_, requests := b.InFlight()
		return float64(requests)
	})
	return panics, errors.Join(reg.Register(panics), reg.Register(bytesInFlight), reg.Register(requestsInFlight))
}
