package clickhouse

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/metaflowys/metaflow-server/pkg/fault"
)

// metrics are the insert metrics, by table.
type metrics struct {
	seconds  *prometheus.HistogramVec
	rows     *prometheus.CounterVec
	failures *prometheus.CounterVec
}

// newMetrics registers the metrics with reg, unless reg is nil.
func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	return &metrics{
		seconds: f.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "metaflow", Subsystem: "clickhouse", Name: "insert_duration_seconds",
			Help: "Time of one insert, from encoding to ClickHouse's response.",
			// An insert of a full batch takes some 100 ms; 60 s is the default
			// query_timeout.
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"table", "outcome"}),
		rows: f.NewCounterVec(prometheus.CounterOpts{
			Namespace: "metaflow", Subsystem: "clickhouse", Name: "inserted_rows_total",
			Help: "Rows that ClickHouse acknowledged, including those it had already stored.",
		}, []string{"table"}),
		failures: f.NewCounterVec(prometheus.CounterOpts{
			Namespace: "metaflow", Subsystem: "clickhouse", Name: "insert_errors_total",
			Help: "Failed inserts, by fault class and by ClickHouse's name of the error.",
		}, []string{"table", "class", "code"}),
	}
}

func (m *metrics) observe(table string, rows int, took time.Duration, err error) {
	outcome := "stored"
	if err != nil {
		class := fault.ClassOf(err)
		outcome = class.String()
		m.failures.WithLabelValues(table, class.String(), codeLabel(err)).Inc()
	} else {
		m.rows.WithLabelValues(table).Add(float64(rows))
	}
	m.seconds.WithLabelValues(table, outcome).Observe(took.Seconds())
}
