package follow

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"
	"go.uber.org/goleak"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const topic = "metaflow.test"

// memory stores what a follower delivers.
type memory struct {
	mu        sync.Mutex
	values    []string
	forgotten []error
	change    chan struct{}
}

func (m *memory) Take(s Step) {
	m.update(func() {
		for _, r := range s.Records {
			m.values = append(m.values, string(r.Value))
		}
	})
}
func (m *memory) Unreadable(int64, error) {}
func (m *memory) Failed(error)            {}
func (m *memory) Forget(err error) {
	m.update(func() { m.values, m.forgotten = nil, append(m.forgotten, err) })
}

func (m *memory) update(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	close(m.change)
	m.change = make(chan struct{})
}

// await waits until the memory holds exactly want, and returns the errors of Forget.
func (m *memory) await(t *testing.T, want ...string) []error {
	t.Helper()
	timeout := time.After(wait.Patience)
	for {
		m.mu.Lock()
		got, forgotten, change := append([]string(nil), m.values...), append([]error(nil), m.forgotten...), m.change
		m.mu.Unlock()
		if cmp.Equal(want, got) {
			return forgotten
		}
		select {
		case <-change:
		case <-timeout:
			t.Fatalf("memory holds %q, want %q", got, want)
		}
	}
}

// A topic is deleted and recreated, and the new log soon reaches the old length. The
// follower reads the new log from its beginning.
func TestRecreatedTopicIsReadFromItsBeginning(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	cfg := kafka.DefaultConfig()
	cfg.Brokers = cluster.ListenAddrs()
	client, err := kafka.New(cfg, kafka.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	create := func(values ...string) {
		t.Helper()
		if err := cluster.CreateTopic(topic, 1, nil); err != nil {
			t.Fatal(err)
		}
		client.Close() // drops the producer's connections and the cached topic
		producer := client.NewProducer(topic, kafka.ProducerOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- producer.Run(ctx) }()
		for _, v := range values {
			if err := producer.Produce(ctx, []kafka.Outgoing{{Value: []byte(v), Headers: []delivery.Header{}}}); err != nil {
				t.Error(err)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	create("a", "b")
	sink := &memory{change: make(chan struct{})}
	gate := &gate{Client: client}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New(topic, gate, sink, nil).Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	if forgotten := sink.await(t, "a", "b"); len(forgotten) != 0 {
		t.Errorf("forgotten for %v", forgotten)
	}

	gate.closed.Lock()
	if err := cluster.DeleteTopic(topic); err != nil {
		t.Fatal(err)
	}
	create("c", "d", "e")
	gate.closed.Unlock()
	forgotten := sink.await(t, "c", "d", "e")
	if len(forgotten) != 1 || !errors.Is(forgotten[0], kafka.ErrTopicChanged) {
		t.Errorf("forgotten for %v, want ErrTopicChanged", forgotten)
	}
}

// gate blocks fetches while the test changes the topic.
type gate struct {
	*kafka.Client
	closed sync.RWMutex
}

func (g *gate) Fetch(ctx context.Context, topic string, partition int, offset int64, maxBytes int, _ time.Duration) (kafka.Batch, error) {
	g.closed.RLock()
	defer g.closed.RUnlock()
	return g.Client.Fetch(ctx, topic, partition, offset, maxBytes, 50*time.Millisecond)
}
