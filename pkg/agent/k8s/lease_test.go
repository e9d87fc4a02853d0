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
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	if *a.dead || l.ResourceVersion != a.lease.ResourceVersion {
		return nil, errDead
	}
	a.version++
	a.lease = l.DeepCopy()
	a.lease.ResourceVersion = string(rune('a' + a.version%26))
	return a.lease.DeepCopy(), nil
}

// When the leader dies, another agent leads within twenty seconds. Meanwhile followers ask
// no more often than a lease lasts.
func TestNextLeader(t *testing.T) {
	for range 20 { // client-go draws the pauses at random
		synctest.Test(t, func(t *testing.T) {
			api := &leaseAPI{lease: &coordination.Lease{}, gets: map[string]int{}}
			ctx, stop := context.WithCancel(t.Context())
			var wait sync.WaitGroup
			leads := make(chan string, 8)
			candidate := func(agent string) (dead *bool) {
				dead = new(bool)
				w := &Watcher{
					log: slog.New(slog.DiscardHandler), client: agentLeases{leaseAPI: api, agent: agent, dead: dead},
					opts: Options{AgentID: agent, Lease: defaultTiming()}, leading: make(chan context.Context, 1), trouble: map[string]failure{},
				}
				w.cfg.Lease, w.metrics = "metaflow-agent", newMetrics(nil, w)
				wait.Go(func() {
					if err := w.elect(ctx); err != nil {
						t.Error(err)
					}
				})
				wait.Go(func() {
					for ctx.Err() == nil {
						select {
						case <-w.leading:
							leads <- agent
						case <-ctx.Done():
						}
					}
				})
				return dead
			}
			dead := candidate("one")
			if agent := <-leads; agent != "one" {
				t.Errorf("%s leads", agent)
			}
			candidate("two")
			const peace = time.Hour
			<-time.After(peace)
			api.mu.Lock()
			if most := int(peace/defaultTiming().Duration) + 2; api.gets["two"] > most {
				t.Errorf("the follower asked %d times in an hour, want at most %d", api.gets["two"], most)
			}
			*dead = true
			api.mu.Unlock()
			died := time.Now()
			if agent := <-leads; agent != "two" || time.Since(died) > 20*time.Second {
				t.Errorf("%s leads %s after the leader died", agent, time.Since(died))
			}
			stop()
			wait.Wait()
		})
	}
}
