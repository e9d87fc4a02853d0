package gateway

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

const (
	// burst is how much of a rate an idle group may send at once: agents gather for about
	// a second.
	burst = 2 * time.Second
	// longestWait bounds how long an agent is asked to wait.
	longestWait = 30 * time.Second
)

// Quotas bound what agent groups send. The gateways of all signals of a server share
// them. Create them with NewQuotas. They are safe for concurrent use.
//
// A request is accepted while the group owes nothing, whatever its size, and then the
// group owes what the request takes beyond its credit. So the largest request passes, and
// the rate holds over time.
type Quotas struct {
	groups Groups
	now    func() time.Time

	refused *prometheus.CounterVec

	mu     sync.Mutex
	spends map[string]*spending // by group id
}

// Groups knows the agent groups.
type Groups interface {
	// AgentLimits returns the group of an agent and its limits; ok is false if that is not
	// known here. It never blocks.
	AgentLimits(id string) (groupID, groupName string, limits agentconfig.Limits, ok bool)
}

// spending is what a group has left.
type spending struct {
	at           time.Time
	spans, bytes float64 // negative is owed
}

// QuotaError refuses a request of a group that has used up a limit.
type QuotaError struct {
	Group string
	Key   string // of the limit
	After time.Duration
}

func (e *QuotaError) Error() string {
	return fmt.Sprintf("the agent group %q is at its limit %s", e.Group, e.Key)
}

// ExhaustedFor returns how long the client should wait. pkg/rpc and pkg/otlphttp look for
// this method.
func (e *QuotaError) ExhaustedFor() time.Duration { return e.After }

// NewQuotas returns Quotas of groups.
func NewQuotas(groups Groups, reg prometheus.Registerer, now func() time.Time) *Quotas {
	if now == nil {
		now = time.Now
	}
	return &Quotas{
		groups: groups, now: now, spends: make(map[string]*spending),
		refused: promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
			Name: "metaflow_gateway_quota_refused_requests_total",
			Help: "Requests of agents refused because their group was at a limit of its configuration, by group and key.",
		}, []string{"group", "key"}),
	}
}

// bill is where the cost of an admitted request goes. The zero value costs nothing.
type bill struct {
	quotas *Quotas
	group  string
	limits agentconfig.Limits
}

// admit returns an error of class fault.Overload if the group of an agent owes something.
func (q *Quotas) admit(agent string) (bill, error) {
	if q == nil || agent == "" {
		return bill{}, nil
	}
	id, name, limits, ok := q.groups.AgentLimits(agent)
	if !ok || limits == (agentconfig.Limits{}) {
		return bill{}, nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.renewed(id, limits)
	wait, key := owed(s.spans, limits.SpansPerSecond), "outputs.limits.spans_per_second"
	if w := owed(s.bytes, limits.BytesPerSecond); w > wait {
		wait, key = w, "outputs.limits.bytes_per_second"
	}
	if wait > 0 {
		q.refused.WithLabelValues(name, key).Inc()
		return bill{}, fault.As(fault.Overload, &QuotaError{Group: name, Key: key, After: min(wait, longestWait)})
	}
	return bill{q, id, limits}, nil
}

// owed returns how long a debt lasts at a rate.
func owed(balance float64, rate int64) time.Duration {
	if rate == 0 || balance > 0 {
		return 0
	}
	return time.Duration(-balance/float64(rate)*float64(time.Second)) + time.Millisecond
}

// renewed returns the spending of a group with its credit of now. The caller holds mu.
func (q *Quotas) renewed(group string, limits agentconfig.Limits) *spending {
	now := q.now()
	s := q.spends[group]
	if s == nil {
		q.forget(now)
		s = &spending{at: now, spans: full(limits.SpansPerSecond), bytes: full(limits.BytesPerSecond)}
		q.spends[group] = s
	}
	passed := max(0, now.Sub(s.at).Seconds())
	s.at = now
	s.spans = min(full(limits.SpansPerSecond), s.spans+passed*float64(limits.SpansPerSecond))
	s.bytes = min(full(limits.BytesPerSecond), s.bytes+passed*float64(limits.BytesPerSecond))
	return s
}

// forget drops groups that have not sent for long. The caller holds mu.
func (q *Quotas) forget(now time.Time) {
	for id, s := range q.spends {
		if now.Sub(s.at) > time.Hour {
			delete(q.spends, id)
		}
	}
}

func full(rate int64) float64 { return float64(rate) * burst.Seconds() }

// charge adds what an admitted request took.
func (b bill) charge(sig *signal.Signal, items, bytes int) {
	if b.quotas == nil {
		return
	}
	b.quotas.mu.Lock()
	defer b.quotas.mu.Unlock()
	s := b.quotas.renewed(b.group, b.limits)
	if sig.Items == "spans" && b.limits.SpansPerSecond > 0 {
		s.spans -= float64(items)
	}
	if b.limits.BytesPerSecond > 0 {
		s.bytes -= float64(bytes)
	}
}
