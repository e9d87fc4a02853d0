package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// Edge is an edge of the view service_network in one minute, with its verdict from
// network_trouble.
type Edge struct {
	ClientService string  `ch:"client_service"`
	ServerService string  `ch:"server_service"`
	ClientAddress string  `ch:"client_address"`
	ServerAddress string  `ch:"server_address"`
	Requests      uint64  `ch:"requests"`
	Errors        uint64  `ch:"errors"`
	Retransmits   uint64  `ch:"retransmits"`
	SegmentsSent  uint64  `ch:"segments_sent"`
	RTTMicros     float64 `ch:"rtt_us"`
	UsualMicros   float64 `ch:"rtt_usual_us"`
}

// Trouble is an edge of the view network_trouble.
type Trouble struct {
	ClientService string `ch:"client_service"`
	ServerService string `ch:"server_service"`
	ClientAddress string `ch:"client_address"`
	ServerAddress string `ch:"server_address"`
	Verdict       string `ch:"verdict"`
	Harmed        uint64 `ch:"harmed"`
}

// Edges returns the edges of the minute before the last, which agents and writers have
// reported completely: at most the given number, the busiest first.
func (d *DB) Edges(ctx context.Context, most int) ([]Edge, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.QueryTimeout)
	defer cancel()
	var edges []Edge
	err := d.conn.Select(ctx, &edges, fmt.Sprintf(`SELECT client_service, server_service, client_address, server_address, requests, errors, retransmits, segments_sent, rtt_us, rtt_usual_us
		FROM %s.service_network WHERE minute = toStartOfMinute(now() - INTERVAL 2 MINUTE)
		ORDER BY requests DESC, segments_sent DESC, client_service, server_service LIMIT %d`, d.cfg.Database, most))
	if err != nil {
		return nil, fmt.Errorf("read service_network: %w", readable(err))
	}
	return edges, nil
}

// Troubles returns the edges in trouble in the last minutes: at most the given number, the
// worst first.
func (d *DB) Troubles(ctx context.Context, minutes, most int) ([]Trouble, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.QueryTimeout)
	defer cancel()
	var troubles []Trouble
	err := d.conn.Select(ctx, &troubles, fmt.Sprintf(`SELECT client_service, server_service, client_address, server_address, verdict, harmed
		FROM %s.network_trouble(minutes = %d) LIMIT %d`, d.cfg.Database, minutes, most))
	if err != nil {
		return nil, fmt.Errorf("read network_trouble: %w", readable(err))
	}
	return troubles, nil
}

// EdgesConfig is what an operator may set about the metrics of edges. Start from
// DefaultEdgesConfig.
type EdgesConfig struct {
	// Enabled: expose metrics of the edges between services; one writer
	// reads them from ClickHouse, as the views service_network and
	// network_trouble.
	Enabled bool `mapstructure:"enabled" doc:"expose metrics of the edges between services; one writer reads them from ClickHouse, as the views service_network and network_trouble"`
	// Interval: how often the metrics of edges are read; each time costs
	// ClickHouse two queries over the last minutes.
	Interval time.Duration `mapstructure:"interval" doc:"how often the metrics of edges are read; each time costs ClickHouse two queries over the last minutes"`
	// MaxEdges: maximum edges with metrics, the busiest ones; each is seven
	// time series.
	MaxEdges int `mapstructure:"max_edges" doc:"maximum edges with metrics, the busiest ones; each is seven time series"`
}

// DefaultEdgesConfig returns a configuration without metrics of edges.
func DefaultEdgesConfig() EdgesConfig {
	return EdgesConfig{Interval: time.Minute, MaxEdges: 500}
}

// Validate reports every problem at once, each by its key.
func (c EdgesConfig) Validate() error {
	var errs []error
	if c.Interval < 10*time.Second {
		errs = append(errs, fmt.Errorf("interval: %s is less than 10s", c.Interval))
	}
	if c.MaxEdges < 1 || c.MaxEdges > 10_000 {
		errs = append(errs, fmt.Errorf("max_edges: %d is not between 1 and 10000", c.MaxEdges))
	}
	return errors.Join(errs...)
}

