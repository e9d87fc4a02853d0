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
	// LostAfter is how long after its last heartbeat an agent is still taken for
	// alive: six heartbeats.
	LostAfter = time.Minute
	// ClockTolerance is by how much an agent's clock may differ before operators are
	// told. Spans and flows of different hosts are joined with about as much slack.
	ClockTolerance = 500 * time.Millisecond
)

// Condition is how an agent is.
type Condition uint8

// Conditions of agents.
const (
	// Running agents have the configuration of their group in force.
	Running Condition = iota
	// Pending agents have not: their group does not exist, or they did not confirm its
	// last change yet.
	Pending
	// Lost agents have not been heard of for longer than LostAfter.
	Lost
)

// Agent is what is known of one at a moment. Its Status must not be changed.
type Agent struct {
	ID     string
	Status *agentv1.AgentStatus
	// Group is where it belongs, nil when there is no such group.
	Group     *Group
	Condition Condition
	// Seen is when it was heard of last, by a server's clock.
	Seen time.Time
	// ClockOffset is by how much its clock is ahead of the server's.
	ClockOffset time.Duration
	// Exceptions are its own, then what the server has to say of it.
	Exceptions []string
}

// AgentKey returns the key of an agent's records in the topic of resources.
func AgentKey(id string) []byte { return []byte(schema.KeyAgent + id) }

// BindingKey returns the key of the record that says what an agent's id is bound to.
func BindingKey(id string) []byte { return []byte(schema.KeyBinding + id) }

// Observe takes a record of the topic of resources; status is nil for one without a value,
// which says that the agent was deleted. It returns the agent's id; ok is false for
// records that are not about agents or make no sense, which change nothing.
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

// Status returns the last that was observed of an agent, nil when there is none.
func (s *State) Status(id string) *agentv1.AgentStatus { return s.agents[id] }

// Statuses returns the last that was observed of all agents, by id, in no order. They must not be changed.
func (s *State) Statuses() iter.Seq2[string, *agentv1.AgentStatus] { return maps.All(s.agents) }

// AgentCount is how many agents are known, lost ones included.
func (s *State) AgentCount() int { return len(s.agents) }

// ForgetAgents goes back to before the first record about agents.
func (s *State) ForgetAgents() { clear(s.agents) }

// Conditions counts the agents in each condition at a moment.
func (s *State) Conditions(now time.Time) map[Condition]int {
	count := map[Condition]int{}
	for _, status := range s.agents {
		count[s.agent(status, now).Condition]++
	}
	return count
}

// GroupOf returns the group that an agent belongs to which registers so.
func (s *State) GroupOf(r *agentv1.Registration) (Group, bool) {
	return s.groups.find(groupNamed(r))
}

func groupNamed(r *agentv1.Registration) string { return cmp.Or(r.GetGroup(), DefaultGroupID) }

// Agents returns all agents as they are at a moment, by name and then by id.
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

// Find returns the agent with an id, or else those with a name, as they are at a moment.
func (s *State) Find(idOrName string, now time.Time) []Agent {
	if status := s.agents[idOrName]; status != nil {
		return []Agent{s.agent(status, now)}
	}
	return slices.DeleteFunc(s.Agents(now), func(a Agent) bool { return a.Status.Registration.Name != idOrName })
}

// LostSince returns the ids of the agents that have not been heard of since a moment.
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

// Alive says whether the instance that a status is of may still run at a moment: it has a
// stream to some replica, or had when that was last told, and was heard of lately.
func Alive(status *agentv1.AgentStatus, now time.Time) bool {
	return status.GetReplica() != "" && now.Sub(Seen(status)) <= LostAfter
}

// Seen is when an agent was heard of last, by a server's clock.
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
	if d := a.ClockOffset; d.Abs() > ClockTolerance {
		direction := "ahead of"
		if d < 0 {
			direction = "behind"
		}
		a.Exceptions = append(a.Exceptions, fmt.Sprintf("its clock is %s %s the server's", d.Abs().Round(10*time.Millisecond), direction))
	}
	return a
}
