package otlpgrpc

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/metaflowys/metaflow-server/pkg/inflight"
)

type metrics struct {
	requests *prometheus.CounterVec
	refused  *prometheus.CounterVec
	bytes    prometheus.Counter
	duration prometheus.Histogram
	panics   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, b *inflight.Budget) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_gateway_requests_total",
			Help: "OTLP export requests answered, by gRPC status code.",
		}, []string{"code"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_gateway_refused_requests_total",
			Help: "OTLP export requests refused because a bound in flight was reached, by bound.",
		}, []string{"bound"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_gateway_received_bytes_total",
			Help: "Bytes of OTLP export requests received, after decompression.",
		}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "metaflow_gateway_request_duration_seconds",
			Help:    "Time from the headers of an OTLP export request to its answer.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16), // 0.5 ms to 16 s: a loopback acknowledgement to a slow broker
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_gateway_panics_total",
			Help: "Requests whose handler panicked.",
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
	bytesInFlight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "metaflow_gateway_bytes_in_flight",
		Help: "Bytes of OTLP export requests not yet answered, estimates for those not yet read included.",
	}, func() float64 {
		bytes, _ := b.InFlight()
		return float64(bytes)
	})
	requestsInFlight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "metaflow_gateway_requests_in_flight",
		Help: "OTLP export requests not yet answered.",
	}, func() float64 {
		_, requests := b.InFlight()
		return float64(requests)
	})
	return m, errors.Join(
		reg.Register(m.requests), reg.Register(m.refused), reg.Register(m.bytes), reg.Register(m.duration), reg.Register(m.panics),
		reg.Register(bytesInFlight), reg.Register(requestsInFlight),
	)
}

func (m *metrics) answered(code codes.Code, took time.Duration) {
	m.requests.WithLabelValues(code.String()).Inc()
	m.duration.Observe(took.Seconds())
}
