package control

import (
	"fmt"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// conflict is a refused agent whose id belongs to another agent.
type conflict struct {
	name, peer  string
	since, last time.Time
}

// conflictAge is how long a refusal is reported. A refused agent retries within ten
// seconds at each replica in turn, so all of a dozen replicas know of it.
const conflictAge = 2 * time.Minute

// noteConflict records that r was refused and reports whether that is its first refusal
// in conflictAge. The caller holds mu. There is one conflict per id, and each id belongs
// to a known agent, so their number is bounded.
func (c *Control) noteConflict(r *agentv1.Registration, peer string) (first bool) {
	now := c.opts.Now()
	known := c.conflicts[r.AgentId]
	first = known == nil || now.Sub(known.last) > conflictAge
	if first {
		known = &conflict{since: now}
		c.conflicts[r.AgentId] = known
	}
	known.name, known.peer, known.last = r.Name, peer, now
	for id, old := range c.conflicts {
		if now.Sub(old.last) > conflictAge {
			delete(c.conflicts, id)
		}
	}
	return first
}

// addConflicts adds a conflict of an agent's id to the agent's exceptions. The caller
// holds mu.
func (c *Control) addConflicts(agents []fleet.Agent) {
	now := c.opts.Now()
	for i := range agents {
		if k := c.conflicts[agents[i].ID]; k != nil && now.Sub(k.last) <= conflictAge {
			agents[i].Exceptions = append(agents[i].Exceptions, fmt.Sprintf(
				"another agent, %q at %s, has tried to use the same id since %s and is refused: give it its own id",
				k.name, k.peer, k.since.UTC().Format(time.RFC3339)))
		}
	}
}