// troubleMinutes is how long an edge stays in trouble after its last bad minute: flows of a
// minute are complete a minute later, and an alert needs more than one reading.
const troubleMinutes = 5

// EdgeMetrics are gauges of the edges between services. Run them in one replica: all would
// expose the same.
type EdgeMetrics struct {
	cfg  EdgesConfig
	from *DB
	log  *slog.Logger

	requests, errors, retransmits, segments, rtt, usual, trouble *prometheus.GaugeVec
	failures                                                     prometheus.Counter
}

var edgeLabels = []string{"client", "server", "client_address", "server_address"}

// NewEdgeMetrics returns metrics that are registered with reg. It starts nothing.
func NewEdgeMetrics(cfg EdgesConfig, from *DB, log *slog.Logger, reg prometheus.Registerer) *EdgeMetrics {
	f := promauto.With(reg)
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return f.NewGaugeVec(prometheus.GaugeOpts{Namespace: "metaflow", Subsystem: "edge", Name: name, Help: help}, append(labels, edgeLabels...))
	}
	return &EdgeMetrics{
		cfg: cfg, from: from, log: log,
		requests:    gauge("requests", "Requests of an edge in the last complete minute, by spans of its client."),
		errors:      gauge("errors", "Failed requests of an edge in the last complete minute."),
		retransmits: gauge("retransmits", "Segments of an edge that were sent again in the last complete minute."),
		segments:    gauge("segments", "Segments that both ends of an edge sent in the last complete minute."),
		rtt:         gauge("rtt_seconds", "Round trip time of an edge in the last complete minute."),
		usual:       gauge("rtt_usual_seconds", "Usual round trip time of an edge; 0 if it is not known yet."),
		trouble:     gauge("trouble", "Requests that a bad network harmed in the last five minutes, at least 1, of an edge in trouble.", "verdict"),
		failures: f.NewCounter(prometheus.CounterOpts{
			Namespace: "metaflow", Subsystem: "edge", Name: "read_failures_total", Help: "Failed attempts to read the edges from ClickHouse.",
		}),
	}
}

// Run reads the edges until ctx ends.
func (m *EdgeMetrics) Run(ctx context.Context) {
	defer m.reset()
	retry.Every(ctx, m.cfg.Interval, func() {
		if err := m.read(ctx); err != nil && ctx.Err() == nil {
			m.failures.Inc()
			m.reset() // old numbers would look current
			m.log.Warn("cannot read the metrics of edges", slog.Any("error", err))
		}
	})
}

func (m *EdgeMetrics) read(ctx context.Context) error {
	edges, err := m.from.Edges(ctx, m.cfg.MaxEdges)
	if err != nil {
		return err
	}
	troubles, err := m.from.Troubles(ctx, troubleMinutes, m.cfg.MaxEdges)
	if err != nil {
		return err
	}
	m.reset()
	for _, e := range edges {
		at := []string{e.ClientService, e.ServerService, e.ClientAddress, e.ServerAddress}
		m.requests.WithLabelValues(at...).Set(float64(e.Requests))
		m.errors.WithLabelValues(at...).Set(float64(e.Errors))
		m.retransmits.WithLabelValues(at...).Set(float64(e.Retransmits))
		m.segments.WithLabelValues(at...).Set(float64(e.SegmentsSent))
		m.rtt.WithLabelValues(at...).Set(e.RTTMicros / 1e6)
		m.usual.WithLabelValues(at...).Set(e.UsualMicros / 1e6)
	}
	for _, t := range troubles {
		m.trouble.WithLabelValues(t.Verdict, t.ClientService, t.ServerService, t.ClientAddress, t.ServerAddress).Set(float64(max(t.Harmed, 1)))
	}
	return nil
}

func (m *EdgeMetrics) reset() {
	for _, g := range []*prometheus.GaugeVec{m.requests, m.errors, m.retransmits, m.segments, m.rtt, m.usual, m.trouble} {
		g.Reset()
	}
}
