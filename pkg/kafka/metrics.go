package kafka

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one Client.
type metrics struct {
	producedRecords *prometheus.CounterVec
	producedBytes   *prometheus.CounterVec
	sentBytes       *prometheus.CounterVec
	produceSeconds  *prometheus.HistogramVec
	produceErrors   *prometheus.CounterVec
	throttled       *prometheus.CounterVec
	failing         *prometheus.GaugeVec
	layoutChanges   *prometheus.CounterVec
	settings        *prometheus.GaugeVec
	fetchedRecords  *prometheus.CounterVec
	fetchedBytes    *prometheus.CounterVec
	damaged         *prometheus.CounterVec
	commits         *prometheus.CounterVec
	rebalances      *prometheus.CounterVec
	assigned        *prometheus.GaugeVec
	topicChanges    *prometheus.CounterVec
	truncated       *prometheus.CounterVec
	unknownCommits  *prometheus.CounterVec
}

// newMetrics registers with reg, or with nothing when reg is nil.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "metaflow", Subsystem: "kafka", Name: name, Help: help,
		}, labels)
	}
	m := &metrics{
		producedRecords: counter("produced_records_total", "Records that Kafka acknowledged.", "topic"),
		producedBytes:   counter("produced_bytes_total", "Bytes of record values that Kafka acknowledged, before compression.", "topic"),
		sentBytes:       counter("sent_bytes_total", "Bytes of record batches sent to Kafka, compressed, those sent again included.", "topic"),
		produceSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "metaflow", Subsystem: "kafka", Name: "produce_duration_seconds",
			Help: "Time from handing records to the producer to their acknowledgement, or to giving up.",
			// A broker on this machine answers in half a millisecond; 10 s is where giving up begins by default.
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"topic", "outcome"}),
		produceErrors: counter("produce_errors_total", "Batches that Kafka refused or that got no answer, by cause; most are sent again.", "topic", "cause"),
		failing: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "metaflow", Subsystem: "kafka", Name: "failing_partitions",
			Help: "Partitions whose records Kafka does not store at the moment, by cause, as /ready says; 1 where the cause is the topic's.",
		}, []string{"topic", "cause"}),
		layoutChanges: counter("produce_topic_changes_total", "Changes of a topic that its producer noticed: grown, shrunk or recreated.", "topic", "change"),
		settings: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "metaflow", Subsystem: "kafka", Name: "topic_setting_differs",
			Help: "1 for each setting of a topic that is not what servers need; the log says what it should be.",
		}, []string{"topic", "key"}),
		throttled:      counter("produce_throttled_seconds_total", "Time for which brokers wanted nothing more, because of a quota.", "topic"),
		fetchedRecords: counter("fetched_records_total", "Records read from Kafka.", "topic"),
		fetchedBytes:   counter("fetched_bytes_total", "Bytes of record batches read from Kafka, compressed.", "topic"),
		damaged:        counter("damaged_batches_total", "Record batches whose bytes were not what the producer sent, each fetched again.", "topic"),
		commits:        counter("commits_total", "Offsets committed, by outcome.", "group", "outcome"),
		rebalances:     counter("rebalances_total", "Generations of the consumer group that this member took part in.", "group"),
		topicChanges:   counter("topic_changes_total", "Changes of its topic that this member of the consumer group noticed: created, grown, shrunk, recreated or deleted.", "group", "change"),
		truncated:      counter("truncations_total", "Fetches that found records lost which were read before.", "group"),
		unknownCommits: counter("unknown_commits_total", "Commits that got no definite answer, so that this member joined the consumer group under a new id.", "group"),
		assigned: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "metaflow", Subsystem: "kafka", Name: "assigned_partitions",
			Help: "Partitions that this member of the consumer group follows.",
		}, []string{"group"}),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.producedRecords, m.producedBytes, m.sentBytes, m.produceSeconds, m.produceErrors, m.throttled, m.failing, m.layoutChanges, m.settings,
		m.fetchedRecords, m.fetchedBytes, m.damaged, m.commits, m.rebalances, m.assigned,
		m.topicChanges, m.truncated, m.unknownCommits,
	} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return m, nil
}

// topicMetrics are those of one Producer, looked up once.
type topicMetrics struct {
	records, bytes, sent prometheus.Counter
	throttled            prometheus.Counter
	acknowledged, failed prometheus.Observer
	errors               *prometheus.CounterVec // by cause
	failing              *prometheus.GaugeVec   // by cause
	changes              *prometheus.CounterVec // by change
}

func (m *metrics) ofTopic(topic string) topicMetrics {
	return topicMetrics{
		records:      m.producedRecords.WithLabelValues(topic),
		bytes:        m.producedBytes.WithLabelValues(topic),
		sent:         m.sentBytes.WithLabelValues(topic),
		acknowledged: m.produceSeconds.WithLabelValues(topic, "acknowledged"),
		failed:       m.produceSeconds.WithLabelValues(topic, "failed"),
		errors:       m.produceErrors.MustCurryWith(prometheus.Labels{"topic": topic}),
		throttled:    m.throttled.WithLabelValues(topic),
		changes:      m.layoutChanges.MustCurryWith(prometheus.Labels{"topic": topic}),
		failing:      m.failing.MustCurryWith(prometheus.Labels{"topic": topic}),
	}
}

// produced counts one call of Produce.
func (m *topicMetrics) produced(batch []Outgoing, took time.Duration, err error) {
	if err != nil {
		m.failed.Observe(took.Seconds())
		return
	}
	bytes := 0
	for i := range batch {
		bytes += len(batch[i].Value)
	}
	m.records.Add(float64(len(batch)))
	m.bytes.Add(float64(bytes))
	m.acknowledged.Observe(took.Seconds())
}

func (m *metrics) fetched(topic string, b *Batch, bytes int) {
	m.fetchedRecords.WithLabelValues(topic).Add(float64(len(b.Records)))
	m.fetchedBytes.WithLabelValues(topic).Add(float64(bytes))
}

func (m *metrics) committed(group string, err error) {
	outcome := "accepted"
	switch {
	case errors.Is(err, ErrCommitUnknown):
		outcome = "unknown"
	case err != nil:
		outcome = "failed"
	}
	m.commits.WithLabelValues(group, outcome).Inc()
}
