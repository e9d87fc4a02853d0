package k8s

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordination "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// leaseAPI is an API server with one lease, without a network.
type leaseAPI struct {
	Client
	coordinationclient.CoordinationV1Interface
	coordinationclient.LeaseInterface

	mu      sync.Mutex
	lease   *coordination.Lease
	version int64
	gets    map[string]int // by the agent that asks
}

// agentLeases is the API as one agent sees it.
type agentLeases struct {
	*leaseAPI
	agent string
	dead  *bool // its requests reach nobody
}

func (a agentLeases) CoordinationV1() coordinationclient.CoordinationV1Interface { return a }
func (a agentLeases) Leases(string) coordinationclient.LeaseInterface            { return a }

var errDead = errors.New("no route to host")

func (a agentLeases) Get(context.Context, string, meta.GetOptions) (*coordination.Lease, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if *a.dead {
		return nil, errDead
	}
	a.gets[a.agent]++
	return a.lease.DeepCopy(), nil
}

func (a agentLeases) Update(_ context.Context, l *coordination.Lease, _ meta.UpdateOptions) (*coordination.Lease, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if *a.dead {
		return nil, errDead
	}
	if l.ResourceVersion != a.lease.ResourceVersion {
		return nil, apierrors.NewConflict(schema.GroupResource{Resource: "leases"}, "metaflow-agent", nil)
	}
	a.version++
	a.lease = l.DeepCopy()
	a.lease.ResourceVersion = string(rune('a' + a.version%26))
	return a.lease.DeepCopy(), nil
}

// candidates compete for the lease of an API.
type candidates struct {
	api   *leaseAPI
	leads chan term
	all   sync.WaitGroup
}

// term is what an agent gets that leads.
type term struct {
	agent string
	ctx   context.Context
}

// add lets an agent compete until ctx ends. Once dead is set, its requests fail.
func (c *candidates) add(ctx context.Context, t *testing.T, agent string) (dead *bool) {
	dead = new(bool)
	w := &Watcher{
		log: slog.New(slog.DiscardHandler), client: agentLeases{leaseAPI: c.api, agent: agent, dead: dead},
		opts: Options{AgentID: agent, Lease: defaultTiming()}, leading: make(chan context.Context, 1), trouble: map[string]failure{},
	}
	w.cfg.Lease, w.metrics = "metaflow-agent", newMetrics(nil, w)
	c.all.Go(func() {
		if err := w.elect(ctx); err != nil {
			t.Error(err)
		}
	})
	c.all.Go(func() {
		for ctx.Err() == nil {
			select {
			case led := <-w.leading:
				c.leads <- term{agent, led}
			case <-ctx.Done():
			}
		}
	})
	return dead
}

func newCandidates() *candidates {
	return &candidates{api: &leaseAPI{lease: &coordination.Lease{}, gets: map[string]int{}}, leads: make(chan term, 8)}
}

// When the leader dies, another agent leads within twenty seconds, and the leader knows before that it does not.
// Meanwhile followers ask no more often than a lease lasts.
func TestNextLeader(t *testing.T) {
	for range 20 { // the pauses are random
		synctest.Test(t, func(t *testing.T) {
			c := newCandidates()
			ctx, stop := context.WithCancel(t.Context())
			dead := c.add(ctx, t, "one")
			first := <-c.leads
			if first.agent != "one" {
				t.Errorf("%s leads", first.agent)
			}
			c.add(ctx, t, "two")
			const peace = time.Hour
			<-time.After(peace)
			c.api.mu.Lock()
			if most := int(peace/defaultTiming().Duration) + 2; c.api.gets["two"] > most {
				t.Errorf("the follower asked %d times in an hour, want at most %d", c.api.gets["two"], most)
			}
			*dead = true
			c.api.mu.Unlock()
			if err := first.ctx.Err(); err != nil {
				t.Errorf("the term ended within an hour: %v", err)
			}
			died := time.Now()
			next := <-c.leads
			if next.agent != "two" || time.Since(died) > 20*time.Second {
				t.Errorf("%s leads %s after the leader died", next.agent, time.Since(died))
			}
			if first.ctx.Err() == nil {
				t.Error("two agents lead")
			}
			stop()
			c.all.Wait()
			if next.ctx.Err() == nil {
				t.Error("the term outlives its agent")
			}
		})
	}
}

// A leader that stops gives the lease back: the next one takes it when it looks again.
func TestLeaderLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCandidates()
		staying, stop := context.WithCancel(t.Context())
		leaving, leave := context.WithCancel(t.Context())
		c.add(leaving, t, "one")
		<-c.leads
		c.add(staying, t, "two")
		<-time.After(time.Minute)
		leave()
		left := time.Now()
		timing := defaultTiming()
		if next := <-c.leads; next.agent != "two" || time.Since(left) > timing.Duration+2*timing.Retry {
			t.Errorf("%s leads %s after the leader left", next.agent, time.Since(left))
		}
		stop()
		c.all.Wait()
	})
}

// A leader whose lease another agent has taken stops at once, and may lead again later.
func TestLeaderIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCandidates()
		ctx, stop := context.WithCancel(t.Context())
		c.add(ctx, t, "one")
		first := <-c.leads
		other := "other"
		c.api.mu.Lock()
		c.api.lease.Spec.HolderIdentity, c.api.lease.ResourceVersion = &other, "taken"
		c.api.mu.Unlock()
		replaced := time.Now()
		<-first.ctx.Done()
		timing := defaultTiming()
		if took := time.Since(replaced); took > timing.Retry {
			t.Errorf("the leader went on for %s", took)
		}
		if next := <-c.leads; next.agent != "one" || time.Since(replaced) < timing.Duration {
			t.Errorf("%s leads after %s, before the other's lease has ended", next.agent, time.Since(replaced))
		}
		stop()
		c.all.Wait()
	})
}
