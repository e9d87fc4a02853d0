package control_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// guard binds every id to the same record, once.
type guard struct {
	mu      sync.Mutex
	refusal error
	bound   map[string]bool
	closed  []string // groups that nobody may join
}

const record = `{"credential":"c","joined":1}`

func (g *guard) Bind(_ context.Context, agent string, _ time.Time) (value []byte, news bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refusal != nil {
		return nil, false, g.refusal
	}
	news = !g.bound[agent]
	g.bound[agent] = true
	return []byte(record), news, nil
}

func (g *guard) MayJoin(_ context.Context, _ string, group ...string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if slices.ContainsFunc(group, func(name string) bool { return slices.Contains(g.closed, name) }) {
		return status.Error(codes.PermissionDenied, "its token is for another group")
	}
	return nil
}

func (g *guard) Joined(string) (time.Time, bool) { return time.Time{}, false }

func (g *guard) refuse(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refusal = err
}

// The id was bound to another credential after the stream was admitted: the stream gets
// no session, and the owner keeps its own.
func TestLateBindingCounts(t *testing.T) {
	st := newSetting(t)
	g := &guard{bound: map[string]bool{}}
	st.guard = g
	r := st.start(t, "r")
	owner := connect(t, r, registration("one", "1"))
	owner.configuration()
	g.refuse(status.Error(codes.PermissionDenied, "it is another's"))
	stranger := connect(t, r, registration("one", "1"))
	if m, err := stranger.receive(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the second agent gets %v, %v, want PERMISSION_DENIED", m, err)
	}
	owner.beat(&agentv1.Heartbeat{})
	fresh := connect(t, r, registration("two", "1"))
	if m, err := fresh.receive(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a second agent under an id without a session gets %v, %v, want PERMISSION_DENIED", m, err)
	}
}

// Deleting an agent that connects at that moment does not free its id.
func TestIDOfLiveAgentStaysBound(t *testing.T) {
	st := newSetting(t)
	st.guard = &guard{bound: map[string]bool{}}
	near, far := st.start(t, "near"), st.start(t, "far")
	agent := connect(t, near, registration("one", "1"))
	agent.configuration()
	awaitAgent(t, far, "the agent", func(api.Agent) bool { return true })
	if err := far.DeleteAtOnce(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	client, err := kafka.New(kafkaConfig(st), kafka.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	deleted, offset := false, int64(0)
	ctx, cancel := context.WithTimeout(t.Context(), wait.Patience)
	defer cancel()
	for {
		batch, err := client.Fetch(ctx, schema.TopicResources, 0, offset, 1<<20, time.Second)
		if err != nil {
			t.Fatalf("the binding was not written again: %v", err)
		}
		for _, r := range batch.Records {
			offset = r.Offset + 1
			if string(r.Key) != string(fleet.BindingKey("one")) {
				continue
			}
			switch {
			case r.Value == nil:
				deleted = true
			case deleted && string(r.Value) == record:
				return
			}
		}
	}
}

// Check answers as a stream would, and leaves no agent behind.
func TestCheckAdmitsNobody(t *testing.T) {
	st := newSetting(t)
	st.guard = &guard{bound: map[string]bool{}, closed: []string{"bank"}}
	r := st.start(t, "r")
	shop, err := r.CreateGroup(t.Context(), "shop", "")
	if err != nil {
		t.Fatal(err)
	}
	check := func(group string) (*agentv1.CheckResponse, error) {
		reg := registration("one", "1")
		reg.Group = group
		return r.agents.Check(t.Context(), &agentv1.CheckRequest{Registration: reg})
	}
	for group, want := range map[string]string{"shop": "shop", shop.ID: "shop", "": "default", "shpo": ""} {
		if got, err := check(group); err != nil || got.GroupName != want {
			t.Errorf("group %q: %v, %v; want %q", group, got, err, want)
		}
	}
	if _, err := check("bank"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a token of another group: %v", err)
	}
	if _, err := r.agents.Check(t.Context(), &agentv1.CheckRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no registration: %v", err)
	}
	if list, err := r.Agents(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("agents: %v, %v; want none", list, err)
	}
}

// A token is revoked while its agents are connected: their streams end, other groups'
// agents stay, and nobody joins with it any more.
func TestRevokingEndsStreams(t *testing.T) {
	st := newSetting(t)
	g := &guard{bound: map[string]bool{}}
	st.guard = g
	r := st.start(t, "r")
	for _, name := range []string{"shop", "bank"} {
		if _, err := r.CreateGroup(t.Context(), name, ""); err != nil {
			t.Fatal(err)
		}
	}
	of := func(id, group string) *agentv1.Registration {
		reg := registration(id, "1")
		reg.Group = group
		return reg
	}
	shop, bank := connect(t, r, of("one", "shop")), connect(t, r, of("two", "bank"))
	shop.configuration()
	bank.configuration()
	g.mu.Lock()
	g.closed = []string{"shop"}
	g.mu.Unlock()
	r.Recheck()
	if m, err := shop.receive(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the agent of the revoked token gets %v, %v, want PERMISSION_DENIED", m, err)
	}
	if m, err := connect(t, r, of("three", "shop")).receive(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a new agent with it gets %v, %v, want PERMISSION_DENIED", m, err)
	}
	bank.beat(&agentv1.Heartbeat{})
	await(t, r, "the end of the stream", func(list []api.Agent) bool {
		return slices.ContainsFunc(list, func(a api.Agent) bool { return a.ID == "one" && a.Replica == "" })
	})
}
