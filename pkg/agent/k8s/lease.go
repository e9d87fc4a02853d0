package k8s

import (
	"context"
	"sync"
	"time"

	coordination "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// Timing holds the durations of the leader election.
type Timing struct {
	// Duration is how long a lease lasts that is not renewed, by the clock of the agent that looks at it.
	Duration time.Duration
	// Renew is how long the leader tries to renew its lease before it gives up.
	Renew time.Duration
	// Retry is the pause between attempts to renew, and half of the longest one between attempts to take.
	Retry time.Duration
}

// defaultTiming makes another agent watch the services at most twenty seconds after the
// leader has died: one duration until a follower looks at the lease again, and a second one
// until the lease it saw then has ended, each with a pause of up to two retries.
// Followers ask the API server once in each duration.
func defaultTiming() Timing {
	return Timing{Duration: 7 * time.Second, Renew: 5 * time.Second, Retry: 1200 * time.Millisecond}
}

// lease is this agent's view of the lease that the leader holds. The rules are those of client-go's
// leaderelection, whose package links the clients, informers and listers of every API of Kubernetes: two agents
// may believe for a moment that they lead, and no clocks are compared.
type lease struct {
	w      *Watcher
	client coordinationclient.LeaseInterface
	seen   *coordination.Lease // another agent's, as last read; nil if there is none
	until  time.Time           // when seen ends unless it is renewed
}

// elect competes for the lease until ctx ends.
func (w *Watcher) elect(ctx context.Context) error {
	l := &lease{w: w, client: w.client.CoordinationV1().Leases(w.namespace)}
	pauses := retry.Policy{First: 2 * w.opts.Lease.Retry, Max: 2 * w.opts.Lease.Retry}
	for ctx.Err() == nil {
		begun := time.Now()
		if held := l.take(ctx); held != nil {
			l.lead(ctx, held, begun)
		}
		_ = retry.Sleep(ctx, pauses.Pause(1)) // the loop ends with ctx
	}
	return nil
}

// take returns the lease if this agent holds it now, and otherwise nil. It spares the API server the questions
// whose answer cannot matter: before the lease that was seen has ended.
func (l *lease) take(ctx context.Context) *coordination.Lease {
	if l.seen != nil && time.Now().Before(l.until) {
		return nil
	}
	found, err := l.client.Get(ctx, l.w.cfg.Lease, meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		fresh := &coordination.Lease{ObjectMeta: meta.ObjectMeta{Name: l.w.cfg.Lease, Namespace: l.w.namespace}}
		l.claim(fresh)
		held, err := l.client.Create(ctx, fresh, meta.CreateOptions{})
		return l.written(ctx, held, err)
	}
	if err != nil {
		l.seen = nil
		l.report(ctx, err)
		return nil
	}
	if holder := holderOf(found); holder != "" && holder != l.w.opts.AgentID {
		if l.seen == nil || holderOf(l.seen) != holder || !l.seen.Spec.RenewTime.Equal(found.Spec.RenewTime) {
			l.seen, l.until = found, time.Now().Add(l.w.opts.Lease.Duration)
			return nil
		}
	}
	l.claim(found)
	held, err := l.client.Update(ctx, found, meta.UpdateOptions{})
	return l.written(ctx, held, err)
}

// written returns the lease that was written, or nil if that failed.
func (l *lease) written(ctx context.Context, held *coordination.Lease, err error) *coordination.Lease {
	l.seen = nil
	if err != nil {
		l.report(ctx, err)
		return nil
	}
	return held
}

// lead passes a term to the watch of services, and renews the lease until that fails for too long, another
// agent has it, or ctx ends. begun is when the request was sent that took it.
func (l *lease) lead(ctx context.Context, held *coordination.Lease, begun time.Time) {
	term, end := context.WithCancel(ctx)
	var passing sync.WaitGroup
	defer passing.Wait()
	defer end()
	passing.Go(func() { // the watch of the term before may not have ended yet
		select {
		case l.w.leading <- term:
		case <-term.Done():
		}
	})
	for {
		deadline := begun.Add(l.w.opts.Lease.Renew)
		if err := retry.Sleep(ctx, min(l.w.opts.Lease.Retry, time.Until(deadline))); err != nil || !time.Now().Before(deadline) {
			end()
			l.release(ctx, held)
			return
		}
		attempt, cancel := context.WithDeadline(ctx, deadline)
		now := time.Now()
		renewed, lost := l.renew(attempt, held)
		cancel()
		if lost {
			return
		}
		if renewed != nil {
			held, begun = renewed, now
		}
	}
}

// renew returns the renewed lease, or nil if that failed, and whether another agent has the lease.
func (l *lease) renew(ctx context.Context, held *coordination.Lease) (renewed *coordination.Lease, lost bool) {
	next := held.DeepCopy()
	l.claim(next)
	renewed, err := l.client.Update(ctx, next, meta.UpdateOptions{})
	if apierrors.IsConflict(err) { // an attempt without an answer may have succeeded
		var found *coordination.Lease
		if found, err = l.client.Get(ctx, l.w.cfg.Lease, meta.GetOptions{}); err == nil {
			if holderOf(found) != l.w.opts.AgentID {
				return nil, true
			}
			l.claim(found)
			renewed, err = l.client.Update(ctx, found, meta.UpdateOptions{})
		}
	}
	return l.written(ctx, renewed, err), apierrors.IsNotFound(err)
}

// release lets another agent take the lease at once.
func (l *lease) release(ctx context.Context, held *coordination.Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.w.opts.Lease.Renew)
	defer cancel()
	free := held.DeepCopy()
	free.Spec.HolderIdentity = new(string)
	_, err := l.client.Update(ctx, free, meta.UpdateOptions{})
	l.report(ctx, err)
}

// claim makes this agent the holder from now on.
func (l *lease) claim(a *coordination.Lease) {
	now, seconds := meta.NowMicro(), int32(l.w.opts.Lease.Duration/time.Second)
	if holderOf(a) != l.w.opts.AgentID {
		var transitions int32
		if a.Spec.LeaseTransitions != nil {
			transitions = *a.Spec.LeaseTransitions + 1
		}
		a.Spec.AcquireTime, a.Spec.LeaseTransitions = &now, &transitions
	}
	id := l.w.opts.AgentID
	a.Spec.HolderIdentity, a.Spec.RenewTime, a.Spec.LeaseDurationSeconds = &id, &now, &seconds
}

func holderOf(a *coordination.Lease) string {
	if a.Spec.HolderIdentity == nil {
		return ""
	}
	return *a.Spec.HolderIdentity
}

// report records err for operators, except not-found and conflict: then the lease is gone, or another agent took
// it.
func (l *lease) report(ctx context.Context, err error) {
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
		l.w.failed(ctx, leases, err)
	}
}
