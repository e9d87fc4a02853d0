package rpc

import (
	"errors"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

type streamMetrics struct {
	refused        *prometheus.CounterVec
	heartbeats     prometheus.Counter
	configurations prometheus.Counter
}

func newStreamMetrics(reg prometheus.Registerer, open *atomic.Int64) (*streamMetrics, error) {
	m := &streamMetrics{
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_control_streams_refused_total",
			Help: "Streams of agents that were not let in, by gRPC status code; AlreadyExists is an agent id that another agent uses.",
		}, []string{"code"}),
		heartbeats: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_control_heartbeats_total",
			Help: "Heartbeats received from agents.",
		}),
		configurations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_control_configurations_sent_total",
			Help: "Configurations sent to agents.",
		}),
	}
	for _, code := range []codes.Code{codes.AlreadyExists, codes.InvalidArgument, codes.ResourceExhausted, codes.Unavailable, codes.DeadlineExceeded} {
		m.refused.WithLabelValues(code.String())
	}
	if reg == nil {
		return m, nil
	}
	streams := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "metaflow_control_streams",
		Help: "Streams of agents that are open at this server.",
	}, func() float64 { return float64(open.Load()) })
	return m, errors.Join(reg.Register(m.refused), reg.Register(m.heartbeats), reg.Register(m.configurations), reg.Register(streams))
}
