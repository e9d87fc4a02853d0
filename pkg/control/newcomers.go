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
	// provenAfter is how long an agent lives that is more than a try.
	provenAfter = 10 * time.Minute
	// passerByAfter is how long one is kept that did not live so long.
	passerByAfter = time.Hour
	// rememberedNewcomers bounds the addresses whose rate is known.
	rememberedNewcomers = 10_000
)

// admitNew decides about an agent whose id is not known yet. An address may bring so many in a minute,
// and those of its agents that are not proven yet may take half of the places that are left: what is
// registered to fill control.max_agents leaves room for others, and is forgotten within the hour. The caller
// holds mu.
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
		return fault.As(fault.Overload, fmt.Errorf("more than %d new agents a minute come from %s (control.new_agents_per_minute)", c.cfg.NewAgentsPerMinute, from))
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
		return fault.As(fault.Overload, fmt.Errorf("%d agents that came from %s lately have half of the places that are left (control.max_agents)", unproven, from))
	}
	return nil
}

// networkOf returns what counts as one peer.
func networkOf(peer string) netip.Prefix {
	at, err := netip.ParseAddrPort(peer)
	if err != nil {
		return netip.Prefix{}
	}
	return inflight.Network(at.Addr())
}

// proven tells whether an agent has been there for long enough. Those of which it is not known when they
// came are from before that was written. The caller holds mu.
func (c *Control) proven(id string, status *agentv1.AgentStatus) bool {
	if c.opts.Guard == nil {
		return true
	}
	joined, ok := c.opts.Guard.Joined(id)
	return !ok || fleet.Seen(status).Sub(joined) >= provenAfter
}

// passersBy returns the ids of agents that went soon after they had come, and did not come back. The caller
// holds mu.
func (c *Control) passersBy() (ids []string) {
	now := c.moment()
	for id, status := range c.state.Statuses() {
		if !c.proven(id, status) && now.Sub(fleet.Seen(status)) >= passerByAfter {
			ids = append(ids, id)
		}
	}
	return ids
}
