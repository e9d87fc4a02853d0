package inventory

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/inventory/index"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/kafkatest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a Kafka and a clock that all replicas share.
type world struct {
	t      testing.TB
	broker string
	ahead  atomic.Int64
}

func (w *world) now() time.Time          { return time.Now().Add(time.Duration(w.ahead.Load())) }
func (w *world) nanos() uint64           { return uint64(w.now().UnixNano()) }
func (w *world) advance(d time.Duration) { w.ahead.Add(int64(d)) }

func newWorld(t testing.TB) *world {
	t.Helper()
	return &world{t: t, broker: kafkatest.Start(t, broker.Options{}).Addr()}
}

// client returns a connection to Kafka until the test ends.
func (w *world) client(name string) (*kafka.Client, *slog.Logger) {
	w.t.Helper()
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{w.broker}
	log := slog.New(slog.NewTextHandler(w.t.Output(), nil)).With(slog.String("replica", name))
	c, err := kafka.New(cfg, kafka.Options{Logger: log})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	if err := c.EnsureTopics(w.t.Context(), kafka.Topic{Name: schema.TopicResources, Partitions: 1, Compacted: true}); err != nil {
		w.t.Fatal(err)
	}
	return c, log
}

// replica runs a replica until the test ends. It has read the topic.
func (w *world) replica(name string, edit func(*Config)) *Resources {
	w.t.Helper()
	client, log := w.client(name)
	producer := client.NewProducer(schema.TopicResources, kafka.ProducerOptions{})
	cfg := DefaultConfig()
	if edit != nil {
		edit(&cfg)
	}
	r, err := New(cfg, Options{Log: client, Producer: producer, Logger: log, Registerer: prometheus.NewRegistry(), Now: w.now})
	if err != nil {
		w.t.Fatal(err)
	}
	w.run(producer.Run)
	w.run(r.Run)
	wait.Until(w.t, name+" has read the topic", func() bool { return r.Ready(w.t.Context()) == nil })
	return r
}

