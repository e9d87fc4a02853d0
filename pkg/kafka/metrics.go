package kafka

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the metrics of one Client.
type metrics struct {
	producedRecords *prometheus.CounterVec
	producedBytes   *prometheus.CounterVec
	sentBytes       *prometheus.CounterVec
	produceSeconds  *prometheus.HistogramVec
	produceErrors   *prometheus.CounterVec
	throttled       *prometheus.CounterVec
	behind          *prometheus.CounterVec
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

// newMetrics registers the metrics with reg, unless reg is nil.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "metaflow", Subsystem: "kafka", Name: name, Help: help,
		}, labels)
	}
	m := &metrics{
		producedRecords: counter("produced_records_total", "Records that Kafka acknowledged.", "topic"),
		producedBytes:   counter("produced_bytes_total", "Bytes of record values that Kafka acknowledged, before compression.", "topic"),
		sentBytes:       counter("sent_bytes_total", "Compressed bytes of record batches sent to Kafka, including retries.", "topic"),
		produceSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "metaflow", Subsystem: "kafka", Name: "produce_duration_seconds",
			Help: "Time from handing records to the producer until they are acknowledged or given up.",
			// A local broker responds in half a millisecond; 10 s is the default
			// produce_timeout.
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"topic", "outcome"}),
		produceErrors: counter("produce_errors_total", "Batches that Kafka refused or did not answer, by cause; most are retried.", "topic", "cause"),
		failing: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "metaflow", Subsystem: "kafka", Name: "failing_partitions",
			Help: "Partitions whose records Kafka currently does not store, by cause, as shown by /ready; 1 if the cause affects the whole topic.",
		}, []string{"topic", "cause"}),
		layoutChanges: counter("produce_topic_changes_total", "Topic changes noticed by the producer: grown, shrunk or recreated.", "topic", "change"),
		settings: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "metaflow", Subsystem: "kafka", Name: "topic_setting_differs",
			Help: "1 for each topic setting that differs from what servers need; the log shows the needed value.",
		}, []string{"topic", "key"}),
		throttled:      counter("produce_throttled_seconds_total", "Time for which brokers throttled the producer because of a quota.", "topic"),
		behind:         counter("produce_behind_total", "Calls refused because their records would wait for a large part of produce_timeout.", "topic"),
		fetchedRecords: counter("fetched_records_total", "Records read from Kafka.", "topic"),
		fetchedBytes:   counter("fetched_bytes_total", "Compressed bytes of record batches read from Kafka.", "topic"),
		damaged:        counter("damaged_batches_total", "Record batches that arrived damaged and were fetched again.", "topic"),
		commits:        counter("commits_total", "Offsets committed, by outcome.", "group", "outcome"),
		rebalances:     counter("rebalances_total", "Generations of the consumer group that this member took part in.", "group"),
		topicChanges:   counter("topic_changes_total", "Topic changes noticed by this member of the consumer group: created, grown, shrunk, recreated or deleted.", "group", "change"),
		truncated:      counter("truncations_total", "Fetches that found that records read before were lost.", "group"),
		unknownCommits: counter("unknown_commits_total", "Commits without a definite response, after which this member rejoined the consumer group under a new id.", "group"),
		assigned: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "metaflow", Subsystem: "kafka", Name: "assigned_partitions",
			Help: "Partitions assigned to this member of the consumer group.",
		}, []string{"group"}),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.producedRecords, m.producedBytes, m.sentBytes, m.produceSeconds, m.produceErrors, m.throttled, m.behind, m.failing, m.layoutChanges, m.settings,
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

// topicMetrics are the metrics of one Producer.
type topicMetrics struct {
	records, bytes, sent prometheus.Counter
	throttled, behind    prometheus.Counter
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
		behind:       m.behind.WithLabelValues(topic),
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
