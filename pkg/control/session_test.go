package control_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/control"
	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// in is an agent in one state, for await.
func in(state string) func(api.Agent) bool {
	return func(a api.Agent) bool { return a.State == state }
}

// An agent from its registration to its end, as another replica sees it.
func TestLifeOfAnAgent(t *testing.T) {
	t.Parallel()
	st := newSetting(t)
	st.edit = func(c *control.Config) { c.ForgetAfter = 24 * time.Hour }
	near, far := st.start(t, "near"), st.start(t, "far")
	agent := connect(t, near, registration("one", "i1"))
	first := agent.configuration()
	if first.GroupId != fleet.DefaultGroupID || first.GroupName != "default" || first.Revision != 1 || first.Yaml != "" {
		t.Errorf("the first configuration is %v", first)
	}
	awaitAgent(t, far, "a pending agent", in(api.StatePending))
	agent.beat(&agentv1.Heartbeat{GroupId: first.GroupId, Revision: first.Revision, TimeUnixNano: uint64(st.clock.now().Add(time.Hour).UnixNano())})
	awaitAgent(t, far, "a running agent", in(api.StateRunning))
	seen := must[api.Agent](t)(far.Agent(t.Context(), "node-one"))
	if seen.ID != "one" || seen.Replica != "near" || seen.Peer == "" || seen.Group != "default" || seen.Started.IsZero() ||
		(seen.ClockOffset-time.Hour).Abs() > time.Minute || len(seen.Exceptions) != 1 || !strings.Contains(seen.Exceptions[0], "ahead") {
		t.Errorf("%+v", seen)
	}

	// A change makes the agent pending until it confirms the change.
	update(t, far, "default", "inputs: {integration: {enabled: true}}")
	second := agent.configuration()
	if second.Revision <= first.Revision || !strings.Contains(second.Yaml, "enabled: true") {
		t.Errorf("the second configuration is %v", second)
	}
	awaitAgent(t, far, "a pending agent", in(api.StatePending))
	agent.beat(&agentv1.Heartbeat{GroupId: second.GroupId, Revision: second.Revision, Exceptions: []string{"port 38086 is taken"}})
	awaitAgent(t, far, "its exception", func(a api.Agent) bool {
		return a.State == api.StateRunning && len(a.Exceptions) == 1 && a.Exceptions[0] == "port 38086 is taken"
	})

	// It cannot be deleted while it is connected: it would come back.
	if got := problemOf(far.DeleteAgent(t.Context(), "node-one")); !strings.HasPrefix(got, "conflict: agent one is connected to near and would come back: stop it first") {
		t.Errorf("deleting a connected agent: %q", got)
	}
	agent.beat(&agentv1.Heartbeat{GroupId: second.GroupId, Revision: second.Revision})
	awaitAgent(t, far, "it still", in(api.StateRunning))

	// Its stream ends. A minute later the agent is lost, and a day later forgotten.
	agent.close()
	awaitAgent(t, far, "its end", func(a api.Agent) bool { return a.Replica == "" })
	st.clock.advance(fleet.LostAfter + time.Second)
	awaitRead(t, far)
	awaitAgent(t, far, "a lost agent", in(api.StateLost))
	far.ForgetOnce(t.Context())
	awaitRead(t, near)
	awaitAgent(t, near, "a lost agent", in(api.StateLost))
	st.clock.advance(25 * time.Hour)
	awaitRead(t, far)
	far.ForgetOnce(t.Context())
	await(t, near, "nobody", func(list []api.Agent) bool { return len(list) == 0 })
}

