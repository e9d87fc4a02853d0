package spool

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	appended prometheus.Counter
	full     prometheus.Counter
	lost     prometheus.Counter
	damaged  prometheus.Counter
	syncs    prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer, s *Spool) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		appended: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_spool_appended_total",
			Help: "Entries appended to the spool.",
		}),
		full: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_spool_full_total",
			Help: "Entries refused because the spool or the disk was full.",
		}),
		lost: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_spool_lost_entries_total",
			Help: "Entries lost to damage.",
		}),
		damaged: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_spool_damaged_bytes_total",
			Help: "Bytes of the spool that are not readable as entries, including torn tails.",
		}),
		syncs: f.NewHistogram(prometheus.HistogramOpts{
			Name:    "metaflow_spool_fsync_duration_seconds",
			Help:    "Duration of one fsync, which several appends may share.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9), // 0.1 ms to 6.5 s: from memory to a failing disk
		}),
	}
	gauge := func(name, help string, of func() float64) {
		f.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, of)
	}
	gauge("metaflow_spool_bytes", "Bytes of the spool on disk.", func() float64 { return float64(s.Bytes()) })
	gauge("metaflow_spool_max_bytes", "Bound of the spool's bytes on disk.", func() float64 { return float64(s.maxBytesNow()) })
	gauge("metaflow_spool_entries", "Entries in the spool that are not done.", func() float64 { return float64(s.Len()) })
	gauge("metaflow_spool_oldest_age_seconds", "Age of the oldest entry in the spool, 0 if it is empty.", func() float64 {
		if oldest := s.Oldest(); !oldest.IsZero() {
			return time.Since(oldest).Seconds()
		}
		return 0
	})
	return m
}
