package clickhouse

import (
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// The metrics of edges say what the views say, and nothing once an edge is gone or the views
// cannot be read.
func TestEdgeMetrics(t *testing.T) {
	cfg := testConfig(t)
	d := openDB(t, cfg)
	if err := d.Migrate(t.Context(), Retention{}); err != nil {
		t.Fatal(err)
	}
	// Whichever minute is the last complete one when the metrics are read.
	for minute := range 6 {
		for _, r := range slices.Concat(calls(3, shopSpan, cartSpan), calls(1, shopSpan.with(failed), cartSpan)) {
			insertRows(t, d, "spans_local", r.with(sqlRow{"start_time": at(time.Duration(minute) * time.Minute)}))
		}
		for _, r := range both(shopEnd, cartEnd, lossy) {
			begin := time.Duration(minute) * time.Minute
			insertRows(t, d, "flows_local", r.with(sqlRow{"start_time": at(begin), "time": at(begin + 50*time.Second)}))
		}
	}
	reg := prometheus.NewRegistry()
	m := NewEdgeMetrics(DefaultEdgesConfig(), d, slog.New(slog.DiscardHandler), reg)
	if err := m.read(t.Context()); err != nil {
		t.Fatal(err)
	}
	edge := []string{"shop", "cart", "", ""}
	got := map[string]float64{
		"requests": testutil.ToFloat64(m.requests.WithLabelValues(edge...)), "errors": testutil.ToFloat64(m.errors.WithLabelValues(edge...)),
		"retransmits": testutil.ToFloat64(m.retransmits.WithLabelValues(edge...)), "segments": testutil.ToFloat64(m.segments.WithLabelValues(edge...)),
		"rtt in us": math.Round(testutil.ToFloat64(m.rtt.WithLabelValues(edge...)) * 1e6), "usual in us": math.Round(testutil.ToFloat64(m.usual.WithLabelValues(edge...)) * 1e6),
		"troubles": float64(testutil.CollectAndCount(m.trouble)),
	}
	want := map[string]float64{"requests": 4, "errors": 1, "retransmits": 12, "segments": 600, "rtt in us": 300, "usual in us": 300, "troubles": 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if harmed := testutil.ToFloat64(m.trouble.WithLabelValues(append([]string{"retransmission"}, edge...)...)); harmed < 1 {
		t.Errorf("%v requests harmed by retransmission", harmed)
	}
	mustExec(t, d, "TRUNCATE TABLE "+cfg.Database+".spans_local")
	mustExec(t, d, "TRUNCATE TABLE "+cfg.Database+".flows_local")
	if err := m.read(t.Context()); err != nil || testutil.CollectAndCount(m.requests)+testutil.CollectAndCount(m.trouble) != 0 {
		t.Errorf("an edge without rows has metrics, %v", err)
	}
	mustExec(t, d, "DROP VIEW "+cfg.Database+".edges")
	if err := m.read(t.Context()); err == nil {
		t.Error("read without the view")
	}
}

func TestEdgesConfig(t *testing.T) {
	if err := DefaultEdgesConfig().Validate(); err != nil {
		t.Error(err)
	}
	err := EdgesConfig{Interval: time.Second, MaxEdges: 0}.Validate()
	if err == nil || !strings.Contains(err.Error(), "interval: 1s is less than 10s") || !strings.Contains(err.Error(), "max_edges: 0 is not between") {
		t.Error(err)
	}
}
