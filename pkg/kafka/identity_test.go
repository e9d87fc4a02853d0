package kafka_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// The tests of this file that take brokers run on the embedded broker here and on Apache
// Kafka in apache_test.go.

// generations are versions of the embedded broker whose requests differ: names or ids in
// fetches and in commits.
var generations = map[string]*kversion.Versions{
	"2.3": kversion.V2_3_0(), "2.4": kversion.V2_4_0(), "2.8": kversion.V2_8_0(), "3.1": kversion.V3_1_0(), "newest": nil,
}

func eachGeneration(t *testing.T, test func(t *testing.T, brokers []string)) {
	for name, versions := range generations {
		t.Run(name, func(t *testing.T) {
			var opts []kfake.Opt
			if versions != nil {
				opts = append(opts, kfake.MaxVersions(versions))
			}
			test(t, startCluster(t, opts...).ListenAddrs())
		})
	}
}

// clientOf returns a client of brokers and its metrics.
func clientOf(t *testing.T, brokers []string) (*kafka.Client, *prometheus.Registry) {
	t.Helper()
	cfg := kafka.DefaultConfig()
	cfg.Brokers = brokers
	reg := prometheus.NewRegistry()
	client, err := kafka.New(cfg, kafka.Options{Logger: testLogger(t), Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client, reg
}

// topicName derives a topic name from the test's name.
func topicName(t *testing.T) string {
	return strings.NewReplacer("/", ".", "#", "-", " ", "-").Replace(t.Name())
}

// admin is another client, for operations that the package does not have.
type admin struct {
	t *testing.T
	*kgo.Client
}

func adminOf(t *testing.T, brokers []string, opts ...kgo.Opt) admin {
	t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(brokers...)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return admin{t, client}
}

func (a admin) check(code int16, err error) {
	a.t.Helper()
	if err == nil {
		err = kerr.ErrorForCode(code)
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

func (a admin) create(name string, partitions int32) {
	a.t.Helper()
	req, topic := kmsg.NewPtrCreateTopicsRequest(), kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = name, partitions, 1
	req.Topics, req.TimeoutMillis = append(req.Topics, topic), 10_000
	wait.Until(a.t, "the topic is created", func() bool {
		res, err := req.RequestWith(a.t.Context(), a)
		if err != nil {
			a.t.Fatal(err)
		}
		err = kerr.ErrorForCode(res.Topics[0].ErrorCode)
		if errors.Is(err, kerr.TopicAlreadyExists) {
			return false // deleted, but not gone yet
		}
		a.check(0, err)
		return true
	})
}

func (a admin) grow(name string, partitions int32) {
	a.t.Helper()
	req, topic := kmsg.NewPtrCreatePartitionsRequest(), kmsg.NewCreatePartitionsRequestTopic()
	topic.Topic, topic.Count = name, partitions
	req.Topics, req.TimeoutMillis = append(req.Topics, topic), 10_000
	res, err := req.RequestWith(a.t.Context(), a)
	if err != nil {
		a.t.Fatal(err)
	}
	a.check(res.Topics[0].ErrorCode, nil)
}

func (a admin) delete(name string) {
	a.t.Helper()
	req, topic := kmsg.NewPtrDeleteTopicsRequest(), kmsg.NewDeleteTopicsRequestTopic()
	topic.Topic = &name
	req.Topics, req.TopicNames, req.TimeoutMillis = append(req.Topics, topic), []string{name}, 10_000
	res, err := req.RequestWith(a.t.Context(), a)
	if err != nil {
		a.t.Fatal(err)
	}
	a.check(res.Topics[0].ErrorCode, nil)
}

// All members follow a topic that grows, is deleted and is recreated with fewer
// partitions at once, and requests for the old topic are refused.
func TestTopicIsFollowed(t *testing.T) { eachGeneration(t, topicIsFollowed) }

func topicIsFollowed(t *testing.T, brokers []string) {
	name := topicName(t)
	admin := adminOf(t, brokers)
	admin.create(name, 3)
	client, reg := clientOf(t, brokers)
	other, _ := clientOf(t, brokers)
	first := startMemberOf(t, client, name, nil)
	first.await(3)
	second := startMemberOf(t, other, name, nil)
	awaitAll(t, []int{0, 1, 2}, first, second)

	admin.grow(name, 6)
	claims := awaitAll(t, []int{0, 1, 2, 3, 4, 5}, first, second)
	old := claims[0]
	if err := old.CommitPosition(t.Context(), kafka.Position{Offset: 7, LeaderEpoch: 0, Metadata: "plan"}); err != nil {
		t.Fatal(err)
	}
	want := kafka.Position{Offset: 7, LeaderEpoch: 0, Metadata: "plan"}
	if got, err := old.Position(t.Context()); got != want || err != nil {
		t.Errorf("Position = %+v, %v; want %+v", got, err, want)
	}

	admin.delete(name)
	awaitAll(t, nil, first, second)
	admin.create(name, 2)
	claims = awaitAll(t, []int{0, 1}, first, second)
	byID := !old.TopicID().IsZero()
	if again := claims[0].TopicID(); byID && again == old.TopicID() {
		t.Errorf("the new topic has the id of the old one, %s", again)
	}
	if byID {
		_, _, bounds := old.Bounds(t.Context())
		_, fetch := old.Fetch(t.Context(), 0, 1<<20, time.Millisecond)
		_, position := old.Position(t.Context())
		commit := old.CommitPosition(t.Context(), kafka.Position{Offset: 8, LeaderEpoch: -1})
		for what, err := range map[string]error{"Bounds": bounds, "Fetch": fetch, "Position": position, "CommitPosition": commit} {
			if !errors.Is(err, kafka.ErrTopicChanged) {
				t.Errorf("%s of a claim of the topic before = %v, want ErrTopicChanged", what, err)
			}
		}
	}
	if b, err := claims[0].Fetch(t.Context(), 0, 1<<20, time.Millisecond); err != nil || b.TopicID != claims[0].TopicID() {
		t.Errorf("Fetch = %+v, %v", b, err)
	}
	// A member that looks between the two sees deleted and created, another one recreated.
	if n, err := testutil.GatherAndCount(reg, "metaflow_kafka_topic_changes_total"); n < 2 || err != nil {
		t.Errorf("%d kinds of change are counted, %v; want grown, and deleted and created or recreated", n, err)
	}
}

// awaitAll waits until the members together own exactly the wanted partitions, and
// returns the claims.
func awaitAll(t *testing.T, want []int, members ...*member) map[int]*kafka.Claim {
	t.Helper()
	var all map[int]*kafka.Claim
	wait.Until(t, fmt.Sprintf("the members own the partitions %v", want), func() bool {
		var parts []map[int]*kafka.Claim
		all = map[int]*kafka.Claim{}
		for _, m := range members {
			part := m.now()
			parts = append(parts, part)
			maps.Copy(all, part)
		}
		return cmp.Equal(want, partitionsOf(parts...))
	})
	return all
}

// held are commits that the network delays. The client sees them sent.
type held struct {
	mu      sync.Mutex
	holding bool
	addr    string
	frames  [][]byte
	caught  func() // called with each commit that is held
}

type heldConn struct {
	net.Conn
	held *held
}

func (c heldConn) Write(b []byte) (int, error) {
	c.held.mu.Lock()
	defer c.held.mu.Unlock()
	if c.held.holding && len(b) > 6 && binary.BigEndian.Uint16(b[4:]) == uint16(kmsg.OffsetCommit) {
		c.held.addr = c.RemoteAddr().String()
		c.held.frames = append(c.held.frames, append([]byte{}, b...))
		c.held.caught()
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (h *held) hold(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.holding = on
}

// deliver sends the held commits, each on its own connection, and returns the responses.
func (h *held) deliver(t *testing.T) []error {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	var answers []error
	for _, frame := range h.frames {
		conn, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(frame); err != nil {
			t.Fatal(err)
		}
		var size [4]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			t.Fatal(err)
		}
		body := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(conn, body); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		res := kmsg.NewPtrOffsetCommitResponse()
		res.SetVersion(int16(binary.BigEndian.Uint16(frame[6:])))
		body = body[4:] // correlation
		if res.IsFlexible() {
			body = body[1:] // no tags
		}
		if err := res.ReadFrom(body); err != nil {
			t.Fatal(err)
		}
		answers = append(answers, kerr.ErrorForCode(res.Topics[0].Partitions[0].ErrorCode))
	}
	return answers
}

// A commit is delayed in the network. By the time it arrives, its sender has another
// member id, so it cannot overwrite later commits, even if the sender was not the group's
// leader and would have got the same generation again.
func TestLateCommitIsRefused(t *testing.T) { eachGeneration(t, lateCommitIsRefused) }

func lateCommitIsRefused(t *testing.T, brokers []string) {
	name := topicName(t)
	adminOf(t, brokers).create(name, 2)
	leader, _ := clientOf(t, brokers)
	other := startMemberOf(t, leader, name, nil)
	other.await(2)

	client, reg := clientOf(t, brokers)
	unanswered, stop := context.WithCancel(t.Context()) // ends when the commit was sent
	defer stop()
	network := &held{caught: stop}
	client.Intercept(func(c net.Conn) net.Conn { return heldConn{c, network} })
	claims := make(chan *kafka.Claim)
	giveUp := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	group := client.NewGroup(name, name, memberOptions)
	var running sync.WaitGroup
	running.Go(func() {
		err := group.Run(ctx, func(ctx context.Context, c *kafka.Claim) error {
			select {
			case claims <- c:
			case <-ctx.Done():
				return nil
			}
			select {
			case <-giveUp:
			case <-ctx.Done():
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()

	claim := <-claims
	network.hold(true)
	for _, offset := range []int64{1, 2} { // the second one is not even sent
		err := claim.CommitPosition(unanswered, kafka.Position{Offset: offset, LeaderEpoch: -1, Metadata: "late"})
		if !errors.Is(err, kafka.ErrCommitUnknown) || fault.ClassOf(err) != fault.Fenced {
			t.Errorf("a commit without a response = %v, want ErrCommitUnknown of class fenced", err)
		}
	}
	network.hold(false)
	giveUp <- struct{}{}

	// Other members may own the partition now; the new owner continues.
	other.cancel()
	var again *kafka.Claim
	for again == nil || again.Partition() != claim.Partition() {
		select {
		case again = <-claims:
		case <-time.After(patience):
			t.Fatal("the partition was not assigned again")
		}
	}
	if again.Generation() <= claim.Generation() || kafka.MemberID(again) == kafka.MemberID(claim) {
		t.Errorf("generation %d of member %s follows %d of %s", again.Generation(), kafka.MemberID(again), claim.Generation(), kafka.MemberID(claim))
	}
	next := kafka.Position{Offset: 5, LeaderEpoch: -1, Metadata: "the next plan"}
	if err := commitInTime(t, again, next, claims); err != nil {
		t.Fatal(err)
	}
	answers := network.deliver(t)
	if len(answers) != 1 || (!errors.Is(answers[0], kerr.UnknownMemberID) && !errors.Is(answers[0], kerr.IllegalGeneration)) {
		t.Errorf("response to the late commit = %v, want a refusal", answers)
	}
	if got, err := again.Position(t.Context()); got != next || err != nil {
		t.Errorf("Position = %+v, %v; want %+v", got, err, next)
	}
	expected := `# HELP metaflow_kafka_unknown_commits_total Commits without a definite response, after which this member rejoined the consumer group under a new id.
# TYPE metaflow_kafka_unknown_commits_total counter
metaflow_kafka_unknown_commits_total{group="` + name + `"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(expected), "metaflow_kafka_unknown_commits_total"); err != nil {
		t.Error(err)
	}
}

// commitInTime commits p, through a later claim of the same partition if a rebalance
// intervenes.
func commitInTime(t *testing.T, c *kafka.Claim, p kafka.Position, later <-chan *kafka.Claim) error {
	t.Helper()
	for {
		err := c.CommitPosition(t.Context(), p)
		if fault.ClassOf(err) != fault.Fenced {
			return err
		}
		for again := range later {
			if again.Partition() == c.Partition() {
				c = again
				break
			}
		}
	}
}

// Fetches return no records of aborted or open transactions, nor records after an open
// one.
func TestReadCommitted(t *testing.T) { eachGeneration(t, readCommitted) }

func readCommitted(t *testing.T, brokers []string) {
	name := topicName(t)
	adminOf(t, brokers).create(name, 1)
	client, _ := clientOf(t, brokers)
	plain := adminOf(t, brokers, kgo.DefaultProduceTopic(name), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	transactions := map[string]admin{}
	for _, id := range []string{"a", "b"} {
		transactions[id] = adminOf(t, brokers, kgo.TransactionalID(name+id), kgo.DefaultProduceTopic(name), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	}
	say := func(by admin, value string) {
		t.Helper()
		if err := by.ProduceSync(t.Context(), kgo.StringRecord(value)).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	begin := func(id string) {
		t.Helper()
		if err := transactions[id].BeginTransaction(); err != nil {
			t.Fatal(err)
		}
	}
	end := func(id string, how kgo.TransactionEndTry) {
		t.Helper()
		if err := transactions[id].EndTransaction(t.Context(), how); err != nil {
			t.Fatal(err)
		}
	}
	begin("a")
	say(transactions["a"], "a: aborted")
	say(plain, "plain 1")
	begin("b")
	say(transactions["b"], "b: committed")
	say(transactions["a"], "a: aborted, too")
	end("a", kgo.TryAbort)
	end("b", kgo.TryCommit)
	begin("a")
	say(transactions["a"], "a: committed")
	end("a", kgo.TryCommit)
	// Brokers may answer before they have written the marker that ends a
	// transaction; the next one must begin after it.
	wait.Until(t, "the transaction ends", func() bool {
		_, end, err := client.Bounds(t.Context(), name, 0)
		return err == nil && end == 8
	})
	begin("b")
	say(transactions["b"], "b: open")
	say(plain, "plain 2")

	claim := startMemberOf(t, client, name, nil).await(1)[0]
	_, stable, err := claim.Bounds(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The open transaction and everything after it lie beyond.
	logEnd := stable + 2
	for _, maxBytes := range []int{1, 1 << 20} { // batch by batch, and all at once
		var got []string
		next := int64(0)
		for next < stable {
			b, err := claim.Fetch(t.Context(), next, maxBytes, patience)
			if err != nil {
				t.Fatal(err)
			}
			if b.HighWatermark != stable || b.LogEnd != logEnd {
				t.Errorf("HighWatermark = %d, LogEnd = %d; want %d as in Bounds, and %d", b.HighWatermark, b.LogEnd, stable, logEnd)
			}
			got = append(got, values(b.Records)...)
			next = b.Next
		}
		if diff := cmp.Diff([]string{"plain 1", "b: committed", "a: committed"}, got); diff != "" {
			t.Errorf("by %d bytes (-want +got):\n%s", maxBytes, diff)
		}
		if b, err := claim.Fetch(t.Context(), next, maxBytes, 10*time.Millisecond); err != nil || len(b.Records) != 0 || b.Next != next {
			t.Errorf("after the last stable offset: %+v, %v", b, err)
		}
	}
	end("b", kgo.TryAbort)
	b, err := claim.Fetch(t.Context(), stable, 1<<20, patience)
	for err == nil && len(b.Records) == 0 {
		b, err = claim.Fetch(t.Context(), b.Next, 1<<20, patience)
	}
	if diff := cmp.Diff([]string{"plain 2"}, values(b.Records)); diff != "" || err != nil {
		t.Errorf("once nothing is open (-want +got):\n%s%v", diff, err)
	}
}
