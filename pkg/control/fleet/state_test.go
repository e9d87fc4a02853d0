package fleet_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

func create(id, name string) *agentv1.Command {
	return &agentv1.Command{
		RequestId: "create " + id + " " + name, TimeUnixNano: 1_700_000_000_000_000_000,
		Change: &agentv1.Command_CreateGroup{CreateGroup: &agentv1.CreateGroup{GroupId: id, Name: name}},
	}
}

func remove(id string) *agentv1.Command {
	return &agentv1.Command{Change: &agentv1.Command_DeleteGroup{DeleteGroup: &agentv1.DeleteGroup{GroupId: id}}}
}

func update(id, yaml string) *agentv1.Command {
	return &agentv1.Command{Change: &agentv1.Command_UpdateConfiguration{
		UpdateConfiguration: &agentv1.UpdateConfiguration{GroupId: id, Yaml: yaml},
	}}
}

func replace(id, yaml string) *agentv1.Command {
	c := update(id, yaml)
	c.GetUpdateConfiguration().Replace = true
	return c
}

func createConfiguration(id, yaml string) *agentv1.Command {
	c := update(id, yaml)
	c.GetUpdateConfiguration().Create = true
	return c
}

// snapshot is everything that operators and agents can see.
func snapshot(s *fleet.State, now time.Time) string {
	var b strings.Builder
	for _, g := range s.Groups() {
		fmt.Fprintf(&b, "%s %q %d %s\n%s", g.ID, g.Name, g.Revision, g.Created.Format(time.RFC3339), g.Document.YAML(""))
	}
	for _, a := range s.Agents(now) {
		fmt.Fprintf(&b, "%s %d %v %q %v\n", a.ID, a.Condition, a.Group, a.Exceptions, a.Seen)
	}
	return b.String()
}

func describe(o fleet.Outcome) string {
	return fmt.Sprintf("%v %v %s %d %v %s", o.Repeated, o.Refused, o.Group.ID, o.Group.Revision, o.Changed, o.Before.YAML(""))
}

const (
	one   = "g-0000000001"
	other = "g-0000000002"
	off   = "inputs: {integration: {enabled: false}}"
	on    = "inputs: {integration: {enabled: true}}"
	port  = "inputs: {integration: {listen_port: 4318}}"
)

func TestCommands(t *testing.T) {
	type step struct {
		command *agentv1.Command
		refused string // part of the text; empty when it is not
		changed bool
	}
	conflict := func(c *agentv1.Command, text string) step { return step{command: c, refused: text} }
	done := func(c *agentv1.Command) step { return step{command: c, changed: true} }
	same := func(c *agentv1.Command) step { return step{command: c} }
	tests := map[string][]step{
		"a name and an id are taken once": {
			done(create(one, "edge")), conflict(create(other, "edge"), `"edge" already exists`),
			conflict(create(one, "more"), "already exists"), done(create(other, "more")),
		},
		"a name is free again":                   {done(create(one, "edge")), done(remove(one)), done(create(other, "edge"))},
		"the default group is there":             {conflict(create(one, "default"), "already exists"), conflict(create(fleet.DefaultGroupID, "x"), "already exists")},
		"the default group stays":                {conflict(remove(fleet.DefaultGroupID), "cannot be deleted")},
		"the default group can be configured":    {done(update(fleet.DefaultGroupID, on))},
		"what is not there":                      {conflict(remove(one), "no agent group"), conflict(update(one, on), "no agent group")},
		"names that are none":                    {conflict(create(one, ""), "needs a name"), conflict(create(one, "a/b"), "letters"), conflict(create(one, ".."), "letters"), conflict(create(one, other), "looks like an id"), conflict(create(one, strings.Repeat("x", 65)), "64 bytes")},
		"names of other scripts":                 {done(create(one, "边缘-1"))},
		"ids that are none":                      {conflict(create("g-1", "x"), "not an id"), conflict(create("g-00000000A1", "x"), "not an id")},
		"setting the same again is no change":    {done(update(fleet.DefaultGroupID, on)), same(update(fleet.DefaultGroupID, on))},
		"a key set to its default is a change":   {done(update(fleet.DefaultGroupID, off)), done(replace(fleet.DefaultGroupID, ""))},
		"create is for those that have none":     {done(createConfiguration(fleet.DefaultGroupID, on)), conflict(createConfiguration(fleet.DefaultGroupID, port), "already")},
		"keys of a newer server are passed by":   {done(update(fleet.DefaultGroupID, "{outputs: {beam: 1}, inputs: {integration: {enabled: true}}}")), same(update(fleet.DefaultGroupID, on))},
		"what is not YAML":                       {conflict(update(fleet.DefaultGroupID, "{"), "")},
		"a command of a newer server":            {conflict(&agentv1.Command{}, "unknown")},
		"a command without what it is to change": {conflict(&agentv1.Command{Change: &agentv1.Command_DeleteGroup{}}, "no agent group")},
	}
	for name, steps := range tests {
		t.Run(name, func(t *testing.T) {
			s := fleet.New()
			for i, st := range steps {
				st.command.RequestId = ""
				preview, before := s.Preview(st.command), snapshot(s, time.Time{})
				if snapshot(s, time.Time{}) != before {
					t.Errorf("step %d: Preview changed the state", i)
				}
				o := s.Apply(int64(i), st.command)
				if describe(preview) != describe(o) {
					t.Errorf("step %d: Preview is %s, Apply %s", i, describe(preview), describe(o))
				}
				refused := o.Refused != nil
				if wanted := !st.changed && (st.refused != "" || name == "what is not YAML"); refused != wanted || o.Changed != st.changed {
					t.Fatalf("step %d: %s", i, describe(o))
				}
				if refused && !strings.Contains(o.Refused.Error(), st.refused) {
					t.Errorf("step %d: %q does not say %q", i, o.Refused, st.refused)
				}
			}
		})
	}
}

