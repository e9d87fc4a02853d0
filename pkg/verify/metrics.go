package verify

import (
	"github.com/prometheus/client_golang/prometheus"
)

// NewCollector returns the metrics of v. Each scrape takes one report, so the counters
// agree with each other.
func NewCollector(v *Verifier) prometheus.Collector { return &collector{v} }

type collector struct{ v *Verifier }

var (
	spansDesc = prometheus.NewDesc("metaflow_verify_spans_total",
		"Spans that the verifier sent, by result: acknowledged, refused or unanswered.", []string{"result"}, nil)
	checkedDesc = prometheus.NewDesc("metaflow_verify_checked_spans_total",
		"Spans by what ClickHouse shows of them: stored, lost (not visible after verify.lost_after, even if they came later), twice, damaged or late.", []string{"result"}, nil)
	waitingDesc = prometheus.NewDesc("metaflow_verify_waiting_spans",
		"Acknowledged spans that ClickHouse has not shown yet.", nil, nil)
	delayDesc = prometheus.NewDesc("metaflow_verify_visible_seconds",
		"Time from the acknowledgement of a span until ClickHouse shows it.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{spansDesc, checkedDesc, waitingDesc, delayDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	r := c.v.Report()
	counter := func(d *prometheus.Desc, n int64, result string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), result)
	}
	counter(spansDesc, r.Acknowledged, "acknowledged")
	counter(spansDesc, r.Refused, "refused")
	counter(spansDesc, r.Unanswered, "unanswered")
	counter(checkedDesc, r.Stored, "stored")
	counter(checkedDesc, r.everLost, "lost")
	counter(checkedDesc, r.Twice, "twice")
	counter(checkedDesc, r.Damaged, "damaged")
	counter(checkedDesc, r.Late, "late")
	out <- prometheus.MustNewConstMetric(waitingDesc, prometheus.GaugeValue, float64(r.Acknowledged-r.Stored-r.Lost))
	var below uint64
	buckets := make(map[float64]uint64, len(bounds))
	for _, b := range r.Delay.Buckets {
		below += uint64(b.Spans)
		if b.UpTo > 0 {
			buckets[b.UpTo.Seconds()] = below
		}
	}
	out <- prometheus.MustNewConstHistogram(delayDesc, below, r.Delay.sum.Seconds(), buckets)
}