// awaitRead waits until r has read Kafka at its current time: agents are judged as of
// then.
func awaitRead(t *testing.T, r *replica) {
	t.Helper()
	if err := r.AwaitRead(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Unchanged heartbeats are not all written.
func TestUnchangedAgentIsWrittenPeriodically(t *testing.T) {
	t.Parallel()
	st := newSetting(t)
	r := st.start(t, "a")
	agent := connect(t, r, registration("one", "i"))
	c := agent.configuration()
	beat := func() { agent.beat(&agentv1.Heartbeat{GroupId: c.GroupId, Revision: c.Revision}) }
	beat()
	awaitAgent(t, r, "a running agent", in(api.StateRunning))
	seen := must[api.Agent](t)(r.Agent(t.Context(), "one")).Seen
	for range 50 {
		beat()
	}
	if now := must[api.Agent](t)(r.Agent(t.Context(), "one")).Seen; !now.Equal(seen) {
		t.Errorf("written within %v of the last", now.Sub(seen))
	}
	st.clock.advance(9 * time.Second)
	beat()
	awaitAgent(t, r, "the newer heartbeat", func(a api.Agent) bool { return a.Seen.After(seen) })
}

// Agents belong to the group they name, by id or by name. They have no configuration
// while it does not exist.
func TestAgentsOfGroups(t *testing.T) {
	t.Parallel()
	r := newSetting(t).start(t, "a")
	reg := registration("one", "i")
	reg.Group = "edge"
	agent := connect(t, r, reg)
	awaitAgent(t, r, "why it is pending", func(a api.Agent) bool {
		return a.State == api.StatePending && a.Group == "edge" && a.GroupID == "" && len(a.Exceptions) == 1 &&
			a.Exceptions[0] == `there is no agent group "edge"`
	})
	group := must[api.Group](t)(r.CreateGroup(t.Context(), "edge", ""))
	if c := agent.configuration(); c.GroupId != group.ID {
		t.Errorf("configuration %v", c)
	}
	byID := registration("two", "i")
	byID.Group = group.ID
	if c := connect(t, r, byID).configuration(); c.GroupName != "edge" {
		t.Errorf("configuration %v", c)
	}
	if err := r.DeleteGroup(t.Context(), "edge"); err != nil {
		t.Fatal(err)
	}
	again := must[api.Group](t)(r.CreateGroup(t.Context(), "edge", ""))
	if c := agent.configuration(); c.GroupId != again.ID || c.Revision <= group.Revision {
		t.Errorf("configuration %v of %+v", c, again)
	}
}

// Two agents with one id: the later one is refused while the former is alive, wherever
// they are connected.
func TestIDInUse(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]string{"at the same replica": "a", "at another replica": "b"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st := newSetting(t)
			replicas := map[string]*replica{"a": st.start(t, "a"), "b": st.start(t, "b")}
			former := connect(t, replicas["a"], registration("one", "former"))
			former.configuration()
			awaitAgent(t, replicas[other], "the former", in(api.StatePending))

			_, err := connect(t, replicas[other], registration("one", "later")).receive()
			if status.Code(err) != codes.AlreadyExists || !strings.Contains(err.Error(), `"one" is in use by another running agent, "node-one" at 127.0.0.1`) {
				t.Errorf("the later got %v", err)
			}
			former.beat(&agentv1.Heartbeat{})

			// Operators see the conflict at the former agent for as long as it lasts.
			conflict := func() string {
				for _, text := range must[api.Agent](t)(replicas[other].Agent(t.Context(), "one")).Exceptions {
					if strings.Contains(text, `"node-one" at 127.0.0.1`) && strings.Contains(text, "since "+st.clock.now().UTC().Format("2006-01-02T")) {
						return text
					}
				}
				return ""
			}
			if list := must[[]api.Agent](t)(replicas[other].Agents(t.Context())); conflict() == "" || len(list) != 1 || len(list[0].Exceptions) == 0 {
				t.Errorf("the conflict is not shown: %+v", list)
			}

			// The later agent gets the id after the former has been silent for a minute,
			// even if its stream has not ended.
			st.clock.advance(fleet.LostAfter + time.Second)
			connect(t, replicas[other], registration("one", "later")).configuration()
			awaitAgent(t, replicas["a"], "the later", func(a api.Agent) bool { return a.Replica == other })
			st.clock.advance(2 * time.Minute)
			if text := conflict(); text != "" {
				t.Errorf("the conflict is over, but still shown: %s", text)
			}
		})
	}
}

// A restarted agent is admitted at once, wherever it was connected before.
func TestRestartOfAnAgent(t *testing.T) {
	t.Parallel()
	st := newSetting(t)
	near, far := st.start(t, "near"), st.start(t, "far")
	for i, r := range []*replica{near, far, near, near, far} {
		agent := connect(t, r, registration("one", string(rune('a'+i))))
		agent.configuration()
		agent.close() // without waiting until the end is known
	}
}

