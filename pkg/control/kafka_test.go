package control_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/control"
	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/kafkatest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Kafka goes away and comes back: reads are served from memory, agents keep their streams
// and states, changes are refused with the cause, and afterwards everything recovers by
// itself.
func TestKafkaAway(t *testing.T) {
	t.Parallel()
	opts := broker.Options{Listen: ports.FreeAddress(t), DataDir: t.TempDir()}
	first, err := broker.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	st := &setting{broker: first.Addr(), clock: &clock{}, kafka: func(c *kafka.Config) { c.ProduceTimeout = 2 * time.Second }}
	r := st.start(t, "a")
	update(t, r, "default", "inputs: {integration: {enabled: true}}")
	agent := connect(t, r, registration("one", "i"))
	c := agent.configuration()
	agent.beat(&agentv1.Heartbeat{GroupId: c.GroupId, Revision: c.Revision})
	awaitAgent(t, r, "a running agent", in(api.StateRunning))
	before := ask(t, r)

	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	st.clock.advance(10 * fleet.LostAfter)
	if diff := cmp.Diff(before, ask(t, r)); diff != "" {
		t.Errorf("without Kafka (-before +now):\n%s", diff)
	}
	_, err = r.UpdateConfiguration(t.Context(), "default", []byte("inputs: {integration: {enabled: false}}"), api.UpdateOptions{})
	if got := problemOf(err); !strings.HasPrefix(got, "unavailable: nothing was changed, because kafka is unreachable: ") {
		t.Errorf("a change without Kafka: %s", got)
	}
	if u, err := r.UpdateConfiguration(t.Context(), "default", []byte("inputs: {integration: {enabled: false}}"), api.UpdateOptions{DryRun: true}); err != nil || len(u.Changes) != 1 {
		t.Errorf("a dry run without Kafka: %+v, %v", u, err)
	}
	agent.beat(&agentv1.Heartbeat{GroupId: c.GroupId, Revision: c.Revision, Exceptions: []string{"said while Kafka was away"}})
	if c := connect(t, r, registration("two", "i")).configuration(); c.Revision != before.Groups[0].Revision {
		t.Errorf("an agent that came meanwhile got %v", c)
	}

	kafkatest.Start(t, opts)
	await(t, r, "what agents said meanwhile", func(list []api.Agent) bool {
		return len(list) == 2 && len(list[0].Exceptions) == 1
	})
	update(t, r, "default", "inputs: {integration: {listen_port: 4318}}")
	if c := agent.configuration(); !strings.Contains(c.Yaml, "enabled: true") || !strings.Contains(c.Yaml, "4318") {
		t.Errorf("the configuration afterwards is %v", c)
	}
}

// A server that has not read Kafka yet reports that to operators and agents, and accepts
// both as soon as it has.
func TestKafkaNotThereYet(t *testing.T) {
	t.Parallel()
	st := newSetting(t)
	st.start(t, "other")
	r := st.begin(t, "a")
	r.cut.Store(true)
	r.stop()

	cold, err := control.New(control.DefaultConfig(), control.Options{Log: cutLog{nil, &r.cut}, Replica: "cold"})
	if err != nil {
		t.Fatal(err)
	}
	if err := cold.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), schema.TopicControl) {
		t.Errorf("ready before anything was read: %v", err)
	}
	if _, err := cold.Agents(t.Context()); !strings.HasPrefix(problemOf(err), "unavailable: this server has not read metaflow.control yet: network cut") {
		t.Errorf("agents before anything was read: %v", err)
	}
	if _, err := cold.Join(t.Context(), registration("one", "i"), ""); err == nil || !strings.Contains(err.Error(), "has not read the agent groups yet") {
		t.Errorf("an agent before anything was read: %v", err)
	}
}

// An acknowledgement is lost and the command is sent again: it is in the log twice and
// counts once, at every replica. Malformed records are skipped.
func TestStrangeLog(t *testing.T) {
	t.Parallel()
	st := newSetting(t)
	r := st.start(t, "a")
	client, err := kafka.New(kafkaConfig(st), kafka.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	write := func(topic string, records ...kafka.Outgoing) {
		t.Helper()
		if err := runProducer(t, client, topic).Produce(t.Context(), records); err != nil {
			t.Fatal(err)
		}
	}
	create := &agentv1.Command{RequestId: "r1", Change: &agentv1.Command_CreateGroup{CreateGroup: &agentv1.CreateGroup{GroupId: "g-0123456789", Name: "edge"}}}
	remove := &agentv1.Command{RequestId: "r2", Change: &agentv1.Command_DeleteGroup{DeleteGroup: &agentv1.DeleteGroup{GroupId: "g-0123456789"}}}
	value := func(c *agentv1.Command) kafka.Outgoing {
		return kafka.Outgoing{Value: must[[]byte](t)(proto.Marshal(c))}
	}
	write(schema.TopicControl, kafka.Outgoing{Value: []byte("\xff")}, value(create), value(create), value(remove), value(create), kafka.Outgoing{})
	write(schema.TopicResources, kafka.Outgoing{Key: []byte("agent/x"), Value: []byte("\xff")}, kafka.Outgoing{Key: []byte("pod/x"), Value: []byte("\xff")}, kafka.Outgoing{}, kafka.Outgoing{Key: []byte("agent/y"), Value: []byte{}})
	for _, r := range []*replica{r, st.start(t, "b")} {
		a := ask(t, r)
		if len(a.Groups) != 1 || len(a.Agents) != 0 {
			t.Errorf("%s has %+v", r.name, a)
		}
	}
	if u := update(t, r, "default", "inputs: {integration: {enabled: true}}"); u.Revision != 8 {
		t.Errorf("after six records the revision is %d, want 8", u.Revision)
	}
}

// The topics are deleted and recreated: the new logs count, and agents keep their
// configuration until those are read.
func TestRecreatedTopic(t *testing.T) {
	t.Parallel()
	b := kafkatest.Start(t, broker.Options{})
	st := &setting{broker: b.Addr(), clock: &clock{}}
	r := st.start(t, "a")
	for _, text := range []string{"inputs: {integration: {enabled: true}}", "inputs: {integration: {listen_port: 4318}}"} {
		update(t, r, "default", text)
	}
	must[api.Group](t)(r.CreateGroup(t.Context(), "edge", ""))
	if err := b.Cluster().DeleteTopic(schema.TopicControl); err != nil {
		t.Fatal(err)
	}
	st.start(t, "b") // creates the topic
	u := update(t, r, "default", "inputs: {flow: {enabled: false}}")
	if u.Revision != 2 || len(must[[]api.Group](t)(r.Groups(t.Context()))) != 1 {
		t.Errorf("update %+v", u)
	}
	if yaml := yamlOf(t, r, "default"); strings.Contains(yaml, "integration") {
		t.Errorf("the old log is still in it:\n%s", yaml)
	}
}

// When a server stops, its agents are told to reconnect elsewhere and do not count as
// lost.
func TestOrderlyStop(t *testing.T) {
	t.Parallel()
	st := newSetting(t)
	first, second := st.start(t, "first"), st.start(t, "second")
	agent := connect(t, first, registration("one", "i"))
	agent.configuration()
	awaitAgent(t, second, "it", func(a api.Agent) bool { return a.Replica == "first" })
	first.stop()
	if _, err := agent.receive(); status.Code(err) == codes.OK {
		t.Error("the stream is still open")
	}
	awaitAgent(t, second, "its end", func(a api.Agent) bool { return a.Replica == "" })
}
