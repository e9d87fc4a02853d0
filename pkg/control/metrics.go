package control

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/schema"
)

type metrics struct {
	commands       *prometheus.CounterVec
	unreadable     *prometheus.CounterVec
	statuses       prometheus.Counter
	statusFailures prometheus.Counter
	fromMemory     prometheus.Counter
	refusedNew     prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, c *Control) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		commands: f.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_control_commands_total",
			Help: "Commands read from the log of changes, by outcome, including those from before the start.",
		}, []string{"outcome"}),
		unreadable: f.NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_control_records_unreadable_total",
			Help: "Malformed records that were skipped, by topic.",
		}, []string{"topic"}),
		statuses: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_control_statuses_written_total",
			Help: "Agent statuses that Kafka has acknowledged.",
		}),
		statusFailures: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_control_status_failures_total",
			Help: "Failed attempts to write agent statuses.",
		}),
		fromMemory: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_control_reads_from_memory_total",
			Help: "Reads served from memory because Kafka was unreachable.",
		}),
		refusedNew: f.NewCounter(prometheus.CounterOpts{
			Name: "metaflow_control_new_agents_refused_total",
			Help: "Registrations of new agents refused because too many came from their address.",
		}),
	}
	for _, outcome := range []string{changedOutcome, sameOutcome, refusedOutcome, repeatedOutcome} {
		m.commands.WithLabelValues(outcome)
	}
	for _, topic := range []string{schema.TopicControl, schema.TopicResources} {
		m.unreadable.WithLabelValues(topic)
	}
	if reg != nil {
		reg.MustRegister(&agentsCollector{c})
	}
	return m
}

// Outcomes of commands, as label values.
const (
	changedOutcome  = "changed"
	sameOutcome     = "no_change"
	refusedOutcome  = "refused"
	repeatedOutcome = "repeated"
)

func (m *metrics) applied(o fleet.Outcome) {
	outcome := sameOutcome
	switch {
	case o.Repeated:
		outcome = repeatedOutcome
	case o.Refused != nil:
		outcome = refusedOutcome
	case o.Changed:
		outcome = changedOutcome
	}
	m.commands.WithLabelValues(outcome).Inc()
}

var agentsDesc = prometheus.NewDesc("metaflow_control_agents", "Known agents, by state; every replica counts all of them.", []string{"state"}, nil)

// agentsCollector counts agents at collection, because their state depends on the time.
type agentsCollector struct{ control *Control }

func (a *agentsCollector) Describe(ch chan<- *prometheus.Desc) { ch <- agentsDesc }

func (a *agentsCollector) Collect(ch chan<- prometheus.Metric) {
	c := a.control
	c.mu.Lock()
	count := c.state.Conditions(c.moment())
	c.mu.Unlock()
	for condition, name := range stateNames {
		ch <- prometheus.MustNewConstMetric(agentsDesc, prometheus.GaugeValue, float64(count[condition]), name)
	}
}

var stateNames = map[fleet.Condition]string{
	fleet.Running: api.StateRunning,
	fleet.Pending: api.StatePending,
	fleet.Lost:    api.StateLost,
}
