package control

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// joins is a Guard that knows when agents registered.
type joins map[string]time.Time

func (joins) Bind(context.Context, string, time.Time) ([]byte, bool, error) { return nil, false, nil }

func (joins) MayJoin(context.Context, string, ...string) error { return nil }

func (j joins) Joined(agent string) (time.Time, bool) { at, ok := j[agent]; return at, ok }

func TestShortLivedAgentsAreForgottenSoon(t *testing.T) {
	now := time.Now()
	guard := joins{}
	c, err := New(DefaultConfig(), Options{Replica: "r", Guard: guard, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []struct {
		id           string
		joined, seen time.Duration // ago
	}{
		{"passer-by", 70 * time.Minute, 65 * time.Minute},
		{"just gone", 50 * time.Minute, 45 * time.Minute},
		{"proven", 90 * time.Minute, 65 * time.Minute},
		{"connected", 5 * time.Minute, time.Second},
		{"from before", 0, 65 * time.Minute},
	} {
		if a.joined > 0 {
			guard[a.id] = now.Add(-a.joined)
		}
		c.state.Observe(fleet.AgentKey(a.id), &agentv1.AgentStatus{
			Registration: &agentv1.Registration{AgentId: a.id}, SeenTimeUnixNano: uint64(now.Add(-a.seen).UnixNano()),
		})
	}
	if got := c.shortLived(); len(got) != 1 || got[0] != "passer-by" {
		t.Errorf("to be forgotten: %q, want the short-lived one only", got)
	}
}

func TestNewAgentsAreLimitedByAddress(t *testing.T) {
	now := time.Now()
	cfg := DefaultConfig()
	cfg.NewAgentsPerMinute = 60
	c, err := New(cfg, Options{Replica: "r", Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	admitted := func(from string) (n int) {
		for i := range 100 {
			if c.admitNew(fmt.Sprintf("%s:%d", from, 1000+i)) == nil {
				n++
			}
		}
		return n
	}
	if got := admitted("192.0.2.1"); got != 60 {
		t.Errorf("%d of 100 at once were admitted, want 60", got)
	}
	if got := admitted("192.0.2.2"); got != 60 {
		t.Errorf("%d of another address, want 60", got)
	}
	now = now.Add(10 * time.Second)
	if got := admitted("192.0.2.1"); got != 10 {
		t.Errorf("%d after ten seconds, want 10", got)
	}
}