func TestMergeAndReplace(t *testing.T) {
	s := fleet.New()
	s.Apply(0, update(fleet.DefaultGroupID, on))
	o := s.Apply(1, update(fleet.DefaultGroupID, port))
	if want := "inputs:\n  integration:\n    enabled: true\n    listen_port: 4318\n"; string(o.Group.Document.YAML("")) != want {
		t.Errorf("merged:\n%s", o.Group.Document.YAML(""))
	}
	if o = s.Apply(2, replace(fleet.DefaultGroupID, port)); string(o.Group.Document.YAML("")) != "inputs:\n  integration:\n    listen_port: 4318\n" {
		t.Errorf("replaced:\n%s", o.Group.Document.YAML(""))
	}
	if group, _ := s.Group("default"); group.Revision != o.Group.Revision || o.Group.Revision != 4 {
		t.Errorf("revision %d, want 4", group.Revision)
	}
}

func TestRequestCountsOnce(t *testing.T) {
	s := fleet.New()
	first := create(one, "edge")
	if o := s.Apply(0, first); o.Repeated || !o.Changed {
		t.Fatal(describe(o))
	}
	s.Apply(1, remove(one))
	if o := s.Apply(2, first); !o.Repeated || o.Changed {
		t.Errorf("a command that was stored twice: %s", describe(o))
	}
	for i := range fleet.RememberedRequests { // refused ones count, too
		s.Apply(int64(3+i), &agentv1.Command{RequestId: fmt.Sprint(i)})
	}
	if o := s.Apply(3+fleet.RememberedRequests, first); o.Repeated {
		t.Errorf("more than %d request ids are remembered", fleet.RememberedRequests)
	}
}

var names = []string{"default", "edge", "core", "db"}

func drawCommand(t *rapid.T, request string) *agentv1.Command {
	ids := rapid.SampledFrom([]string{fleet.DefaultGroupID, one, other, "g-0000000003"})
	texts := rapid.SampledFrom([]string{on, off, port, "", "{", "inputs: {flow: {dump_interval: 20s}}", "unknown: 1"})
	id := ids.Draw(t, "id")
	var c *agentv1.Command
	switch rapid.IntRange(0, 4).Draw(t, "kind") {
	case 0:
		c = create(id, rapid.SampledFrom(names).Draw(t, "name"))
	case 1:
		c = remove(id)
	case 2:
		c = replace(id, texts.Draw(t, "yaml"))
	case 3:
		c = createConfiguration(id, texts.Draw(t, "yaml"))
	default:
		c = update(id, texts.Draw(t, "yaml"))
	}
	c.RequestId = request
	return c
}

