package k8s

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/testkit/kubetest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var began = time.Date(2026, 5, 1, 10, 0, 0, 0, time.UTC)

func newPod(uid, ip string) *core.Pod {
	controller := true
	p := &core.Pod{
		ObjectMeta: meta.ObjectMeta{
			UID: types.UID(uid), Name: "web-" + uid, Namespace: "shop", CreationTimestamp: meta.NewTime(began.Add(-time.Second)),
			Labels:          map[string]string{templateHash: "5d4f8c7b9"},
			OwnerReferences: []meta.OwnerReference{{Kind: "ReplicaSet", Name: "web-5d4f8c7b9", Controller: &controller}},
		},
		Spec:   core.PodSpec{NodeName: "n1", Containers: []core.Container{{Name: "c", Image: strings.Repeat("x", 10_000)}}},
		Status: core.PodStatus{Phase: core.PodRunning},
	}
	if ip != "" {
		p.Status.PodIPs = []core.PodIP{{IP: ip}}
		p.Status.PodIP = ip
		start := meta.NewTime(began)
		p.Status.StartTime = &start
	}
	return p
}

// server collects reports and merges them into its state.
type server struct {
	mu       sync.Mutex
	err      error
	reports  []*agentv1.ReportRequest
	pods     map[string]*agentv1.Pod
	services map[string]*agentv1.Service
	moved    chan struct{}
}

func newServer() *server {
	return &server{pods: map[string]*agentv1.Pod{}, services: map[string]*agentv1.Service{}, moved: make(chan struct{})}
}

func (s *server) Report(_ context.Context, r *agentv1.ReportRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		close(s.moved)
		s.moved = make(chan struct{})
	}()
	if s.err != nil {
		return s.err
	}
	r = proto.CloneOf(r)
	s.reports = append(s.reports, r)
	if r.Complete {
		clear(s.pods)
	}
	for _, p := range r.Pods {
		s.pods[p.Uid] = p
	}
	for _, v := range r.Services {
		s.services[v.Namespace+"/"+v.Name] = v
	}
	return nil
}

func (s *server) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// await waits until done accepts the server's state.
func (s *server) await(t testing.TB, what string, done func(*server) bool) {
	t.Helper()
	timeout := time.After(wait.Patience)
	for {
		s.mu.Lock()
		ok, moved := done(s), s.moved
		known := fmt.Sprint(s.pods, s.services, len(s.reports))
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-moved:
		case <-timeout:
			t.Fatalf("timed out waiting until %s; the server knows %s", what, known)
		}
	}
}

// clientOf returns a client of a that works until the test ends.
func clientOf(t testing.TB, a *kubetest.API) Client {
	t.Helper()
	c, err := newClient(&rest.Config{Host: a.URL(), QPS: 1000, Burst: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.(*client).core.RESTClient().(*rest.RESTClient).Client.CloseIdleConnections() })
	return c
}

// start runs a Watcher until stop is called or the test ends.
func start(t testing.TB, a *kubetest.API, s Reporter, id string, edit func(*Config)) (w *Watcher, stop func()) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Namespace, cfg.Node = "metaflow", "n1"
	if edit != nil {
		edit(&cfg)
	}
	w, err := New(cfg, Options{
		Reporter: s, AgentID: id, Cluster: "prod", Client: clientOf(t, a), Registerer: prometheus.NewRegistry(),
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)).With(slog.String("agent", id)),
		// Long enough that no leader loses it on a busy machine; followers ask that often.
		Lease: Timing{Duration: 6 * time.Second, Renew: 4 * time.Second, Retry: 200 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return w, stop
}

func withoutLease(c *Config) { c.Lease = "" }

