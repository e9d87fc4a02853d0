package control_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// guard binds every id to the same record, once.
type guard struct {
	mu      sync.Mutex
	refusal error
	bound   map[string]bool
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

// Deleting a connected agent does not free its id.
func TestIDOfLiveAgentStaysBound(t *testing.T) {
	st := newSetting(t)
	st.guard = &guard{bound: map[string]bool{}}
	near, far := st.start(t, "near"), st.start(t, "far")
	agent := connect(t, near, registration("one", "1"))
	agent.configuration()
	awaitAgent(t, far, "the agent", func(api.Agent) bool { return true })
	if err := far.DeleteAgent(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	client, err := kafka.New(kafkaConfig(st), kafka.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	deleted, offset := false, int64(0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
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
