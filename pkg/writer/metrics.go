package writer

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// metrics count items when their batch is committed, so that a batch that is
// read again before that counts once: consumed = inserted + duplicates + diverted. What is
// read again because the offsets were lost counts again, as duplicates by position.
type metrics struct {
	inserted     prometheus.Counter
	duplicates   *prometheus.CounterVec
	diverted     prometheus.Counter
	letters      prometheus.Counter
	truncated    prometheus.Counter
	doubts       *prometheus.CounterVec
	lookedUp     prometheus.Counter
	viewFailures prometheus.Counter

	tokensWithoutRows prometheus.Counter
	lost              prometheus.Counter
	resumed           prometheus.Counter
	retries           *prometheus.CounterVec
	batchRows         prometheus.Histogram
	batchBytes        prometheus.Histogram
	batchPartitions   prometheus.Histogram
	insertSeconds     prometheus.Histogram
	delay             prometheus.Histogram
	behind            *prometheus.GaugeVec
	committed         *prometheus.GaugeVec
}

// newMetrics registers the metrics of one signal; several signals may share a
// registry.
func newMetrics(reg prometheus.Registerer, sig *signal.Signal) *metrics {
	if reg != nil {
		reg = prometheus.WrapRegistererWith(prometheus.Labels{"signal": sig.Name}, reg)
	}
	f := promauto.With(reg)
	m := &metrics{
		inserted: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_writer_" + sig.Items + "_inserted_total", Help: "How many " + sig.Items + " were stored in ClickHouse.",
		}),
		duplicates: f.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_writer_" + sig.Items + "_duplicate_total",
			Help: "How many " + sig.Items + " were dropped because they were there already: by the content of their record, by their ids after a resend, or by a position: found stored when offsets that were lost made the writer read the log again.",
		}, []string{"by"}),
		diverted: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_writer_" + sig.Items + "_diverted_total",
			Help: "How many " + sig.Items + " were handed to the dead-letter topic. Those of a request that cannot be decoded are not known.",
		}),
		letters: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_writer_dead_letters_total",
			Help: "Records handed to the dead-letter topic: what was refused of a record for one reason, or a request that cannot be decoded.",
		}),
		truncated: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_writer_dead_letters_truncated_total", Help: "Dead letters without a value, because Kafka refused it.",
		}),
		doubts: f.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_writer_positions_doubted_total",
			Help: "How often a partition was taken over whose committed offset does not say what is stored: there was none, somebody else committed it, the topic was created anew, or the log lost records. What is in the log is looked up then.",
		}, []string{"why"}),
		lookedUp: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_writer_" + sig.Items + "_looked_up_total",
			Help: "How many " + sig.Items + " were looked up in ClickHouse by their ids before they were inserted, or after it.",
		}),
		viewFailures: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_writer_view_failures_total",
			Help: "Blocks whose rows are stored although their insert failed, so that a view that depends on the table may lack them.",
		}),
		tokensWithoutRows: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_writer_tokens_without_rows_total",
			Help: "Blocks that ClickHouse took for stored although it lacked rows of them; these were inserted again.",
		}),
		lost: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_writer_records_lost_total", Help: "Records that the log no longer had when they were to be read.",
		}),
		resumed: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_writer_ranges_resumed_total", Help: "Planned ranges of an earlier owner that were inserted again.",
		}),
		retries: f.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_writer_retries_total", Help: "Operations that failed and were tried again.",
		}, []string{"operation"}),
		batchRows: f.NewHistogram(prometheus.HistogramOpts{
			Name: "metaflow_writer_batch_rows", Help: "Rows in one INSERT.", Buckets: prometheus.ExponentialBuckets(1, 4, 10),
		}),
		batchBytes: f.NewHistogram(prometheus.HistogramOpts{
			Name: "metaflow_writer_batch_bytes", Help: "Bytes of columns in one INSERT, before compression.", Buckets: prometheus.ExponentialBuckets(1<<10, 4, 10),
		}),
		batchPartitions: f.NewHistogram(prometheus.HistogramOpts{
			Name: "metaflow_writer_batch_partitions", Help: "Partitions whose rows were in one INSERT.", Buckets: prometheus.ExponentialBuckets(1, 2, 11),
		}),
		insertSeconds: f.NewHistogram(prometheus.HistogramOpts{
			Name: "metaflow_writer_insert_seconds", Help: "Duration of a successful INSERT.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}),
		delay: f.NewHistogram(prometheus.HistogramOpts{
			Name: "metaflow_writer_delay_seconds", Help: "From the arrival of a batch's oldest record in Kafka until it can be queried.", Buckets: prometheus.ExponentialBuckets(0.01, 2, 20),
		}),
		behind: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "metaflow_writer_lag_records", Help: "Records in the partition after the committed offset: those that are not known to be stored yet, whether they were read or not.",
		}, []string{"partition", "shard"}),
		committed: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "metaflow_writer_committed_offset", Help: "Offset up to which the partition is stored. If it does not grow while there is a lag, the partition cannot be stored.",
		}, []string{"partition", "shard"}),
	}
	for _, by := range []string{"content", "id", "position"} { // so that both are there from the start
		m.duplicates.WithLabelValues(by)
	}
	return m
}

// stored counts a committed batch.
func (m *metrics) stored(b *batch, n delivery.Stored) {
	m.inserted.Add(float64(n.Rows - n.Refused - n.UnsureFound))
	m.duplicates.WithLabelValues("content").Add(float64(b.duplicates))
	m.duplicates.WithLabelValues("id").Add(float64(b.copies))
	m.duplicates.WithLabelValues("position").Add(float64(n.UnsureFound))
	m.diverted.Add(float64(b.diverted))
	m.letters.Add(float64(len(b.dead) + b.deadMore))
	if !b.received.IsZero() {
		m.delay.Observe(time.Since(b.received).Seconds())
	}
}

// insert counts a successful INSERT.
func (m *metrics) insert(rows, size, partitions int, took time.Duration) {
	m.batchRows.Observe(float64(rows))
	m.batchBytes.Observe(float64(size))
	m.batchPartitions.Observe(float64(partitions))
	m.insertSeconds.Observe(took.Seconds())
}

// position shows how far a partition is stored, and where its log ends.
func (m *metrics) position(partition, shard int, committed, end int64) {
	labels := []string{strconv.Itoa(partition), strconv.Itoa(shard)}
	m.behind.WithLabelValues(labels...).Set(float64(max(end-committed, 0)))
	m.committed.WithLabelValues(labels...).Set(float64(committed))
}

func (m *metrics) forget(partition int) {
	labels := prometheus.Labels{"partition": strconv.Itoa(partition)}
	m.behind.DeletePartialMatch(labels)
	m.committed.DeletePartialMatch(labels)
}