func TestPodsOfTheNodeAreReported(t *testing.T) {
	a, s := kubetest.New(t), newServer()
	a.Put(newPod("a", "10.0.0.1"))
	other := newPod("other", "10.0.9.9")
	other.Spec.NodeName = "n2"
	a.Put(other)
	w, _ := start(t, a, s, "agent", withoutLease)
	s.await(t, "the pod is reported", func(s *server) bool { return len(s.pods) == 1 && s.pods["a"] != nil })
	want := &agentv1.Pod{
		Uid: "a", Namespace: "shop", Name: "web-a", Workload: "web", WorkloadKind: "Deployment",
		Addresses: []*agentv1.PodAddress{{Address: []byte{10, 0, 0, 1}, ValidFromUnixNano: uint64(began.UnixNano())}},
	}
	s.mu.Lock()
	got, first := s.pods["a"], s.reports[0]
	s.mu.Unlock()
	if !proto.Equal(want, got) {
		t.Errorf("reported %v, want %v", got, want)
	}
	if first.AgentId != "agent" || first.Cluster != "prod" || first.Node != "n1" || !first.Complete || first.TimeUnixNano == 0 {
		t.Errorf("reported by %v", first)
	}
	if p, ok := w.Pod("a"); !ok || p != (Pod{"a", "shop", "web-a", "web"}) {
		t.Errorf("Pod = %+v", p)
	}

	// A pod without an address is not reported.
	b := newPod("b", "")
	a.Put(b)
	wait.Until(t, "the agent knows the new pod", func() bool { _, ok := w.Pod("b"); return ok })
	a.Put(newPod("b", "10.0.0.2"))
	s.await(t, "the second pod is reported", func(s *server) bool { return len(s.pods["b"].GetAddresses()) == 1 })

	// The pod is deleted.
	before := time.Now()
	a.Remove(newPod("b", "10.0.0.2"))
	s.await(t, "the second pod ended", func(s *server) bool { return s.pods["b"].GetEndTimeUnixNano() >= uint64(before.UnixNano()) })
	if _, ok := w.Pod("b"); !ok {
		t.Error("the agent forgot the pod before its last flows were reported")
	}
	w.forget(time.Now().Add(time.Hour))
	if _, ok := w.Pod("b"); ok {
		t.Error("the agent never forgets the pod")
	}

	// The pod of a job finishes, and its object stays.
	done := newPod("a", "10.0.0.1")
	done.Status.Phase = core.PodSucceeded
	done.Status.ContainerStatuses = []core.ContainerStatus{{State: core.ContainerState{Terminated: &core.ContainerStateTerminated{
		FinishedAt: meta.NewTime(began.Add(time.Minute)),
	}}}}
	a.Put(done)
	s.await(t, "the first pod ended", func(s *server) bool {
		return s.pods["a"].GetEndTimeUnixNano() == uint64(began.Add(time.Minute).UnixNano())
	})
}

// The API server goes down and comes back with other pods and without its
// history.
func TestKubernetesAway(t *testing.T) {
	a, s := kubetest.New(t), newServer()
	a.Put(newPod("a", "10.0.0.1"))
	w, _ := start(t, a, s, "agent", withoutLease)
	s.await(t, "the pod is reported", func(s *server) bool { return s.pods["a"] != nil })
	a.HangUp() // the API server closes connections, but stays up
	a.Put(newPod("b", "10.0.0.2"))
	s.await(t, "the new pod is reported", func(s *server) bool { return s.pods["b"] != nil })

	a.SetDown(true)
	wait.Until(t, "the exceptions name pods", func() bool {
		return slices.ContainsFunc(w.Exceptions(), func(text string) bool { return strings.Contains(text, "pods") })
	})
	if _, ok := w.Pod("a"); !ok {
		t.Error("the pod was forgotten while Kubernetes was down")
	}
	a.Remove(newPod("a", "10.0.0.1"))
	a.Put(newPod("c", "10.0.0.1"))
	a.ForgetHistory()
	a.SetDown(false)
	s.await(t, "one pod ended and another began", func(s *server) bool { return s.pods["a"].GetEndTimeUnixNano() != 0 && s.pods["c"] != nil })
}

// An agent that may not use the lease reports it, and still watches its pods. A
// normal election is no exception.
func TestLeaseForbidden(t *testing.T) {
	a, s := kubetest.New(t), newServer()
	a.Put(newPod("a", "10.0.0.1"))
	well, _ := start(t, a, s, "one", nil)
	wait.Until(t, "agent one holds the lease", func() bool { return a.Holder() == "one" })
	if list := well.Exceptions(); len(list) != 0 {
		t.Errorf("unexpected exceptions %q", list)
	}
	a.Forbid("leases")
	w, _ := start(t, a, s, "two", nil)
	wait.Until(t, "the exceptions name the lease", func() bool {
		list := w.Exceptions()
		return len(list) == 1 && strings.Contains(list[0], "metaflow/metaflow-agent")
	})
	wait.Until(t, "agent two knows the pod", func() bool { _, ok := w.Pod("a"); return ok })
}

