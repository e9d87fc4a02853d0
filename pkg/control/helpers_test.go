package control_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/metaflowys/metaflow-server/pkg/control"
	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/testkit/kafkatest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is the real clock plus an offset.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

// replica is a server with the role control, over a real network.
type replica struct {
	*control.Control

	name   string
	addr   string // of gRPC
	cut    atomic.Bool
	stop   func() // stops it in order
	agents agentv1.ControlServiceClient
}

var errCut = errors.New("network cut")

// cutLog and cutProducer forward to Kafka unless the network is cut.
type cutLog struct {
	control.Log

	cut *atomic.Bool
}

func (l cutLog) Bounds(ctx context.Context, topic string, partition int) (start, end int64, err error) {
	if l.cut.Load() {
		return 0, 0, errCut
	}
	return l.Log.Bounds(ctx, topic, partition)
}

func (l cutLog) Fetch(ctx context.Context, topic string, partition int, offset int64, maxBytes int, maxWait time.Duration) (kafka.Batch, error) {
	if l.cut.Load() {
		return kafka.Batch{}, errCut
	}
	batch, err := l.Log.Fetch(ctx, topic, partition, offset, maxBytes, maxWait)
	if l.cut.Load() {
		return kafka.Batch{}, errCut
	}
	return batch, err
}

type cutProducer struct {
	control.Producer

	cut *atomic.Bool
}

func (p cutProducer) Produce(ctx context.Context, batch []kafka.Outgoing) error {
	if p.cut.Load() {
		return errCut
	}
	return p.Producer.Produce(ctx, batch)
}

// setting is shared by the replicas of a test.
type setting struct {
	broker string
	clock  *clock
	edit   func(*control.Config)
	guard  control.Guard
	kafka  func(*kafka.Config)
}

func newSetting(t testing.TB) *setting {
	t.Helper()
	return &setting{broker: kafkatest.Start(t, broker.Options{}).Addr(), clock: &clock{}}
}

