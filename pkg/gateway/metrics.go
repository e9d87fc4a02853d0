package gateway

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// metrics counts items, so that received = produced + failed + rejected once
// every request is answered.
type metrics struct {
	signal    *signal.Signal
	accepted  prometheus.Counter
	produced  prometheus.Counter
	failed    prometheus.Counter
	malformed prometheus.Counter
	foreign   prometheus.Counter // of a signal whose requests name their agent
	split     prometheus.Counter
	repaired  prometheus.Counter
	marked    prometheus.Counter
	rejected  *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, sig *signal.Signal) *metrics {
	f := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return f.NewCounter(prometheus.CounterOpts{Name: "metaflow_gateway_" + name, Help: fmt.Sprintf(help, sig.Items)})
	}
	m := &metrics{
		signal:    sig,
		accepted:  counter(sig.Items+"_received_total", "Received %s in well-formed requests, rejected ones included."),
		produced:  counter(sig.Items+"_produced_total", "Such %s that Kafka has acknowledged."),
		failed:    counter(sig.Items+"_failed_total", "Such %s of requests that were answered with an error, for the client to send again."),
		marked:    counter(sig.Items+"_marked_total", "Produced %s that writers look up by their ids, because the topic's partitions had changed a while before."),
		split:     counter(sig.Items+"_records_split_total", "Records with %s that were larger than the topic's max.message.bytes, and were split."),
		repaired:  counter(sig.Items+"_repaired_texts_total", "Texts in requests with %s that were not UTF-8 and got U+FFFD for their bad bytes."),
		malformed: counter(sig.Prefix+"requests_malformed_total", "Requests with %s that are not protobuf."),
		rejected: f.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_gateway_" + sig.Items + "_rejected_total", Help: "Such " + sig.Items + " that were rejected by partial_success, by reason.",
		}, []string{"reason"}),
	}
	if sig.Sender != nil {
		m.foreign = counter(sig.Prefix+"requests_foreign_total", "Requests with %s that were refused because they are not of the agent that they name.")
	}
	return m
}

// received counts the items of a well-formed request.
func (m *metrics) received(accepted int, rejected *signal.Rejected) {
	m.repaired.Add(float64(rejected.RepairedTexts))
	m.accepted.Add(float64(int64(accepted) + rejected.Total()))
	rejected.Each(func(r signal.Reason, n int64) { m.rejected.WithLabelValues(m.signal.Label(r)).Add(float64(n)) })
}