// No server accepts reports. The report that finally succeeds has the latest
// state.
func TestServersAway(t *testing.T) {
	a, s := kubetest.New(t), newServer()
	s.set(errors.New("no server"))
	a.Put(newPod("a", "10.0.0.1"))
	w, _ := start(t, a, s, "agent", withoutLease)
	wait.Until(t, "the agent knows the pod", func() bool { _, ok := w.Pod("a"); return ok })
	a.Remove(newPod("a", "10.0.0.1"))
	a.Put(newPod("b", "10.0.0.1"))
	wait.Until(t, "the agent knows the next pod", func() bool { _, ok := w.Pod("b"); return ok })
	s.set(nil)
	s.await(t, "one pod ended and another lives", func(s *server) bool { return s.pods["a"].GetEndTimeUnixNano() != 0 && s.pods["b"] != nil })

	// A rejected report does not hold up the others.
	s.set(fault.As(fault.Rejected, errors.New("no")))
	a.Put(newPod("c", "10.0.0.3"))
	wait.Until(t, "the report is skipped", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.known["c"] != nil && len(w.news) == 0 })
	s.set(nil)
	a.Put(newPod("d", "10.0.0.4"))
	s.await(t, "the next pod is reported", func(s *server) bool { return s.pods["d"] != nil })
	w.ReportAll()
	s.await(t, "there is what was refused", func(s *server) bool { return s.pods["c"] != nil && s.reports[len(s.reports)-1].Complete })
}

func newService(name, ip string) *core.Service {
	return &core.Service{
		ObjectMeta: meta.ObjectMeta{Name: name, Namespace: "shop", CreationTimestamp: meta.NewTime(began)},
		Spec:       core.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []core.ServicePort{{Name: "http", Port: 80, NodePort: 30080}}},
		Status:     core.ServiceStatus{LoadBalancer: core.LoadBalancerStatus{Ingress: []core.LoadBalancerIngress{{IP: "203.0.113.1"}}}},
	}
}

func newSlice(name, service string, ips ...string) *discovery.EndpointSlice {
	s := &discovery.EndpointSlice{ObjectMeta: meta.ObjectMeta{Name: name, Namespace: "shop", Labels: map[string]string{discovery.LabelServiceName: service}}}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, discovery.Endpoint{Addresses: []string{ip}})
	}
	return s
}

func texts(list [][]byte) (out []string) {
	for _, b := range list {
		a, _ := netip.AddrFromSlice(b)
		out = append(out, a.String())
	}
	return out
}

// One agent of several watches the services; when it stops, another takes over.
func TestOneAgentWatchesServices(t *testing.T) {
	a, s := kubetest.New(t), newServer()
	a.Put(newService("cart", "10.96.0.1"))
	a.Put(newSlice("cart-x", "cart", "10.0.0.2", "10.0.0.1"))
	a.Put(newSlice("cart-y", "cart", "10.0.0.1", "10.0.0.3"))
	a.Put(newSlice("stray", "", "10.0.0.9"))
	a.Put(newService("headless", "None"))
	stops := map[string]func(){}
	for _, id := range []string{"one", "two", "three"} {
		_, stops[id] = start(t, a, s, id, nil)
	}
	s.await(t, "both services are reported", func(s *server) bool {
		return len(s.services) == 2 && len(s.services["shop/cart"].GetEndpoints()) == 3
	})
	s.mu.Lock()
	cart := s.services["shop/cart"]
	if diff := cmp.Diff([]string{"10.96.0.1", "203.0.113.1"}, texts(cart.Addresses)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}, texts(cart.Endpoints)); diff != "" {
		t.Error(diff)
	}
	if cart.StartTimeUnixNano != uint64(began.UnixNano()) || cart.EndpointCount != 3 || len(cart.Ports) != 1 || cart.Ports[0].NodePort != 30080 {
		t.Errorf("reported %v", cart)
	}
	s.mu.Unlock()
	first := a.Holder()
	if n := a.Requests("GET services watch=true"); n != 1 {
		t.Errorf("%d watches of services", n)
	}

	a.Put(newSlice("cart-y", "cart"))
	s.await(t, "the endpoints are removed", func(s *server) bool { return len(s.services["shop/cart"].GetEndpoints()) == 2 })
	stops[first]()
	wait.Until(t, "another agent takes over", func() bool { h := a.Holder(); return h != "" && h != first })
	a.Put(newService("pay", "10.96.0.3"))
	s.await(t, "the new service is reported", func(s *server) bool { return s.services["shop/pay"] != nil })
	a.Remove(newService("cart", "10.96.0.1"))
	s.await(t, "the service is reported as deleted", func(s *server) bool { return s.services["shop/cart"].GetEndTimeUnixNano() != 0 })
	a.Remove(newSlice("cart-x", "cart"))
	a.Put(newService("cart", "10.96.0.7"))
	s.await(t, "the service is reported as living again", func(s *server) bool { return s.services["shop/cart"].GetEndTimeUnixNano() == 0 })
}

