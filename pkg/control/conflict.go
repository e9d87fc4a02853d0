package control

import (
	"fmt"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// conflict is an agent that was refused because another one has its id.
type conflict struct {
	name, peer  string
	since, last time.Time
}

// conflictAge is how long a refusal is told after it. A refused agent comes again within ten seconds, to each
// replica in turn, so every replica of a dozen knows of it.
const conflictAge = 2 * time.Minute

// refused notes that r was refused, and tells whether that is the first time for long. The caller holds
// mu. There is one conflict for each id, and the id belongs to an agent that is known, so their number is bounded.
func (c *Control) refused(r *agentv1.Registration, peer string) (first bool) {
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

// tellConflicts adds to the exceptions of agents that others with their ids were refused. The caller holds mu.
func (c *Control) tellConflicts(agents []fleet.Agent) {
	now := c.opts.Now()
	for i := range agents {
		if k := c.conflicts[agents[i].ID]; k != nil && now.Sub(k.last) <= conflictAge {
			agents[i].Exceptions = append(agents[i].Exceptions, fmt.Sprintf(
				"another agent, %q at %s, comes with the same id since %s and is refused: give it an id of its own",
				k.name, k.peer, k.since.UTC().Format(time.RFC3339)))
		}
	}
}
