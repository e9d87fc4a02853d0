package fleet

import (
	"errors"
	"fmt"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// RememberedRequests is how many request ids are remembered. A command that Kafka stores
// twice is stored twice within the seconds of one attempt, and nobody gives this many in
// them.
const RememberedRequests = 4096

// Outcome is what a command did.
type Outcome struct {
	// Repeated says that the command was applied before: it did nothing now.
	Repeated bool
	// Refused is why it did nothing; nil when it was not refused.
	Refused *Refusal
	// Group is the one that it was about: as it is now, or as it was when deleted.
	Group Group
	// Before is the configuration that the group had.
	Before agentconfig.Document
	// Changed says that there is a difference, for operators if not for agents: a group
	// was made or deleted, or its configuration sets other keys.
	Changed bool
}

// Reason is what kind of refusal a Refusal is.
type Reason uint8

// Reasons of refusals.
const (
	// Malformed commands will never be accepted.
	Malformed Reason = iota
	// NotFound is about a group that does not exist.
	NotFound
	// Conflict is about a group that exists or may not be changed so.
	Conflict
)

// Refusal is why a command was refused, in words for operators.
type Refusal struct {
	Reason Reason
	Text   string
}

func (r *Refusal) Error() string { return r.Text }

func refuse(reason Reason, format string, args ...any) Outcome {
	return Outcome{Refused: &Refusal{reason, fmt.Sprintf(format, args...)}}
}

// State is the fold over the logs. Make it with New.
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

// Apply takes the command at an offset of the log of commands. Offsets that were applied
// are passed over.
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

// Preview returns what Apply would, if c came next, and changes nothing.
func (s *State) Preview(c *agentv1.Command) Outcome { return s.try(c, revisionAt(s.next)) }

func (s *State) try(c *agentv1.Command, revision uint64) Outcome {
	switch change := c.GetChange().(type) {
	case *agentv1.Command_CreateGroup:
		return s.create(change.CreateGroup, time.Unix(0, int64(c.TimeUnixNano)).UTC(), revision)
	case *agentv1.Command_DeleteGroup:
		return s.remove(change.DeleteGroup)
	case *agentv1.Command_UpdateConfiguration:
		return s.update(change.UpdateConfiguration, revision)
	default: // of a newer server
		return refuse(Malformed, "the command is unknown")
	}
}

func (s *State) create(c *agentv1.CreateGroup, at time.Time, revision uint64) Outcome {
	if err := errors.Join(CheckName(c.GetName()), CheckID(c.GetGroupId())); err != nil {
		return refuse(Malformed, "%v", err)
	}
	if have, ok := s.groups.find(c.Name); ok {
		return refuse(Conflict, "an agent group named %q exists already, with the id %s", have.Name, have.ID)
	}
	if have, ok := s.groups.find(c.GroupId); ok {
		return refuse(Conflict, "an agent group with the id %s exists already, named %q", have.ID, have.Name)
	}
	if len(s.groups.byID) >= MaxGroups {
		return refuse(Conflict, "there are %d agent groups already, no more are possible", MaxGroups)
	}
	return Outcome{Changed: true, Group: Group{ID: c.GroupId, Name: c.Name, Created: at, Revision: revision}}
}

func (s *State) remove(c *agentv1.DeleteGroup) Outcome {
	group, ok := s.groups.byID[c.GetGroupId()]
	switch {
	case !ok:
		return refuse(NotFound, "there is no agent group with the id %q", c.GetGroupId())
	case group.ID == DefaultGroupID:
		return refuse(Conflict, "the agent group %q cannot be deleted: it is where agents belong that name no group", group.Name)
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
		return refuse(Conflict, "the agent group %q has a configuration already; update it", group.Name)
	}
	// What a newer server accepted must not be lost altogether.
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

// ForgetCommands goes back to before the first command, for a log that is not the one that
// was read.
func (s *State) ForgetCommands() {
	s.groups, s.next, s.requests = newGroups(), 0, newRequests(RememberedRequests)
}

// Group returns the group with an id or else a name.
func (s *State) Group(idOrName string) (Group, bool) { return s.groups.find(idOrName) }

// Groups returns all groups by name, the default group first.
func (s *State) Groups() []Group { return s.groups.all() }

// requests remembers the last of the ids that it was given.
type requests struct {
	known map[string]struct{}
	order []string // a ring
	at    int
}

func newRequests(n int) requests {
	return requests{known: make(map[string]struct{}), order: make([]string, n)}
}

// add is false when id is remembered already.
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
