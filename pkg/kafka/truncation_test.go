package kafka_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

// A new leader has fewer records than the one before and has received others since, so
// offsets alone do not reveal it. The embedded broker never loses records; the test makes
// it report an earlier end of the epoch.
func TestTruncationIsNoticed(t *testing.T) {
	cluster := startCluster(t, kfake.NumBrokers(2))
	client, reg := clientOf(t, cluster.ListenAddrs())
	createTopic(t, client, 1)
	producer := startProducer(t, client, kafka.ProducerOptions{})
	produce := func(prefix string, n int) {
		t.Helper()
		if err := producer.Produce(t.Context(), numbered(0, prefix, n)); err != nil {
			t.Fatal(err)
		}
	}
	leader := cluster.LeaderFor(topic, 0)
	moveLeader := func() {
		t.Helper()
		leader = 1 - leader
		if err := cluster.MoveTopicPartition(topic, 0, leader); err != nil {
			t.Fatal(err)
		}
	}
	var asked atomic.Int32
	var lostFrom atomic.Int64 // reported end of the first epoch; 0 reports the real one
	cluster.ControlKey(int16(kmsg.OffsetForLeaderEpoch), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		asked.Add(1)
		req := kreq.(*kmsg.OffsetForLeaderEpochRequest)
		if lostFrom.Load() == 0 || req.Topics[0].Partitions[0].LeaderEpoch != 0 {
			return nil, nil, false
		}
		res := req.ResponseKind().(*kmsg.OffsetForLeaderEpochResponse)
		rt, rp := kmsg.NewOffsetForLeaderEpochResponseTopic(), kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
		rt.Topic, rp.EndOffset = topic, lostFrom.Load()
		rt.Partitions = append(rt.Partitions, rp)
		res.Topics = append(res.Topics, rt)
		return res, nil, true
	})

	produce("a", 10)
	claim := startMember(t, client, nil).await(1)[0]
	if got := fetchValues(t, claim, 0, 10); len(got) != 10 {
		t.Fatalf("fetched %q", got)
	}
	if b, err := claim.Fetch(t.Context(), 0, 1<<20, time.Second); err != nil || b.LeaderEpoch != 0 {
		t.Errorf("Fetch = %+v, %v; want leader epoch 0", b, err)
	}
	if asked.Load() != 0 {
		t.Error("unneeded request for the end of an epoch")
	}

	// An election that loses nothing: the fetcher asks once and continues.
	moveLeader()
	produce("b", 5)
	if diff := cmp.Diff([]string{"b-0", "b-1", "b-2", "b-3", "b-4"}, fetchValues(t, claim, 10, 15)); diff != "" {
		t.Errorf("after an election (-want +got):\n%s", diff)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the end of the epoch was asked for %d times, want once", n)
	}
	if end, err := claim.EpochEnd(t.Context(), 0); end != 10 || err != nil {
		t.Errorf("EpochEnd of the first epoch = %d, %v; want 10", end, err)
	}
	if end, err := claim.EpochEnd(t.Context(), 1); end != 15 || err != nil {
		t.Errorf("EpochEnd of the present epoch = %d, %v; want 15", end, err)
	}
	if end, err := claim.EpochEnd(t.Context(), -1); end != -1 || err != nil {
		t.Errorf("EpochEnd of no epoch = %d, %v; want -1", end, err)
	}

	// The group has committed records that no longer exist.
	committed := kafka.Position{Offset: 10, LeaderEpoch: 0}
	if err := claim.CommitPosition(t.Context(), committed); err != nil {
		t.Fatal(err)
	}
	lostFrom.Store(6)
	if got, err := claim.Position(t.Context()); got != committed || err != nil {
		t.Errorf("Position = %+v, %v; want %+v", got, err, committed)
	}
	for range 2 { // the error repeats
		if _, err := claim.Fetch(t.Context(), 10, 1<<20, time.Second); !errors.Is(err, kafka.ErrTruncated) {
			t.Errorf("Fetch from the committed position = %v, want ErrTruncated", err)
		}
	}
	// Reading earlier records does not hide it.
	if got := fetchSome(t, claim, 0, 10, 1); len(got) != 10 {
		t.Errorf("fetched %q", got)
	}
	if _, err := claim.Fetch(t.Context(), 10, 1<<20, time.Second); !errors.Is(err, kafka.ErrTruncated) {
		t.Errorf("Fetch after reading earlier records = %v, want ErrTruncated", err)
	}
	if got := fetchValues(t, claim, 6, 15); len(got) != 9 {
		t.Errorf("from the end of the epoch: %q", got)
	}
	claim.Seek(kafka.Position{Offset: 10, LeaderEpoch: -1})
	if _, err := claim.Fetch(t.Context(), 10, 1<<20, time.Second); err != nil {
		t.Errorf("Fetch from a position without an epoch = %v", err)
	}

	// The records fetched last are gone.
	if got := fetchValues(t, claim, 0, 15); len(got) != 15 {
		t.Fatalf("fetched %q", got)
	}
	claim.Seek(kafka.Position{Offset: 15, LeaderEpoch: 0})
	moveLeader()
	if _, err := claim.Fetch(t.Context(), 15, 1<<20, time.Second); !errors.Is(err, kafka.ErrTruncated) {
		t.Errorf("Fetch after an election that lost records = %v, want ErrTruncated", err)
	}
	// If the leader has no epoch as late as the position's, the log is another one.
	claim.Seek(kafka.Position{Offset: 3, LeaderEpoch: 99})
	if _, err := claim.Fetch(t.Context(), 3, 1<<20, time.Second); !errors.Is(err, kafka.ErrTruncated) {
		t.Errorf("Fetch by an epoch of the future = %v, want ErrTruncated", err)
	}
	if end, err := claim.EpochEnd(t.Context(), 99); end != 0 || err != nil {
		t.Errorf("EpochEnd of an epoch of the future = %d, %v; want 0", end, err)
	}
	expected := `# HELP metaflow_kafka_truncations_total Fetches that found that records read before were lost.
# TYPE metaflow_kafka_truncations_total counter
metaflow_kafka_truncations_total{group="` + groupID + `"} 5
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(expected), "metaflow_kafka_truncations_total"); err != nil {
		t.Error(err)
	}
}

// fetchValues reads the values from one offset up to another.
func fetchValues(t *testing.T, c *kafka.Claim, from, to int64) []string {
	t.Helper()
	return fetchSome(t, c, from, to, 1<<20)
}

func fetchSome(t *testing.T, c *kafka.Claim, from, to int64, maxBytes int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var all []string
	for from < to {
		b, err := c.Fetch(ctx, from, maxBytes, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, values(b.Records)...)
		from = b.Next
	}
	return all
}

// A broker of another vendor may not know leader epochs. Reading works without them.
func TestBrokerWithoutEpochs(t *testing.T) {
	versions := kversion.V2_3_0()
	versions.SetMaxKeyVersion(int16(kmsg.OffsetForLeaderEpoch), -1)
	versions.SetMaxKeyVersion(int16(kmsg.OffsetFetch), 4)
	client := newClient(t, startCluster(t, kfake.MaxVersions(versions)), nil)
	createTopic(t, client, 1)
	if err := startProducer(t, client, kafka.ProducerOptions{}).Produce(t.Context(), numbered(0, "a", 3)); err != nil {
		t.Fatal(err)
	}
	claim := startMember(t, client, nil).await(1)[0]
	if err := claim.CommitPosition(t.Context(), kafka.Position{Offset: 1, LeaderEpoch: 0, Metadata: "plan"}); err != nil {
		t.Fatal(err)
	}
	want := kafka.Position{Offset: 1, LeaderEpoch: -1, Metadata: "plan"}
	if got, err := claim.Position(t.Context()); got != want || err != nil {
		t.Errorf("Position = %+v, %v; want %+v", got, err, want)
	}
	claim.Seek(kafka.Position{Offset: 1, LeaderEpoch: 0})
	if diff := cmp.Diff([]string{"a-1", "a-2"}, fetchValues(t, claim, 1, 3)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if end, err := claim.EpochEnd(t.Context(), 0); end != -1 || err != nil {
		t.Errorf("EpochEnd = %d, %v; want -1", end, err)
	}
}
