package k8s

import (
	"bytes"
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Timing holds the durations of the leader election.
type Timing struct {
	Duration, Renew, Retry time.Duration
}

// defaultTiming makes another agent watch the services at most twenty seconds after the
// leader has died: one duration until a follower looks at the lease again, and a second one
// until the lease it saw then has ended, each with a retry, which client-go stretches at
// random to 2.2 times its length. Followers ask the API server once in each duration.
func defaultTiming() Timing {
	return Timing{Duration: 7 * time.Second, Renew: 5 * time.Second, Retry: 1200 * time.Millisecond}
}

// elect competes for the lease until ctx ends.
func (w *Watcher) elect(ctx context.Context) error {
	lock := &lease{w: w, LeaseLock: &resourcelock.LeaseLock{
		LeaseMeta:  meta.ObjectMeta{Name: w.cfg.Lease, Namespace: w.namespace},
		Client:     w.client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: w.opts.AgentID},
	}}
	for ctx.Err() == nil {
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, LeaseDuration: w.opts.Lease.Duration, RenewDeadline: w.opts.Lease.Renew, RetryPeriod: w.opts.Lease.Retry,
			ReleaseOnCancel: true, Name: w.cfg.Lease,
			Callbacks: leaderelection.LeaderCallbacks{
				// client-go calls it in a goroutine that nothing waits for, so
				// it only passes the context on.
				OnStartedLeading: func(ctx context.Context) {
					select {
					case w.leading <- ctx:
					case <-ctx.Done():
					}
				},
				OnStoppedLeading: func() {},
			},
		})
		if err != nil {
			return err
		}
		elector.Run(ctx)
	}
	return nil
}

// lease reports errors, which client-go would only log, and spares the API server the
// questions whose answer cannot matter: client-go asks at every retry, although it takes no
// lease before the one that it saw has ended.
type lease struct {
	*resourcelock.LeaseLock
	w *Watcher

	// Get is called by one goroutine at a time.
	seen  *resourcelock.LeaderElectionRecord // another agent's, as last read
	raw   []byte
	until time.Time // when seen ends
}

// Get implements resourcelock.Interface.
func (l *lease) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	if l.seen != nil && time.Now().Before(l.until) {
		return l.seen, l.raw, nil
	}
	record, raw, err := l.LeaseLock.Get(ctx)
	switch {
	case err != nil || record.HolderIdentity == "" || record.HolderIdentity == l.Identity():
		l.seen = nil
	case l.seen == nil || !bytes.Equal(raw, l.raw):
		l.seen, l.raw, l.until = record, raw, time.Now().Add(l.w.opts.Lease.Duration)
	}
	return record, raw, l.reportError(ctx, err)
}

// Create implements resourcelock.Interface.
func (l *lease) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.reportError(ctx, l.LeaseLock.Create(ctx, r))
}

// Update implements resourcelock.Interface.
func (l *lease) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.reportError(ctx, l.LeaseLock.Update(ctx, r))
}

// reportError records err for operators, except not-found and conflict: then
// the lease does not exist yet, or another agent took it.
func (l *lease) reportError(ctx context.Context, err error) error {
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
		l.w.failed(ctx, leases, err)
	}
	return err
}

// lead watches services whenever this agent holds the lease.
func (w *Watcher) lead(ctx context.Context) error {
	for {
		select {
		case term := <-w.leading:
			w.log.Info("watching the services of the cluster")
			if err := w.watchServices(term); err != nil {
				return err
			}
			w.log.Info("stopped watching the services of the cluster")
		case <-ctx.Done():
			return nil
		}
	}
}

const byService = "service"

// services is the state of the agent that holds the lease.
type services struct {
	services, slices cache.SharedIndexInformer
}

// watchServices watches the services and their endpoints until ctx ends.
func (w *Watcher) watchServices(ctx context.Context) error {
	f, err := w.newServices()
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.services = f
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.services = nil
	}()
	var g errgroup.Group
	for _, informer := range []cache.SharedIndexInformer{f.slices, f.services} {
		g.Go(func() error {
			informer.RunWithContext(ctx)
			return nil
		})
	}
	return g.Wait()
}

func (w *Watcher) newServices() (*services, error) {
	s, e := w.client.CoreV1().Services(meta.NamespaceAll), w.client.DiscoveryV1().EndpointSlices(meta.NamespaceAll)
	var f services
	var err, err2 error
	f.services, err = w.informer("services", &core.Service{}, lister{
		list:  func(ctx context.Context, o meta.ListOptions) (runtime.Object, error) { return s.List(ctx, o) },
		watch: func(ctx context.Context, o meta.ListOptions) (watch.Interface, error) { return s.Watch(ctx, o) },
	}, nil, cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { w.serviceChanged(o) },
		UpdateFunc: func(_, o any) { w.serviceChanged(o) },
		DeleteFunc: func(o any) { w.serviceGone(o) },
	})
	f.slices, err2 = w.informer("endpointslices", &discovery.EndpointSlice{}, lister{
		list:  func(ctx context.Context, o meta.ListOptions) (runtime.Object, error) { return e.List(ctx, o) },
		watch: func(ctx context.Context, o meta.ListOptions) (watch.Interface, error) { return e.Watch(ctx, o) },
	}, cache.Indexers{byService: func(o any) ([]string, error) {
		if key := serviceKey(o); key != "" {
			return []string{key}, nil
		}
		return nil, nil
	}}, cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { w.serviceChanged(o) },
		UpdateFunc: func(_, o any) { w.serviceChanged(o) },
		DeleteFunc: func(o any) { w.serviceChanged(o) },
	})
	return &f, errors.Join(err, err2)
}

// serviceKey returns namespace/name of the service that an object is or belongs
// to, or "" if there is none.
func serviceKey(object any) string {
	if d, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = d.Obj
	}
	switch o := object.(type) {
	case *core.Service:
		return o.Namespace + "/" + o.Name
	case *discovery.EndpointSlice:
		if name := o.Labels[discovery.LabelServiceName]; name != "" {
			return o.Namespace + "/" + name
		}
	}
	return ""
}

func (w *Watcher) serviceChanged(object any) {
	key := serviceKey(object)
	if key == "" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, isSlice := object.(*core.Service); !isSlice && w.changed[key] != nil {
		return // the service is gone; its slices go too
	}
	w.touch(key)
}

// touch queues a service to be reported in its state at that time. The caller
// holds mu.
func (w *Watcher) touch(key string) {
	w.changed[key] = nil
	w.remind()
}

func (w *Watcher) serviceGone(object any) {
	if d, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = d.Obj
	}
	s, ok := object.(*core.Service)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changed[serviceKey(s)] = serviceOf(s, nil, time.Now())
	w.remind()
}

// each calls do with the key of every service.
func (f *services) each(do func(key string)) {
	for _, key := range f.services.GetStore().ListKeys() {
		do(key)
	}
}

// get returns the current state of a service, or nil if it does not exist.
func (f *services) get(key string) *agentv1.Service {
	o, ok, err := f.services.GetStore().GetByKey(key)
	s, isService := o.(*core.Service)
	if err != nil || !ok || !isService {
		return nil
	}
	parts, err := f.slices.GetIndexer().ByIndex(byService, key)
	if err != nil {
		return nil // cannot happen: the index exists
	}
	var slices []*discovery.EndpointSlice
	for _, p := range parts {
		if slice, ok := p.(*discovery.EndpointSlice); ok {
			slices = append(slices, slice)
		}
	}
	return serviceOf(s, slices, time.Time{})
}

// leadingNow reports whether this agent watches services.
func (w *Watcher) leadingNow() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.services != nil
}
