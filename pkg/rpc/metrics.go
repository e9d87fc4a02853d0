package rpc

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
	for _, bound := range inflight.Refusals {
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

// portMetrics are of what all signals and services have in common.
type portMetrics struct {
	panics             prometheus.Counter
	lateBodies         prometheus.Counter
	tinyFrames         prometheus.Counter
	resetFloods        prometheus.Counter
	refusedCalls       *prometheus.CounterVec
	refusedConnections *prometheus.CounterVec
	unauthorized       *prometheus.CounterVec
}

func newPortMetrics(reg prometheus.Registerer, s *Server) (portMetrics, error) {
	m := portMetrics{
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_gateway_panics_total",
			Help: "Requests whose handler panicked.",
		}),
		lateBodies: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_grpc_late_requests_total",
			Help: "Calls ended because their request did not arrive within grpc.body_timeout.",
		}),
		tinyFrames: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_grpc_tiny_frames_total",
			Help: "Connections closed because the client sent a message in too many small frames.",
		}),
		resetFloods: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_grpc_reset_floods_total",
			Help: "Connections closed because the client reset too many calls.",
		}),
		refusedCalls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_grpc_refused_calls_total",
			Help: "Calls other than exports refused because a bound was reached, by bound.",
		}, []string{"bound"}),
		refusedConnections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_grpc_refused_connections_total",
			Help: "Connections closed when they were accepted because a bound was reached, by bound.",
		}, []string{"bound"}),
	}
	m.unauthorized = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "metaflow_grpc_unauthorized_calls_total",
		Help: "Calls refused because the caller may not speak for the agent that it names, by gRPC status code.",
	}, []string{"code"})
	for _, code := range []codes.Code{codes.Unauthenticated, codes.PermissionDenied} {
		m.unauthorized.WithLabelValues(code.String())
	}
	for _, bound := range inflight.Refusals {
		m.refusedCalls.WithLabelValues(string(bound))
	}
	for _, bound := range []string{boundConnections, boundPeerConnections} {
		m.refusedConnections.WithLabelValues(bound)
	}
	if reg == nil {
		return m, nil
	}
	bytesInFlight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "metaflow_gateway_bytes_in_flight",
		Help: "Bytes of export requests not yet answered: those still arriving by the length they announce, estimates for the others not yet read included.",
	}, func() float64 {
		bytes, _ := s.budget.InFlight()
		return float64(bytes)
	})
	requestsInFlight := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "metaflow_gateway_requests_in_flight",
		Help: "Export requests not yet answered.",
	}, func() float64 {
		_, requests := s.budget.InFlight()
		return float64(requests)
	})
	connections := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "metaflow_grpc_connections",
		Help: "Connections to the gRPC port.",
	}, func() float64 { return float64(s.listener.connections()) })
	return m, errors.Join(reg.Register(m.panics), reg.Register(m.lateBodies), reg.Register(m.tinyFrames), reg.Register(m.resetFloods),
		reg.Register(m.refusedCalls), reg.Register(m.refusedConnections), reg.Register(m.unauthorized),
		reg.Register(bytesInFlight), reg.Register(requestsInFlight), reg.Register(connections))
}
