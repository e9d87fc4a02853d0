package fleet

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

const (
	// LostAfter is how long after its last heartbeat an agent counts as alive: six
	// heartbeats.
	LostAfter = time.Minute
	// clockTolerance is the clock difference above which operators are warned. The join
	// of spans and flows from different hosts has about as much slack.
	clockTolerance = 500 * time.Millisecond
)

// Condition is the state of an agent.
type Condition uint8

// Conditions of agents.
const (
	// Running agents have applied the configuration of their group.
	Running Condition = iota
	// Pending agents have not: their group does not exist, or they have not confirmed its
	// last change yet.
	Pending
	// Lost agents have sent no heartbeat for longer than LostAfter.
	Lost
)

// Agent is the state of one agent at a given time. Its Status must not be changed.
type Agent struct {
	ID     string
	Status *agentv1.AgentStatus
	// Group is the agent's group, nil if it does not exist.
	Group     *Group
	Condition Condition
	// Seen is the time of the last heartbeat, by a server's clock.
	Seen time.Time
	// ClockOffset is how far the agent's clock is ahead of the server's.
	ClockOffset time.Duration
	// Exceptions are the agent's own, followed by the server's.
	Exceptions []string
}

// AgentKey returns the key of an agent's records in the resources topic.
func AgentKey(id string) []byte { return []byte(schema.KeyAgent + id) }

// BindingKey returns the key of the record with the binding of an agent's id.
func BindingKey(id string) []byte { return []byte(schema.KeyBinding + id) }

// Observe applies a record of the resources topic. status is nil for a record without a
// value, which deletes the agent. Observe returns the agent's id. ok is false for records
// that are not about agents or are malformed; they change nothing.
func (s *State) Observe(key []byte, status *agentv1.AgentStatus) (id string, ok bool) {
	id, ok = strings.CutPrefix(string(key), schema.KeyAgent)
	switch {
	case !ok || id == "":
		return "", false
	case status == nil:
		delete(s.agents, id)
	case status.GetRegistration().GetAgentId() != id:
		return "", false
	default:
		s.agents[id] = status
	}
	return id, true
}

// Status returns the last status of an agent, or nil.
func (s *State) Status(id string) *agentv1.AgentStatus { return s.agents[id] }

// Statuses returns the last status of every agent, by id, in no order. They must not be
// changed.
func (s *State) Statuses() iter.Seq2[string, *agentv1.AgentStatus] { return maps.All(s.agents) }

// AgentCount returns the number of known agents, including lost ones.
func (s *State) AgentCount() int { return len(s.agents) }

// ForgetAgents removes all agents, as before the first record.
func (s *State) ForgetAgents() { clear(s.agents) }

// Conditions counts the agents in each condition at the given time.
func (s *State) Conditions(now time.Time) map[Condition]int {
	count := map[Condition]int{}
	for _, status := range s.agents {
		count[s.agent(status, now).Condition]++
	}
	return count
}

// GroupOf returns the group that an agent with registration r belongs to.
func (s *State) GroupOf(r *agentv1.Registration) (Group, bool) {
	return s.groups.find(groupNamed(r))
}

func groupNamed(r *agentv1.Registration) string { return cmp.Or(r.GetGroup(), DefaultGroupID) }

// Agents returns all agents as of now, by name and then by id.
func (s *State) Agents(now time.Time) []Agent {
	list := make([]Agent, 0, len(s.agents))
	for _, status := range s.agents {
		list = append(list, s.agent(status, now))
	}
	slices.SortFunc(list, func(a, b Agent) int {
		return cmp.Or(strings.Compare(a.Status.Registration.Name, b.Status.Registration.Name), strings.Compare(a.ID, b.ID))
	})
	return list
}

// Find returns the agent with the given id, or else those with the given name, as of now.
func (s *State) Find(idOrName string, now time.Time) []Agent {
	if status := s.agents[idOrName]; status != nil {
		return []Agent{s.agent(status, now)}
	}
	return slices.DeleteFunc(s.Agents(now), func(a Agent) bool { return a.Status.Registration.Name != idOrName })
}

// LostSince returns the ids of the agents without a heartbeat since moment.
func (s *State) LostSince(moment time.Time) []string {
	var ids []string
	for id, status := range s.agents {
		if Seen(status).Before(moment) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Members counts the agents of every group, by its id.
func (s *State) Members() map[string]int {
	count := map[string]int{}
	for _, status := range s.agents {
		if group, ok := s.GroupOf(status.Registration); ok {
			count[group.ID]++
		}
	}
	return count
}

// Alive reports whether the agent instance may still run: at its last report it had a
// stream to some replica, and its last heartbeat is recent.
func Alive(status *agentv1.AgentStatus, now time.Time) bool {
	return status.GetReplica() != "" && now.Sub(Seen(status)) <= LostAfter
}

// Seen returns the time of an agent's last heartbeat, by a server's clock.
func Seen(status *agentv1.AgentStatus) time.Time {
	return time.Unix(0, int64(status.GetSeenTimeUnixNano())).UTC()
}

func (s *State) agent(status *agentv1.AgentStatus, now time.Time) Agent {
	a := Agent{
		ID: status.Registration.AgentId, Status: status, Seen: Seen(status),
		Exceptions: slices.Clone(status.Heartbeat.GetExceptions()),
	}
	beat := status.Heartbeat
	if beat.GetTimeUnixNano() != 0 {
		a.ClockOffset = time.Duration(int64(beat.TimeUnixNano - status.SeenTimeUnixNano))
	}
	a.Condition = Pending
	if group, ok := s.GroupOf(status.Registration); ok {
		a.Group = &group
		if beat.GetGroupId() == group.ID && beat.GetRevision() == group.Revision {
			a.Condition = Running
		}
	} else {
		a.Exceptions = append(a.Exceptions, fmt.Sprintf("there is no agent group %q", groupNamed(status.Registration)))
	}
	if now.Sub(a.Seen) > LostAfter {
		a.Condition = Lost
	}
	if d := a.ClockOffset; d.Abs() > clockTolerance {
		direction := "ahead of"
		if d < 0 {
			direction = "behind"
		}
		a.Exceptions = append(a.Exceptions, fmt.Sprintf("its clock is %s %s the server's", d.Abs().Round(10*time.Millisecond), direction))
	}
	return a
}
