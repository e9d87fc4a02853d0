package k8s

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Reporter sends a report to a server. An error of class fault.Rejected means
// that the same report would be rejected again; the Watcher retries after any
// other error.
type Reporter interface {
	Report(ctx context.Context, r *agentv1.ReportRequest) error
}

// Options are set by code. Reporter, AgentID and Node are required; Node only
// if Config.Node is empty.
type Options struct {
	Reporter   Reporter
	AgentID    string
	Cluster    string
	Node       string                // used if Config.Node is empty
	Client     Client                // nil connects to the API server of Config
	Logger     *slog.Logger          // nil logs nothing
	Registerer prometheus.Registerer // nil registers nothing
	// Lease holds the timing of the leader election. The zero value means one
	// request per node every seven seconds or more, and a new leader within twenty.
	Lease Timing
}

// rememberedAfterEnd is how long Pod knows a pod after its object is gone: the
// last flows of its connections still come.
const rememberedAfterEnd = 10 * time.Minute

// Pod describes a pod.
type Pod struct {
	UID, Namespace, Name, Workload string
}

// Watcher watches Kubernetes. Use New.
type Watcher struct {
	cfg       Config
	opts      Options
	node      string
	namespace string
	client    Client
	log       *slog.Logger
	metrics   *metrics
	pods      cache.SharedIndexInformer
	due       chan struct{} // capacity 1: something must be reported
	leading   chan context.Context

	mu sync.Mutex
	// known holds the pods of this node by UID, and static pods also by the
	// kubelet's UID.
	known    map[string]*agentv1.Pod
	gone     map[string]time.Time // when the object of a known pod was deleted
	news     map[string]*agentv1.Pod
	all      bool                        // every pod must be reported
	changed  map[string]*agentv1.Service // by namespace/name; nil is looked up when reported
	services *services                   // nil unless this agent holds the lease
	trouble  map[string]failure          // the last error by resource
}

type failure struct {
	at  time.Time
	err error
}

// New returns a Watcher that knows nothing yet. It starts nothing and sends no
// request.
func New(cfg Config, opts Options) (*Watcher, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("kubernetes config: %w", err)
	}
	w := &Watcher{
		cfg: cfg, opts: opts, node: cfg.Node, client: opts.Client, log: opts.Logger,
		due: make(chan struct{}, 1), leading: make(chan context.Context, 1),
		known: map[string]*agentv1.Pod{}, gone: map[string]time.Time{}, news: map[string]*agentv1.Pod{},
		changed: map[string]*agentv1.Service{}, trouble: map[string]failure{},
	}
	if w.node == "" {
		w.node = opts.Node
	}
	if w.node == "" || opts.Reporter == nil || opts.AgentID == "" {
		return nil, errors.New("kubernetes watcher: reporter, agent id and node name are required")
	}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	if w.opts.Lease == (Timing{}) {
		w.opts.Lease = defaultTiming()
	}
	var err error
	if cfg.Lease != "" {
		if w.namespace, err = cfg.namespace(); err != nil {
			return nil, err
		}
	}
	if w.client == nil {
		if w.client, err = cfg.connect(); err != nil {
			return nil, err
		}
	}
	pods := w.client.CoreV1().Pods(meta.NamespaceAll)
	w.pods, err = w.informer("pods", &core.Pod{}, lister{
		list: func(ctx context.Context, o meta.ListOptions) (runtime.Object, error) {
			o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", w.node).String()
			return pods.List(ctx, o)
		},
		watch: func(ctx context.Context, o meta.ListOptions) (watch.Interface, error) {
			o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", w.node).String()
			return pods.Watch(ctx, o)
		},
	}, nil, cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { w.podChanged(o) },
		UpdateFunc: func(_, o any) { w.podChanged(o) },
		DeleteFunc: func(o any) { w.podDeleted(o) },
	})
	if err != nil {
		return nil, err
	}
	w.metrics = newMetrics(opts.Registerer, w)
	return w, nil
}

// Run watches and reports until ctx ends. It logs, counts and retries after
// errors of Kubernetes or the servers. Call it only once.
func (w *Watcher) Run(ctx context.Context) error {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(w.log.With(slog.String("from", "client-go")).Handler()))
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		w.pods.RunWithContext(ctx)
		return nil
	})
	g.Go(func() error { return w.report(ctx) })
	g.Go(func() error { return w.firstReport(ctx) })
	if w.cfg.Lease != "" {
		g.Go(func() error { return w.elect(ctx) })
		g.Go(func() error { return w.lead(ctx) })
	}
	return g.Wait()
}

