package control

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/inflight"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const (
	// provenAfter is the lifetime after which an agent counts as permanent.
	provenAfter = 10 * time.Minute
	// shortLivedAfter is how long an agent is remembered that did not live for
	// provenAfter.
	shortLivedAfter = time.Hour
	// rememberedNewcomers bounds the addresses with a rate limiter.
	rememberedNewcomers = 10_000
)

// admitNew decides whether to admit an agent with an unknown id. The registrations per
// minute from one address are limited, and the address's agents that have not lived for
// provenAfter may take half of the free places: a client that tries to fill
// control.max_agents leaves room for others, and its agents are forgotten within the
// hour. The caller holds mu.
func (c *Control) admitNew(peer string) error {
	from := networkOf(peer)
	now := c.opts.Now()
	limiter := c.newcomers[from]
	if limiter == nil {
		if len(c.newcomers) >= rememberedNewcomers {
			clear(c.newcomers)
		}
		perMinute := c.cfg.NewAgentsPerMinute
		limiter = rate.NewLimiter(rate.Limit(float64(perMinute)/60), perMinute)
		c.newcomers[from] = limiter
	}
	if !limiter.AllowN(now, 1) {
		c.metrics.refusedNew.Inc()
		return fault.As(fault.Overload, fmt.Errorf("more than %d new agents per minute from %s (control.new_agents_per_minute)", c.cfg.NewAgentsPerMinute, from))
	}
	unproven := 0
	for id, status := range c.state.Statuses() {
		if networkOf(status.Peer) == from && !c.proven(id, status) {
			unproven++
		}
	}
	for id, s := range c.sessions {
		if c.state.Status(id) == nil && networkOf(s.peer) == from {
			unproven++
		}
	}
	if free := c.cfg.MaxAgents - max(c.state.AgentCount(), len(c.sessions)); unproven > 0 && unproven >= free {
		c.metrics.refusedNew.Inc()
		return fault.As(fault.Overload, fmt.Errorf("%d recent agents from %s already take half of the free places (control.max_agents)", unproven, from))
	}
	return nil
}

// networkOf returns the network that counts as one peer.
func networkOf(peer string) netip.Prefix {
	at, err := netip.ParseAddrPort(peer)
	if err != nil {
		return netip.Prefix{}
	}
	return inflight.Network(at.Addr())
}

// proven reports whether an agent has lived for provenAfter. An agent whose first
// admission is unknown registered before servers recorded it, and counts as proven. The
// caller holds mu.
func (c *Control) proven(id string, status *agentv1.AgentStatus) bool {
	if c.opts.Guard == nil {
		return true
	}
	joined, ok := c.opts.Guard.Joined(id)
	return !ok || fleet.Seen(status).Sub(joined) >= provenAfter
}

// shortLived returns the ids of agents that left soon after they registered and did not
// come back. The caller holds mu.
func (c *Control) shortLived() (ids []string) {
	now := c.moment()
	for id, status := range c.state.Statuses() {
		if !c.proven(id, status) && now.Sub(fleet.Seen(status)) >= shortLivedAfter {
			ids = append(ids, id)
		}
	}
	return ids
}
