package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

func TestFetchWaitsForRecords(t *testing.T) {
	client := newClient(t, startCluster(t), nil)
	createTopic(t, client, 1)
	producer := startProducer(t, client, kafka.ProducerOptions{})

	begun := time.Now()
	b, err := client.Fetch(t.Context(), topic, 0, 0, 1<<20, 50*time.Millisecond)
	if err != nil || len(b.Records) != 0 || b.Next != 0 || b.HighWatermark != 0 {
		t.Errorf("fetch of nothing = %+v, %v", b, err)
	}
	if took := time.Since(begun); took < 40*time.Millisecond {
		t.Errorf("it waited for only %s", took)
	}

	time.AfterFunc(50*time.Millisecond, func() { _ = producer.Produce(context.Background(), numbered(0, "a", 1)) })
	b, err = client.Fetch(t.Context(), topic, 0, 0, 1<<20, patience)
	if err != nil || len(b.Records) != 1 {
		t.Errorf("fetch = %+v, %v", b, err)
	}
}

// A canceled caller returns at once and leaves no goroutine behind, which the package's
// leak check verifies.
func TestFetchEndsWithItsContext(t *testing.T) {
	client := newClient(t, startCluster(t), nil)
	createTopic(t, client, 1)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	begun := time.Now()
	if _, err := client.Fetch(ctx, topic, 0, 0, 1<<20, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("Fetch = %v, want canceled", err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	if _, err := client.Fetch(t.Context(), topic, 0, 0, 1<<20, time.Millisecond); err != nil {
		t.Errorf("the next Fetch = %v", err)
	}
}

func TestFetchOutOfRange(t *testing.T) {
	cluster := startCluster(t)
	client := newClient(t, cluster, nil)
	createTopic(t, client, 1)
	if err := startProducer(t, client, kafka.ProducerOptions{}).Produce(t.Context(), numbered(0, "a", 10)); err != nil {
		t.Fatal(err)
	}
	deleteBefore(t, cluster, 4)
	start, end, err := client.Bounds(t.Context(), topic, 0)
	if start != 4 || end != 10 || err != nil {
		t.Errorf("Bounds = %d, %d, %v; want 4, 10", start, end, err)
	}
	for _, tc := range []struct {
		offset int64
		inside bool
	}{{0, false}, {3, false}, {4, true}, {10, true}, {11, false}} {
		b, err := client.Fetch(t.Context(), topic, 0, tc.offset, 1<<20, time.Millisecond)
		if errors.Is(err, kafka.ErrOffsetOutOfRange) == tc.inside || (tc.inside && err != nil) {
			t.Errorf("fetch from %d: %v", tc.offset, err)
		}
		if want := int(10 - tc.offset); tc.inside && len(b.Records) != want {
			t.Errorf("fetch from %d: %d records, want %d", tc.offset, len(b.Records), want)
		}
	}
}

func deleteBefore(t *testing.T, cluster *kfake.Cluster, offset int64) {
	t.Helper()
	req := kmsg.NewDeleteRecordsRequest()
	rt := kmsg.NewDeleteRecordsRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewDeleteRecordsRequestTopicPartition()
	rp.Offset = offset
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	req.TimeoutMillis = 1000
	res, err := req.RequestWith(t.Context(), newFranz(t, cluster))
	if err != nil || res.Topics[0].Partitions[0].ErrorCode != 0 {
		t.Fatal(err, res)
	}
}

// A record larger than what the fetch asks for still comes: a fetch always makes progress.
func TestHugeRecordMakesProgress(t *testing.T) {
	client := newClient(t, startCluster(t), func(c *kafka.Config) { c.Compression = "none" })
	createTopic(t, client, 1)
	producer := startProducer(t, client, kafka.ProducerOptions{MaxBatchBytes: 1})
	batch := []kafka.Outgoing{{Value: []byte("small")}, {Value: make([]byte, 900<<10)}, {Value: []byte("last")}}
	if err := producer.Produce(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for offset := int64(0); offset < 3; {
		b, err := client.Fetch(t.Context(), topic, 0, offset, 1000, time.Second)
		if err != nil || b.Next == offset {
			t.Fatalf("fetch from %d = %+v, %v", offset, b, err)
		}
		for _, r := range b.Records {
			sizes = append(sizes, len(r.Value))
		}
		offset = b.Next
	}
	if diff := cmp.Diff([]int{5, 900 << 10, 4}, sizes); diff != "" {
		t.Errorf("sizes (-want +got):\n%s", diff)
	}
}

// Transactions of other programs leave offsets without records. Next skips them.
func TestGapsArePassed(t *testing.T) {
	cluster := startCluster(t)
	client := newClient(t, cluster, nil)
	createTopic(t, client, 1)
	franz := newFranz(t, cluster, kgo.TransactionalID("other"), kgo.DefaultProduceTopic(topic))
	for i := range 3 {
		if err := franz.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := franz.ProduceSync(t.Context(), kgo.StringRecord(fmt.Sprint(i))).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := franz.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
	}
	var offsets []int64
	next := int64(0)
	for {
		b, err := client.Fetch(t.Context(), topic, 0, next, 1<<20, 10*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if b.Next == next {
			break
		}
		for _, r := range b.Records {
			offsets = append(offsets, r.Offset)
		}
		next = b.Next
	}
	if diff := cmp.Diff([]int64{0, 2, 4}, offsets); diff != "" || next != 6 {
		t.Errorf("next = %d, want 6; offsets (-want +got):\n%s", next, diff)
	}
}

func TestOffsetAt(t *testing.T) {
	client := newClient(t, startCluster(t), nil)
	createTopic(t, client, 1)
	at := time.UnixMilli(1_700_000_000_000)
	producer := startProducer(t, client, kafka.ProducerOptions{})
	for i := range 5 {
		if err := producer.Produce(t.Context(), []kafka.Outgoing{{Value: []byte("x"), Time: at.Add(time.Duration(i) * time.Minute)}}); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		time time.Time
		want int64
	}{
		"long before":    {time.Time{}, 0},
		"at a record":    {at.Add(2 * time.Minute), 2},
		"between two":    {at.Add(2*time.Minute + time.Second), 3},
		"after the last": {at.Add(time.Hour), 5},
	} {
		if got, err := client.OffsetAt(t.Context(), topic, 0, tc.time); got != tc.want || err != nil {
			t.Errorf("%s: OffsetAt = %d, %v; want %d", name, got, err, tc.want)
		}
	}
}

// The next fetch of a claim overwrites its records, and nothing else does.
func TestClaimUsesItsMemoryAgain(t *testing.T) {
	client := newClient(t, startCluster(t), nil)
	createTopic(t, client, 1)
	producer := startProducer(t, client, kafka.ProducerOptions{MaxBatchBytes: 1})
	m := startMember(t, client, nil)
	claim := m.await(1)[0]
	for i := range 50 {
		if err := producer.Produce(t.Context(), numbered(0, fmt.Sprint("round ", i), 3)); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for next := int64(0); next < 150; {
		b, err := claim.Fetch(t.Context(), next, 1000, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, values(b.Records)...)
		next = b.Next
	}
	if diff := cmp.Diff(values(readAll(t, client, 0, 0)), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
