package fleet_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

var start = time.Unix(1_700_000_000, 0).UTC()

func status(id, group string, beat *agentv1.Heartbeat) *agentv1.AgentStatus {
	return &agentv1.AgentStatus{
		Registration: &agentv1.Registration{AgentId: id, InstanceId: "i-" + id, Name: "node-" + id, Group: group},
		Heartbeat:    beat, SeenTimeUnixNano: uint64(start.UnixNano()), Replica: "server-0:20035",
	}
}

func beat(group string, revision uint64, ahead time.Duration, exceptions ...string) *agentv1.Heartbeat {
	return &agentv1.Heartbeat{
		TimeUnixNano: uint64(start.Add(ahead).UnixNano()), GroupId: group, Revision: revision, Exceptions: exceptions,
	}
}

func TestAgentConditions(t *testing.T) {
	s := fleet.New()
	s.Apply(0, create(one, "edge"))
	tests := map[string]struct {
		status     *agentv1.AgentStatus
		after      time.Duration
		condition  fleet.Condition
		exceptions []string
	}{
		"has its configuration":       {status("a", "", beat(fleet.DefaultGroupID, 1, 0)), 0, fleet.Running, nil},
		"group by name":               {status("a", "edge", beat(one, 2, 0)), 0, fleet.Running, nil},
		"group by id":                 {status("a", one, beat(one, 2, 0)), 0, fleet.Running, nil},
		"has just registered":         {status("a", "", nil), 0, fleet.Pending, nil},
		"has an older configuration":  {status("a", "edge", beat(one, 1, 0)), 0, fleet.Pending, nil},
		"has that of another group":   {status("a", "edge", beat(fleet.DefaultGroupID, 2, 0)), 0, fleet.Pending, nil},
		"its group does not exist":    {status("a", "moon", beat(one, 2, 0)), 0, fleet.Pending, []string{`there is no agent group "moon"`}},
		"heard of a minute ago":       {status("a", "", beat(fleet.DefaultGroupID, 1, 0)), fleet.LostAfter, fleet.Running, nil},
		"not heard of for longer":     {status("a", "", beat(fleet.DefaultGroupID, 1, 0)), fleet.LostAfter + 1, fleet.Lost, nil},
		"clock a little off":          {status("a", "", beat(fleet.DefaultGroupID, 1, 500*time.Millisecond)), 0, fleet.Running, nil},
		"clock ahead":                 {status("a", "", beat(fleet.DefaultGroupID, 1, 2300*time.Millisecond)), 0, fleet.Running, []string{"its clock is 2.3s ahead of the server's"}},
		"clock behind, and something": {status("a", "", beat(fleet.DefaultGroupID, 1, -time.Hour, "port taken")), 0, fleet.Running, []string{"port taken", "its clock is 1h0m0s behind the server's"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if id, ok := s.Observe(fleet.AgentKey("a"), tc.status); id != "a" || !ok {
				t.Fatalf("Observe = %q, %v", id, ok)
			}
			agents := s.Agents(start.Add(tc.after))
			if len(agents) != 1 || agents[0].Condition != tc.condition {
				t.Fatalf("agents: %+v", agents)
			}
			if diff := cmp.Diff(tc.exceptions, agents[0].Exceptions); diff != "" {
				t.Errorf("exceptions (-want +got):\n%s", diff)
			}
		})
	}
}

// Deleting a group leaves its agents pending; a new group of the same name takes them
// over.
func TestAgentsFollowTheName(t *testing.T) {
	s := fleet.New()
	s.Apply(0, create(one, "edge"))
	s.Observe(fleet.AgentKey("a"), status("a", "edge", beat(one, 2, 0)))
	s.Observe(fleet.AgentKey("b"), status("b", "", beat(fleet.DefaultGroupID, 1, 0)))
	if diff := cmp.Diff(map[string]int{one: 1, fleet.DefaultGroupID: 1}, s.Members()); diff != "" {
		t.Error(diff)
	}
	s.Apply(1, remove(one))
	if a := s.Find("a", start)[0]; a.Group != nil || a.Condition != fleet.Pending {
		t.Errorf("after deleting its group: %+v", a)
	}
	s.Apply(2, create(other, "edge"))
	if a := s.Find("node-a", start)[0]; a.Group == nil || a.Group.ID != other || a.Condition != fleet.Pending {
		t.Errorf("after a new group of its name: %+v", a)
	}
	if s.Observe(fleet.AgentKey("a"), nil); s.AgentCount() != 1 || s.Status("a") != nil {
		t.Error("a deleted agent is still there")
	}
}

func TestFindAgents(t *testing.T) {
	s := fleet.New()
	for _, id := range []string{"a", "b", "c"} {
		st := status(id, "", nil)
		if id != "a" {
			st.Registration.Name = "twin"
		}
		s.Observe(fleet.AgentKey(id), st)
	}
	for name, want := range map[string]string{"a": "a", "node-a": "a", "twin": "b c", "b": "b", "none": ""} {
		var ids []string
		for _, a := range s.Find(name, start) {
			ids = append(ids, a.ID)
		}
		if got := strings.Join(ids, " "); got != want {
			t.Errorf("%q finds %q, want %q", name, got, want)
		}
	}
}

// The resources topic is not about agents only, and other programs can write to it.
func TestForeignRecordsChangeNothing(t *testing.T) {
	s := fleet.New()
	for key, st := range map[string]*agentv1.AgentStatus{
		"pod/x": status("x", "", nil), "agent/": status("", "", nil), "agent/x": status("y", "", nil), "agent/z": {}, "": nil,
	} {
		if id, ok := s.Observe([]byte(key), st); ok {
			t.Errorf("%q was taken for agent %q", key, id)
		}
	}
	if n := s.AgentCount(); n != 0 {
		t.Errorf("%d agents", n)
	}
}

func TestAlive(t *testing.T) {
	connected, gone := status("a", "", nil), status("a", "", nil)
	gone.Replica = ""
	tests := map[string]struct {
		status *agentv1.AgentStatus
		after  time.Duration
		want   bool
	}{
		"connected":    {connected, 0, true},
		"silent":       {connected, fleet.LostAfter + 1, false},
		"disconnected": {gone, 0, false},
		"unknown":      {nil, 0, false},
	}
	for name, tc := range tests {
		if got := fleet.Alive(tc.status, start.Add(tc.after)); got != tc.want {
			t.Errorf("%s: alive is %v", name, got)
		}
	}
	s := fleet.New()
	s.Observe(fleet.AgentKey("a"), connected)
	if ids := s.LostSince(start); len(ids) != 0 {
		t.Errorf("lost too early: %v", ids)
	}
	if diff := cmp.Diff([]string{"a"}, s.LostSince(start.Add(1))); diff != "" {
		t.Error(diff)
	}
}