// Whatever the log contains, and however often its reading is interrupted and restarted,
// all replicas reach the same state, and repeated commands change nothing.
func TestReplicasAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var log []*agentv1.Command
		for i := range rapid.IntRange(0, 40).Draw(t, "commands") {
			if len(log) > 0 && rapid.IntRange(0, 4).Draw(t, "again") == 0 {
				log = append(log, log[rapid.IntRange(0, len(log)-1).Draw(t, "which")])
				continue
			}
			log = append(log, drawCommand(t, fmt.Sprint(i)))
		}
		straight := fleet.New()
		known := map[string]bool{}
		revisions := map[string]uint64{}
		for i, c := range log {
			before := snapshot(straight, time.Time{})
			o := straight.Apply(int64(i), c)
			changed := snapshot(straight, time.Time{}) != before
			if o.Repeated != known[c.RequestId] || o.Changed != changed || changed && (o.Repeated || o.Refused != nil) {
				t.Fatalf("command %d: %s, but changed is %v and known is %v", i, describe(o), changed, known[c.RequestId])
			}
			known[c.RequestId] = true
			checkInvariants(t, straight, revisions)
		}
		broken := fleet.New()
		for at := 0; at < len(log); {
			at -= rapid.IntRange(0, at).Draw(t, "back")
			for range rapid.IntRange(1, 10).Draw(t, "read") {
				if at < len(log) {
					broken.Apply(int64(at), log[at])
					at++
				}
			}
		}
		if diff := cmp.Diff(snapshot(straight, time.Time{}), snapshot(broken, time.Time{})); diff != "" {
			t.Errorf("reading again made a difference (-once +again):\n%s", diff)
		}
	})
}

func checkInvariants(t *rapid.T, s *fleet.State, revisions map[string]uint64) {
	groups := s.Groups()
	if groups[0].ID != fleet.DefaultGroupID || groups[0].Name != fleet.DefaultGroupName {
		t.Fatalf("the first group is %q", groups[0].Name)
	}
	ids, named := map[string]bool{}, map[string]bool{}
	for _, g := range groups {
		if ids[g.ID] || named[g.Name] {
			t.Fatalf("group %s %q is there twice", g.ID, g.Name)
		}
		ids[g.ID], named[g.Name] = true, true
		if g.Revision < revisions[g.ID] {
			t.Fatalf("the revision of %s went from %d to %d", g.ID, revisions[g.ID], g.Revision)
		}
		revisions[g.ID] = g.Revision
		for _, key := range []string{g.ID, g.Name} {
			if found, ok := s.Group(key); !ok || found.ID != g.ID {
				t.Fatalf("%q finds %v", key, found.ID)
			}
		}
	}
}

// A revision identifies one configuration: agents compare nothing else.
func TestRevisionIdentifiesTheConfiguration(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := fleet.New()
		seen := map[string]string{}
		for i := range rapid.IntRange(0, 40).Draw(t, "commands") {
			s.Apply(int64(i), drawCommand(t, ""))
			for _, g := range s.Groups() {
				key, text := fmt.Sprint(g.ID, g.Revision), string(g.Document.YAML(""))
				if had, ok := seen[key]; ok && had != text {
					t.Fatalf("revision %d of %s is\n%sand\n%s", g.Revision, g.ID, had, text)
				}
				seen[key] = text
			}
		}
	})
}

func TestTooManyGroups(t *testing.T) {
	s := fleet.New()
	for i := range fleet.MaxGroups - 1 {
		if o := s.Apply(int64(i), create(fmt.Sprintf("g-%010d", i), fmt.Sprint("n", i))); o.Refused != nil {
			t.Fatal(o.Refused)
		}
	}
	o := s.Apply(fleet.MaxGroups, create("g-one0000000", "one"))
	var refusal *fleet.Refusal
	if !errors.As(o.Refused, &refusal) || refusal.Reason != fleet.Conflict {
		t.Errorf("one more than the most: %s", describe(o))
	}
}
