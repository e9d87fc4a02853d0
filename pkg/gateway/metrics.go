package gateway

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics counts spans, or flows, so that received = produced + failed + rejected once
// every request is answered.
type metrics struct {
	what      string
	accepted  prometheus.Counter
	produced  prometheus.Counter
	failed    prometheus.Counter
	malformed prometheus.Counter
	foreign   prometheus.Counter
	split     prometheus.Counter
	repaired  prometheus.Counter
	marked    prometheus.Counter
	rejected  *prometheus.CounterVec
}

// newMetrics registers the counters of what, which is "spans" or "flows".
func newMetrics(reg prometheus.Registerer, what string) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "metaflow_gateway_" + name, Help: fmt.Sprintf(help, what)})
	}
	m := &metrics{
		what:     what,
		accepted: counter(what+"_received_total", "Received %s in well-formed requests, rejected ones included."),
		produced: counter(what+"_produced_total", "Such %s that Kafka has acknowledged."),
		failed:   counter(what+"_failed_total", "Such %s of requests that were answered with an error, for the client to send again."),
		marked:   counter(what+"_marked_total", "Produced %s that writers look up by their ids, because the topic's partitions had changed a while before."),
		split:    counter(what+"_records_split_total", "Records with %s that were larger than the topic's max.message.bytes, and were split."),
		repaired: counter(what+"_repaired_texts_total", "Texts in requests with %s that were not UTF-8 and got U+FFFD for their bad bytes."),
		rejected: f.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_gateway_" + what + "_rejected_total", Help: "Such " + what + " that were rejected by partial_success, by reason.",
		}, []string{"reason"}),
	}
	if what == "spans" {
		m.malformed = counter("requests_malformed_total", "Requests with %s that are not OTLP protobuf.")
		return m
	}
	m.malformed = counter(what+"_requests_malformed_total", "Requests with %s that are not protobuf.")
	m.foreign = counter(what+"_requests_foreign_total", "Requests with %s that were refused because they are not of the agent that they name.")
	return m
}

// rejection counts what was left out, by reason.
type rejection[R fmt.Stringer] interface {
	Total() int64
	Each(f func(R, int64))
}

func countReceived[R fmt.Stringer](m *metrics, accepted int, rejected rejection[R]) {
	m.accepted.Add(float64(int64(accepted) + rejected.Total()))
	rejected.Each(func(r R, n int64) { m.rejected.WithLabelValues(r.String()).Add(float64(n)) })
}
