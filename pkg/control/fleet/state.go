package fleet

import (
	"errors"
	"fmt"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// RememberedRequests is how many request ids a State remembers. Kafka stores a command
// twice only within the seconds of one attempt, and operators do not send this many
// commands in that time.
const RememberedRequests = 4096

// Outcome is the effect of a command.
type Outcome struct {
	// Repeated means that the command was applied before and did nothing now.
	Repeated bool
	// Refused is the refusal, or nil.
	Refused *Refusal
	// Group is the command's group: as it is now, or as it was when deleted.
	Group Group
	// Before is the group's previous configuration.
	Before agentconfig.Document
	// Changed means that a group was created or deleted, or its configuration sets other
	// keys, even if that makes no difference to agents.
	Changed bool
}

// Reason classifies a Refusal.
type Reason uint8

// Reasons of refusals.
const (
	// Malformed commands are never accepted.
	Malformed Reason = iota
	// NotFound means that the group does not exist.
	NotFound
	// Conflict means that the group already exists or may not be changed in this way.
	Conflict
)

// Refusal is the reason why a command was refused, in text for operators.
type Refusal struct {
	Reason Reason
	Text   string
}

func (r *Refusal) Error() string { return r.Text }

func refuse(reason Reason, format string, args ...any) Outcome {
	return Outcome{Refused: &Refusal{reason, fmt.Sprintf(format, args...)}}
}

// State is the fold over both logs. Create it with New.
type State struct {
	groups   groups
	next     int64 // offset of the next command
	requests requests
	agents   map[string]*agentv1.AgentStatus
}

// New returns the state before the first record.
func New() *State {
	return &State{groups: newGroups(), requests: newRequests(RememberedRequests), agents: map[string]*agentv1.AgentStatus{}}
}

// Apply applies the command at an offset of the command log. It skips offsets that it has
// already applied.
func (s *State) Apply(offset int64, c *agentv1.Command) Outcome {
	if offset < s.next {
		return Outcome{Repeated: true}
	}
	s.next = offset + 1
	if c.RequestId != "" && !s.requests.add(c.RequestId) {
		return Outcome{Repeated: true}
	}
	o := s.try(c, revisionAt(offset))
	if !o.Changed {
		return o
	}
	if c.GetDeleteGroup() != nil {
		s.groups.remove(o.Group)
	} else {
		s.groups.put(o.Group)
	}
	return o
}

// Preview returns what Apply would return if c came next. It changes nothing.
func (s *State) Preview(c *agentv1.Command) Outcome { return s.try(c, revisionAt(s.next)) }

func (s *State) try(c *agentv1.Command, revision uint64) Outcome {
	switch change := c.GetChange().(type) {
	case *agentv1.Command_CreateGroup:
		return s.create(change.CreateGroup, time.Unix(0, int64(c.TimeUnixNano)).UTC(), revision)
	case *agentv1.Command_DeleteGroup:
		return s.remove(change.DeleteGroup)
	case *agentv1.Command_UpdateConfiguration:
		return s.update(change.UpdateConfiguration, revision)
	default: // from a newer server
		return refuse(Malformed, "unknown command")
	}
}

func (s *State) create(c *agentv1.CreateGroup, at time.Time, revision uint64) Outcome {
	if err := errors.Join(checkName(c.GetName()), CheckID(c.GetGroupId())); err != nil {
		return refuse(Malformed, "%v", err)
	}
	if have, ok := s.groups.find(c.Name); ok {
		return refuse(Conflict, "an agent group named %q already exists, with the id %s", have.Name, have.ID)
	}
	if have, ok := s.groups.find(c.GroupId); ok {
		return refuse(Conflict, "an agent group with the id %s already exists, named %q", have.ID, have.Name)
	}
	if len(s.groups.byID) >= MaxGroups {
		return refuse(Conflict, "there are already %d agent groups, which is the limit", MaxGroups)
	}
	return Outcome{Changed: true, Group: Group{ID: c.GroupId, Name: c.Name, Created: at, Revision: revision}}
}

func (s *State) remove(c *agentv1.DeleteGroup) Outcome {
	group, ok := s.groups.byID[c.GetGroupId()]
	switch {
	case !ok:
		return refuse(NotFound, "there is no agent group with the id %q", c.GetGroupId())
	case group.ID == DefaultGroupID:
		return refuse(Conflict, "the agent group %q cannot be deleted: agents that name no group belong to it", group.Name)
	}
	return Outcome{Changed: true, Group: group, Before: group.Document}
}

func (s *State) update(c *agentv1.UpdateConfiguration, revision uint64) Outcome {
	group, ok := s.groups.byID[c.GetGroupId()]
	if !ok {
		return refuse(NotFound, "there is no agent group with the id %q", c.GetGroupId())
	}
	before := group.Document
	if c.Create && !before.Empty() {
		return refuse(Conflict, "the agent group %q already has a configuration; update it", group.Name)
	}
	// Lenient, because a newer server may have accepted keys that this one does not know.
	after, _, err := agentconfig.ParseLenient([]byte(c.Yaml))
	if err != nil {
		return refuse(Malformed, "%v", err)
	}
	if !c.Replace {
		after = before.Merge(after)
	}
	if before.Equal(after) {
		return Outcome{Group: group, Before: before}
	}
	group.Document, group.Revision = after, revision
	return Outcome{Changed: true, Group: group, Before: before}
}

// ForgetCommands returns to the state before the first command, when the log was
// replaced.
func (s *State) ForgetCommands() {
	s.groups, s.next, s.requests = newGroups(), 0, newRequests(RememberedRequests)
}

// Group returns the group with the given id, or else the one with the given name.
func (s *State) Group(idOrName string) (Group, bool) { return s.groups.find(idOrName) }

// Groups returns all groups by name, the default group first.
func (s *State) Groups() []Group { return s.groups.all() }

// requests remembers the last ids added to it.
type requests struct {
	known map[string]struct{}
	order []string // a ring
	at    int
}

func newRequests(n int) requests {
	return requests{known: make(map[string]struct{}), order: make([]string, n)}
}

// add reports whether id is new.
func (r *requests) add(id string) bool {
	if _, ok := r.known[id]; ok {
		return false
	}
	delete(r.known, r.order[r.at])
	r.known[id] = struct{}{}
	r.order[r.at] = id
	r.at = (r.at + 1) % len(r.order)
	return true
}
