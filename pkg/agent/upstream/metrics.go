package upstream

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

type metrics struct {
	requests     *prometheus.CounterVec
	bytes        prometheus.Counter
	duration     prometheus.Histogram
	addresses    prometheus.Gauge
	lookupErrors prometheus.Counter
}

// codeNotReady is the code label of requests for which no server was connected.
const codeNotReady = "NotReady"

func newMetrics(reg prometheus.Registerer, c *Client) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_upstream_requests_total",
			Help: "Requests with spans or flows sent to servers, by gRPC status code of the reply; NotReady if no server was connected.",
		}, []string{"code"}),
		bytes: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_upstream_sent_bytes_total",
			Help: "Bytes of requests that servers accepted, before compression.",
		}),
		duration: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "metaflow_upstream_request_duration_seconds",
			Help:    "Time from sending a request to its reply.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16), // 0.5 ms to 16 s, like the server's
		}),
		addresses: f.NewGauge(prometheus.GaugeOpts{
			Name: "metaflow_upstream_addresses",
			Help: "Known server addresses, reachable or not.",
		}),
		lookupErrors: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_upstream_lookup_errors_total",
			Help: "Failed lookups of server names.",
		}),
	}
	for _, code := range []codes.Code{codes.OK, codes.InvalidArgument, codes.ResourceExhausted, codes.Unavailable, codes.DeadlineExceeded} {
		m.requests.WithLabelValues(code.String())
	}
	m.requests.WithLabelValues(codeNotReady)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "metaflow_upstream_ready",
		Help: "1 while a connection to some server is up.",
	}, func() float64 {
		if c.Ready() {
			return 1
		}
		return 0
	})
	return m
}

func (m *metrics) exported(err error, size int, took time.Duration) {
	if errors.Is(err, errNotReady) {
		m.requests.WithLabelValues(codeNotReady).Inc()
		return
	}
	m.requests.WithLabelValues(status.Code(err).String()).Inc()
	m.duration.Observe(took.Seconds())
	if err == nil {
		m.bytes.Add(float64(size))
	}
}