// A killed server that restarts under its name admits its agents at once, and so does any
// other server when they only lost their connection.
func TestReplicaRestarts(t *testing.T) {
	t.Parallel()
	st := newSetting(t)
	first, other := st.start(t, "first"), st.start(t, "other")
	connect(t, first, registration("one", "i")).configuration()
	connect(t, first, registration("two", "i")).configuration()
	await(t, other, "both agents", func(list []api.Agent) bool { return len(list) == 2 })
	first.kill()
	connect(t, other, registration("one", "i")).configuration()
	connect(t, st.start(t, "first"), registration("two", "restarted")).configuration()
}

// An agent whose connection broke opens another stream before the server notices: the new
// stream takes over, at the same replica and at another one.
func TestSameAgentAgain(t *testing.T) {
	t.Parallel()
	st := newSetting(t)
	near, far := st.start(t, "near"), st.start(t, "far")
	broken := connect(t, near, registration("one", "i"))
	broken.configuration()
	connect(t, near, registration("one", "i")).configuration()
	if _, err := broken.receive(); status.Code(err) != codes.Unavailable {
		t.Errorf("the broken stream got %v", err)
	}
	st.clock.advance(time.Second)
	agent := connect(t, far, registration("one", "i"))
	agent.configuration()
	awaitAgent(t, near, "it at the other replica", func(a api.Agent) bool { return a.Replica == "far" })
	near.stop() // the end of the stream there is older
	agent.beat(&agentv1.Heartbeat{Exceptions: []string{"still there"}})
	awaitAgent(t, far, "it still", func(a api.Agent) bool { return a.Replica == "far" && len(a.Exceptions) == 1 })
}

// Two agents join with one id at two replicas that do not know of each other yet. The
// agent that started first stays, whichever was written first.
func TestIDClaimedTwiceAtOnce(t *testing.T) {
	t.Parallel()
	for name, olderFirst := range map[string]bool{"older written first": true, "younger written first": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st := newSetting(t)
			one, two := st.start(t, "one"), st.start(t, "two")
			older, younger := registration("id", "older"), registration("id", "younger")
			younger.StartTimeUnixNano++
			if !olderFirst {
				older, younger = younger, older // the variables, so that the younger joins first
			}
			two.cut.Store(true) // it does not learn of the first
			a := connect(t, one, older)
			a.configuration()
			awaitAgent(t, one, "the first", func(a api.Agent) bool { return a.Replica == "one" })
			b := connect(t, two, younger)
			b.configuration()
			two.cut.Store(false)

			loser, winner, at := b, a, "one"
			if !olderFirst {
				loser, winner, at = a, b, "two"
			}
			if _, err := loser.receive(); status.Code(err) != codes.AlreadyExists {
				t.Errorf("the one that started later got %v", err)
			}
			winner.beat(&agentv1.Heartbeat{Exceptions: []string{"here"}})
			for _, r := range []*replica{one, two} {
				awaitAgent(t, r, "the one that started first", func(a api.Agent) bool {
					return a.Replica == at && len(a.Exceptions) == 1
				})
			}
		})
	}
}

func TestTooManyAgents(t *testing.T) {
	t.Parallel()
	st := newSetting(t)
	st.edit = func(c *control.Config) { c.MaxAgents = 1 }
	r := st.start(t, "a")
	connect(t, r, registration("one", "i")).configuration()
	if _, err := connect(t, r, registration("two", "i")).receive(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one agent too many: %v", err)
	}
	connect(t, r, registration("one", "i")).configuration()
}

func TestAgentsOfOneName(t *testing.T) {
	t.Parallel()
	r := newSetting(t).start(t, "a")
	var two *agent
	for _, id := range []string{"one", "two"} {
		reg := registration(id, "i")
		reg.Name = "twin"
		two = connect(t, r, reg)
		two.configuration()
	}
	await(t, r, "both", func(list []api.Agent) bool { return len(list) == 2 })
	if got := problemOf(r.DeleteAgent(t.Context(), "twin")); !strings.HasPrefix(got, `conflict: 2 agents are named "twin": give the id`) {
		t.Error(got)
	}
	if got := problemOf(r.DeleteAgent(t.Context(), "two")); !strings.HasPrefix(got, "conflict: agent two is connected") {
		t.Error(got)
	}
	two.close()
	await(t, r, "the end of a stream", func(list []api.Agent) bool {
		return slices.ContainsFunc(list, func(a api.Agent) bool { return a.ID == "two" && a.Replica == "" })
	})
	if err := r.DeleteAgent(t.Context(), "two"); err != nil {
		t.Error(err)
	}
}