// start runs a replica until the test ends or stops it, and waits until it has read both
// topics.
func (st *setting) start(t testing.TB, name string) *replica {
	t.Helper()
	r := st.begin(t, name)
	if err := r.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// begin is start without waiting for Kafka.
func (st *setting) begin(t testing.TB, name string) *replica {
	t.Helper()
	kcfg := kafkaConfig(st)
	logger := slog.New(slog.NewTextHandler(t.Output(), nil)).With(slog.String("replica", name))
	client, err := kafka.New(kcfg, kafka.Options{Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.EnsureTopics(t.Context(),
		kafka.Topic{Name: schema.TopicControl, Partitions: 1, Forever: true},
		kafka.Topic{Name: schema.TopicResources, Partitions: 1, Compacted: true},
	); err != nil {
		t.Fatal(err)
	}
	commands := client.NewProducer(schema.TopicControl, kafka.ProducerOptions{})
	resources := client.NewProducer(schema.TopicResources, kafka.ProducerOptions{})
	cfg := control.DefaultConfig()
	if st.edit != nil {
		st.edit(&cfg)
	}
	r := &replica{name: name}
	r.Control, err = control.New(cfg, control.Options{
		Log: cutLog{client, &r.cut}, Commands: cutProducer{commands, &r.cut}, Resources: cutProducer{resources, &r.cut},
		Replica: name, Logger: logger, Now: st.clock.now, Guard: st.guard,
	})
	if err != nil {
		t.Fatal(err)
	}
	service, err := rpc.NewControlService(r.Control, rpc.ControlOptions{Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	service.Register(server)
	r.addr = listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	producing, stopProducers := context.WithCancel(context.Background())
	var wg, producers sync.WaitGroup
	run := func(wg *sync.WaitGroup, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				t.Error(err)
			}
		})
	}
	run(&producers, func() error { return commands.Run(producing) })
	run(&producers, func() error { return resources.Run(producing) })
	run(&wg, func() error { return r.Run(ctx) })
	run(&wg, func() error { return server.Serve(listener) })
	conn, err := grpc.NewClient(r.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	r.agents = agentv1.NewControlServiceClient(conn)
	r.stop = sync.OnceFunc(func() {
		conn.Close()
		server.Stop()
		cancel()
		wg.Wait()
		stopProducers()
		producers.Wait()
		client.Close()
	})
	t.Cleanup(r.stop)
	return r
}

func kafkaConfig(st *setting) kafka.Config {
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{st.broker}
	if st.kafka != nil {
		st.kafka(&cfg)
	}
	return cfg
}

// runProducer runs a producer until the test ends.
func runProducer(t testing.TB, client *kafka.Client, topic string) *kafka.Producer {
	t.Helper()
	p := client.NewProducer(topic, kafka.ProducerOptions{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return p
}

// kill makes the replica fall silent, as others see a kill -9.
func (r *replica) kill() {
	r.cut.Store(true)
	r.stop()
}

// agent is the agent's end of a stream.
type agent struct {
	t      testing.TB
	stream agentv1.ControlService_ConnectClient
	close  context.CancelFunc
}

func registration(id, instance string) *agentv1.Registration {
	return &agentv1.Registration{
		AgentId: id, InstanceId: instance, Name: "node-" + id, Host: "host-" + id, Addresses: []string{"10.0.0.1"},
		Version: "v1", StartTimeUnixNano: 1_700_000_000_000_000_000,
	}
}

// connect opens a stream to r and registers.
func connect(t testing.TB, r *replica, reg *agentv1.Registration) *agent {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	stream, err := r.agents.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Registration{Registration: reg}})
	if err != nil {
		t.Fatal(err)
	}
	return &agent{t, stream, cancel}
}

// receive returns the next message, or the error that ended the stream.
func (a *agent) receive() (*agentv1.ConnectResponse, error) {
	a.t.Helper()
	type received struct {
		message *agentv1.ConnectResponse
		err     error
	}
	done := make(chan received, 1)
	go func() {
		m, err := a.stream.Recv()
		done <- received{m, err}
	}()
	select {
	case r := <-done:
		return r.message, r.err
	case <-time.After(wait.Patience):
		a.close()
		<-done
		return nil, errors.New("no message in time")
	}
}

// configuration returns the next configuration.
func (a *agent) configuration() *agentv1.Configuration {
	a.t.Helper()
	for {
		m, err := a.receive()
		if err != nil {
			a.t.Fatal(err)
		}
		if c := m.GetConfiguration(); c != nil {
			return c
		}
	}
}

// beat sends a heartbeat and waits for its reply.
func (a *agent) beat(h *agentv1.Heartbeat) {
	a.t.Helper()
	if err := a.stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Heartbeat{Heartbeat: h}}); err != nil {
		a.t.Fatal(err)
	}
	for {
		m, err := a.receive()
		if err != nil {
			a.t.Fatal(err)
		}
		if m.GetHeartbeatReply() != nil {
			return
		}
	}
}

// await waits until done accepts the agents that r knows.
func await(t testing.TB, r *replica, what string, done func([]api.Agent) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait.Patience)
	defer cancel()
	var last []api.Agent
	err := r.AwaitAgents(ctx, func(list []api.Agent) bool {
		last = list
		return done(list)
	})
	if err != nil {
		t.Fatalf("%s does not show %s: %v; it has %+v", r.name, what, err, last)
	}
}

// awaitAgent waits until done accepts the only agent.
func awaitAgent(t testing.TB, r *replica, what string, done func(api.Agent) bool) {
	t.Helper()
	await(t, r, what, func(list []api.Agent) bool { return len(list) == 1 && done(list[0]) })
}

// must fails the test if a call returns an error.
func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// yamlOf returns a group's configuration as r has it.
func yamlOf(t testing.TB, r *replica, group string) string {
	t.Helper()
	return must[api.Configuration](t)(r.Configuration(t.Context(), group)).YAML
}

func update(t testing.TB, r *replica, group, text string) api.Update {
	t.Helper()
	return must[api.Update](t)(r.UpdateConfiguration(t.Context(), group, []byte(text), api.UpdateOptions{}))
}

// problemOf returns the code of err and its text.
func problemOf(err error) string {
	var p *api.Problem
	if !errors.As(err, &p) {
		return fmt.Sprint(err)
	}
	return p.Code + ": " + p.Error()
}

// confirm sends a heartbeat that confirms a configuration.
func (a *agent) confirm(c api.Configuration) {
	a.t.Helper()
	a.beat(&agentv1.Heartbeat{GroupId: c.GroupID, Revision: c.Revision})
}