// Pod returns a pod of this node by the UID after which its control groups are
// named. It also knows pods that ended within the last minutes.
func (w *Watcher) Pod(uid string) (Pod, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.known[uid]
	if p == nil {
		return Pod{}, false
	}
	return Pod{p.Uid, p.Namespace, p.Name, p.Workload}, true
}

// ReportAll queues everything to be reported again, as after the agent
// connected to another server.
func (w *Watcher) ReportAll() {
	w.mu.Lock()
	w.all = true
	if w.services != nil {
		w.services.each(func(key string) { w.touch(key) })
	}
	w.mu.Unlock()
	w.remind()
}

// leases is the value of the error metric's label for the leader election.
const leases = "leases"

// troubleFor is how long an error counts as current. client-go retries at least
// every minute.
const troubleFor = 2 * time.Minute

// Exceptions returns the current problems, as sentences for an operator.
func (w *Watcher) Exceptions() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []string
	for _, what := range []string{"pods", "services", "endpointslices"} {
		if f, ok := w.trouble[what]; ok && time.Since(f.at) < troubleFor {
			list = append(list, fmt.Sprintf("The agent cannot watch %s in Kubernetes: %v", what, f.err))
		}
	}
	if f, ok := w.trouble[leases]; ok && time.Since(f.at) < troubleFor {
		list = append(list, fmt.Sprintf("The agent cannot hold the lease %s/%s, which elects the agent that watches services: %v", w.namespace, w.cfg.Lease, f.err))
	}
	return list
}

// lister lists and watches objects of one kind.
type lister struct {
	list  cache.ListWithContextFunc
	watch cache.WatchFuncWithContext
}

// informer returns an informer that is not started.
func (w *Watcher) informer(what string, kind runtime.Object, l lister, indexers cache.Indexers, handler cache.ResourceEventHandler) (cache.SharedIndexInformer, error) {
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: l.list, WatchFuncWithContext: l.watch,
	}, w.client)
	if indexers == nil {
		indexers = cache.Indexers{}
	}
	informer := cache.NewSharedIndexInformer(lw, kind, 0, indexers)
	_, err := informer.AddEventHandler(handler)
	return informer, errors.Join(
		err,
		informer.SetTransform(strip),
		informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) { w.failed(ctx, what, err) }),
	)
}

// failed records an error of listing or watching. Watches normally end every
// few minutes; such ends do not count.
func (w *Watcher) failed(ctx context.Context, what string, err error) {
	if ctx.Err() != nil || expected(err) {
		return
	}
	w.metrics.watchErrors.WithLabelValues(what).Inc()
	w.mu.Lock()
	last := w.trouble[what]
	now := time.Now()
	w.trouble[what] = failure{now, err}
	w.mu.Unlock()
	if now.Sub(last.at) >= troubleFor {
		w.log.Warn("request to Kubernetes failed, retrying", slog.String("resource", what), slog.Any("error", err))
	}
}

// podChanged records the current state of a pod.
func (w *Watcher) podChanged(object any) {
	p, ok := object.(*core.Pod)
	if !ok {
		return
	}
	w.record(p, podOf(p, time.Time{}))
}

// podDeleted records that a pod's object is gone.
func (w *Watcher) podDeleted(object any) {
	if d, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = d.Obj
	}
	p, ok := object.(*core.Pod)
	if !ok {
		return
	}
	now := time.Now()
	w.record(p, podOf(p, now))
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, uid := range uidsOf(p) {
		w.gone[uid] = now
	}
}

// uidsOf returns the UIDs by which control groups name a pod.
func uidsOf(p *core.Pod) []string {
	uids := []string{string(p.UID)}
	if hash := p.Annotations[mirrorOf]; hash != "" {
		uids = append(uids, hash)
	}
	return uids
}

func (w *Watcher) record(p *core.Pod, pod *agentv1.Pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	same := proto.Equal(w.known[pod.Uid], pod)
	for _, uid := range uidsOf(p) {
		w.known[uid] = pod
		delete(w.gone, uid)
	}
	if same || len(pod.Addresses) == 0 && pod.EndTimeUnixNano == 0 {
		return // nothing that a query could find
	}
	w.news[pod.Uid] = pod
	w.remind()
}

func (w *Watcher) remind() {
	select {
	case w.due <- struct{}{}:
	default:
	}
}

// forget removes pods whose objects were deleted a while ago.
func (w *Watcher) forget(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for uid, at := range w.gone {
		if now.Sub(at) > rememberedAfterEnd {
			delete(w.gone, uid)
			delete(w.known, uid)
		}
	}
}