func TestWorkloads(t *testing.T) {
	controller := true
	owned := func(kind, name string) *core.Pod {
		p := newPod("a", "10.0.0.1")
		p.OwnerReferences = []meta.OwnerReference{{Kind: "Other", Name: "x"}, {Kind: kind, Name: name, Controller: &controller}}
		return p
	}
	static := owned("Node", "n1")
	static.Name = "etcd-n1"
	static.Annotations = map[string]string{mirrorOf: "0123456789abcdef", "kubernetes.io/config.source": "file"}
	alone := newPod("a", "10.0.0.1")
	alone.OwnerReferences = nil
	tests := map[string]struct {
		pod        *core.Pod
		name, kind string
	}{
		"a Deployment":             {owned("ReplicaSet", "web-5d4f8c7b9"), "web", "Deployment"},
		"a ReplicaSet by itself":   {owned("ReplicaSet", "web"), "web", "ReplicaSet"},
		"a StatefulSet":            {owned("StatefulSet", "kafka"), "kafka", "StatefulSet"},
		"a DaemonSet":              {owned("DaemonSet", "agent"), "agent", "DaemonSet"},
		"a CronJob":                {owned("Job", "backup-29391234"), "backup", "CronJob"},
		"a Job":                    {owned("Job", "migrate-2"), "migrate-2", "Job"},
		"something of an operator": {owned("Rollout", "web"), "web", "Rollout"},
		"a static pod":             {static, "etcd", "Pod"},
		"nothing":                  {alone, "", ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			stripped, err := strip(tc.pod)
			if err != nil {
				t.Fatal(err)
			}
			p := stripped.(*core.Pod)
			if name, kind := workloadOf(p); name != tc.name || kind != tc.kind {
				t.Errorf("%s %s, want %s %s", kind, name, tc.kind, tc.name)
			}
			if len(p.Spec.Containers) != 0 {
				t.Error("the pod was not stripped")
			}
		})
	}
	stripped, _ := strip(static)
	if diff := cmp.Diff([]string{"a", "0123456789abcdef"}, uidsOf(stripped.(*core.Pod))); diff != "" {
		t.Error(diff)
	}
}

func TestEvictedPodEndedAtItsLastChange(t *testing.T) {
	p := newPod("a", "10.0.0.1")
	p.Status.Phase = core.PodFailed
	p.Status.Conditions = []core.PodCondition{
		{LastTransitionTime: meta.NewTime(began.Add(time.Hour))}, {LastTransitionTime: meta.NewTime(began.Add(time.Minute))},
	}
	stripped, _ := strip(p)
	if got := podOf(stripped.(*core.Pod), time.Time{}).EndTimeUnixNano; got != uint64(began.Add(time.Hour).UnixNano()) {
		t.Errorf("the pod ended at %s", time.Unix(0, int64(got)).UTC())
	}
}

// An agent that is not a pod uses the API server that a kubeconfig names, and
// takes the lease in the namespace of its context.
func TestKubeconfig(t *testing.T) {
	a, s := kubetest.New(t), newServer()
	a.Put(newPod("a", "10.0.0.1"))
	cfg := DefaultConfig()
	cfg.Kubeconfig = a.Kubeconfig("metaflow")
	if !cfg.Wanted() {
		t.Error("a kubeconfig is set but not used")
	}
	w, err := New(cfg, Options{Reporter: s, AgentID: "one", Cluster: "prod", Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.client.(*client).core.RESTClient().(*rest.RESTClient).Client.CloseIdleConnections() })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	s.await(t, "the pod is reported", func(s *server) bool { return s.pods["a"] != nil })
	wait.Until(t, "agent one holds the lease", func() bool { return a.Holder() == "one" })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	cfg.Kubeconfig += ".not"
	if _, err := New(cfg, Options{Reporter: s, AgentID: "one", Node: "n1"}); err == nil {
		t.Error("a missing kubeconfig is not an error")
	}
}

func TestConfig(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	err := Config{Enabled: "maybe", Lease: "A b", Namespace: "x.y", Node: "/"}.Validate()
	for _, word := range []string{"enabled", "maybe", "lease", "A b", "namespace", "x.y", "node"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not in %v", word, err)
		}
	}
	if DefaultConfig().Wanted() {
		t.Skip("this is a pod")
	}
	if !(Config{Enabled: True}).Wanted() || (Config{Enabled: False}).Wanted() {
		t.Error("Enabled is ignored")
	}
	if _, err := New(Config{Enabled: True, Node: "n"}, Options{Reporter: newServer(), AgentID: "x"}); err == nil {
		t.Error("Wanted is true outside Kubernetes")
	}
}
