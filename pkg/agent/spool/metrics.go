package spool

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	appended prometheus.Counter
	full     prometheus.Counter
	lost     prometheus.Counter
	damaged  prometheus.Counter
	syncs    prometheus.Histogram
}

func newMetrics() *metrics {
	return &metrics{
		appended: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_spool_appended_total",
			Help: "Entries appended to the spool.",
		}),
		full: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_spool_full_total",
			Help: "Entries refused because the spool or the disk was full.",
		}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_spool_lost_entries_total",
			Help: "Entries lost to damage.",
		}),
		damaged: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_spool_damaged_bytes_total",
			Help: "Bytes of the spool that are not readable as entries, including torn tails.",
		}),
		syncs: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "metaflow_spool_fsync_duration_seconds",
			Help:    "Duration of one fsync, which several appends may share.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9), // 0.1 ms to 6.5 s: from memory to a failing disk
		}),
	}
}

func (m *metrics) register(reg prometheus.Registerer, s *Spool) error {
	if reg == nil {
		return nil
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	return errors.Join(
		reg.Register(m.appended), reg.Register(m.full), reg.Register(m.lost), reg.Register(m.damaged), reg.Register(m.syncs),
		reg.Register(gauge("metaflow_spool_bytes", "Bytes of the spool on disk.", func() float64 { return float64(s.Bytes()) })),
		reg.Register(gauge("metaflow_spool_max_bytes", "Bound of the spool's bytes on disk.", func() float64 { return float64(s.maxBytesNow()) })),
		reg.Register(gauge("metaflow_spool_entries", "Entries in the spool that are not done.", func() float64 { return float64(s.Len()) })),
		reg.Register(gauge("metaflow_spool_oldest_age_seconds", "Age of the oldest entry in the spool, 0 if it is empty.", func() float64 {
			if oldest := s.Oldest(); !oldest.IsZero() {
				return time.Since(oldest).Seconds()
			}
			return 0
		})),
	)
}