// run runs f until the test ends.
func (w *world) run(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

func (w *world) pod(uid, ip string) *agentv1.Pod {
	return &agentv1.Pod{Uid: uid, Namespace: "shop", Name: "web-" + uid, Workload: "web", WorkloadKind: "Deployment", Addresses: []*agentv1.PodAddress{
		{Address: netip.MustParseAddr(ip).AsSlice(), ValidFromUnixNano: w.nanos()},
	}}
}

func (w *world) complete(node string, pods ...*agentv1.Pod) *agentv1.ReportRequest {
	return &agentv1.ReportRequest{AgentId: "a-" + node, Cluster: "prod", Node: node, TimeUnixNano: w.nanos(), Complete: true, Pods: pods}
}

// register makes r know a node's agent. A minute later the agent counts as disconnected.
func register(t testing.TB, r *Resources, id, node string) {
	t.Helper()
	value, err := proto.Marshal(&agentv1.AgentStatus{
		Registration: &agentv1.Registration{AgentId: id, Name: node, Cluster: "prod"}, Replica: "r", SeenTimeUnixNano: uint64(r.opts.Now().UnixNano()),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.index.Observe(fleet.AgentKey(id), value); err != nil {
		t.Fatal(err)
	}
}

func report(t testing.TB, r *Resources, request *agentv1.ReportRequest) {
	t.Helper()
	register(t, r, request.AgentId, request.Node)
	rejected, why, err := r.Report(t.Context(), request)
	if err != nil || rejected != 0 {
		t.Fatalf("%d rejected: %s; %v", rejected, why, err)
	}
}

// Two replicas know the same, whichever replica an agent reports to, and so does one that
// starts later.
func TestReplicasKnowTheSame(t *testing.T) {
	w := newWorld(t)
	one, two := w.replica("one", nil), w.replica("two", nil)
	report(t, one, w.complete("n1", w.pod("a", "10.0.0.1"), w.pod("b", "10.0.0.2")))
	early := w.nanos()
	who := func(r *Resources, ip string, at uint64) string {
		return r.Resolve("prod", netip.MustParseAddr(ip), at).UID
	}
	if got := who(one, "10.0.0.1", early); got != "a" {
		t.Errorf("the replica with the report does not know it: %q", got)
	}
	wait.Until(t, "the other replica knows both", func() bool { return who(two, "10.0.0.1", early) == "a" && who(two, "10.0.0.2", early) == "b" })

	// An hour later the pod is gone, and another pod on another node has its address,
	// reported to another replica.
	w.advance(time.Hour)
	report(t, two, w.complete("n1", w.pod("b", "10.0.0.2")))
	w.advance(time.Minute)
	report(t, two, w.complete("n2", w.pod("c", "10.0.0.1")))
	late := w.nanos()
	three := w.replica("three", nil)
	for name, r := range map[string]*Resources{"one": one, "two": two, "three": three} {
		wait.Until(t, name+" knows of then and now", func() bool {
			return who(r, "10.0.0.1", early) == "a" && who(r, "10.0.0.1", late) == "c" && who(r, "10.0.0.2", late) == "b" && who(r, "10.0.0.9", late) == ""
		})
	}
	h := three.Resolve("prod", netip.MustParseAddr("10.0.0.1"), late)
	if h != (index.Holder{Kind: index.Pod, Namespace: "shop", Name: "web-c", UID: "c", Node: "n2", Workload: "web"}) {
		t.Errorf("%+v", h)
	}

	// An unchanged report is not written at first, and written after hours.
	_, end, err := one.opts.Log.Bounds(t.Context(), schema.TopicResources, 0)
	if err != nil {
		t.Fatal(err)
	}
	report(t, three, w.complete("n2", w.pod("c", "10.0.0.1")))
	if _, now, err := one.opts.Log.Bounds(t.Context(), schema.TopicResources, 0); err != nil || now != end {
		t.Errorf("%d records, %v", now-end, err)
	}
}

// A node dies with its agent. Its pods end with their last report and are eventually
// forgotten.
func TestNodeThatIsGone(t *testing.T) {
	w := newWorld(t)
	one := w.replica("one", func(c *Config) { c.ForgetAfter = 24 * time.Hour })
	report(t, one, w.complete("n1", w.pod("a", "10.0.0.1")))
	report(t, one, &agentv1.ReportRequest{AgentId: "x", Cluster: "prod", TimeUnixNano: w.nanos(), Services: []*agentv1.Service{
		{Namespace: "shop", Name: "cart", Addresses: [][]byte{{10, 96, 0, 1}}, StartTimeUnixNano: w.nanos()},
	}})
	seen := w.nanos()
	kind := func(ip string, at uint64) index.Kind { return one.Resolve("prod", netip.MustParseAddr(ip), at).Kind }
	w.advance(12 * time.Hour)
	sweep := func() {
		t.Helper()
		if err := one.sweepOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	sweep()
	if kind("10.0.0.1", w.nanos()) != index.Pod {
		t.Error("the pod ended too early")
	}
	w.advance(2 * time.Hour)
	sweep()
	if kind("10.0.0.1", w.nanos()) != index.Nobody || kind("10.0.0.1", seen) != index.Pod || kind("10.96.0.1", w.nanos()) != index.Nobody {
		t.Error("the pod has not ended with its last report")
	}
	w.advance(24 * time.Hour)
	sweep()
	wait.Until(t, "it is forgotten", func() bool { return kind("10.0.0.1", seen) == index.Nobody })
	if pods, services := one.index.Count(); pods != 0 || services != 0 {
		t.Errorf("%d pods and %d services are left", pods, services)
	}
}

// A malformed object is rejected by itself, with a reason.
func TestMalformedObjectsAreRejected(t *testing.T) {
	w := newWorld(t)
	one := w.replica("one", func(c *Config) { c.MaxObjects = 3 })
	short := w.pod("short", "10.0.0.1")
	short.Addresses[0].Address = []byte{1, 2, 3}
	long := w.pod("long", "10.0.0.1")
	long.Name = strings.Repeat("x", 1000)
	many := w.pod("many", "10.0.0.1")
	for i := range 100 {
		many.Addresses = append(many.Addresses, &agentv1.PodAddress{Address: []byte{1, 1, 1, byte(i)}})
	}
	request := w.complete("n1", short, w.pod("", "10.0.0.1"), long, many, w.pod("a/b", "10.0.0.1"), w.pod("ok", "10.0.0.2"))
	request.Services = []*agentv1.Service{{Namespace: "shop"}, {Namespace: "shop", Name: "cart"}}
	register(t, one, "a-n1", "n1")
	register(t, one, "a-n2", "n2")
	rejected, why, err := one.Report(t.Context(), request)
	if err != nil || rejected != 6 || !strings.Contains(why, "3 bytes") {
		t.Errorf("%d rejected: %s; %v", rejected, why, err)
	}
	if one.Resolve("prod", netip.MustParseAddr("10.0.0.2"), w.nanos()).UID != "ok" {
		t.Error("the others are not known")
	}
	request = w.complete("n2")
	for i := range 5 {
		request.Pods = append(request.Pods, w.pod(fmt.Sprint(i), fmt.Sprintf("10.0.1.%d", i)))
	}
	if rejected, why, err := one.Report(t.Context(), request); err != nil || rejected != 4 || !strings.Contains(why, "max_objects") {
		t.Errorf("%d rejected: %s; %v", rejected, why, err)
	}
}

// An agent's clock is a day ahead. Later reports still correct its reports.
func TestClockAhead(t *testing.T) {
	w := newWorld(t)
	one := w.replica("one", nil)
	request := w.complete("n1", w.pod("a", "10.0.0.1"))
	request.TimeUnixNano += uint64(24 * time.Hour)
	report(t, one, request)
	w.advance(time.Minute)
	report(t, one, w.complete("n1"))
	w.advance(time.Minute)
	if h := one.Resolve("prod", netip.MustParseAddr("10.0.0.1"), w.nanos()); h.Kind != index.Nobody {
		t.Errorf("%+v", h)
	}
}

// Await returns when the topic has been read, and otherwise returns the reason when ctx
// ends.
func TestAwait(t *testing.T) {
	w := newWorld(t)
	client, log := w.client("r1")
	r, err := New(DefaultConfig(), Options{Log: client, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := r.Await(short); err == nil || !strings.Contains(err.Error(), schema.TopicResources) {
		t.Errorf("before anything runs: %v", err)
	}
	w.run(r.Run)
	long, cancel := context.WithTimeout(t.Context(), wait.Patience)
	defer cancel()
	if err := r.Await(long); err != nil {
		t.Error(err)
	}
}
