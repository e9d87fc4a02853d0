package kafka_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/apachekafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// Apache Kafka treats a group, its topic and its commits like the embedded broker.
func TestApacheKafkaGroup(t *testing.T) {
	broker := apachekafka.Start(t, "group.min.session.timeout.ms=1000", "transaction.state.log.num.partitions=1")
	brokers := []string{broker.Addr()}
	t.Run("topic", func(t *testing.T) { topicIsFollowed(t, brokers) })
	t.Run("late commit", func(t *testing.T) { lateCommitIsRefused(t, brokers) })
	t.Run("lease", func(t *testing.T) { leaseEnds(t, func(*testing.T) []string { return brokers }) })
	t.Run("transactions", func(t *testing.T) { readCommitted(t, brokers) })
	t.Run("quota", func(t *testing.T) { realQuota(t, brokers) })
	t.Run("truncation", func(t *testing.T) { realTruncation(t, broker) })
}

func realQuota(t *testing.T, brokers []string) {
	name := topicName(t)
	admin := adminOf(t, brokers)
	admin.create(name, 1)
	client, _ := clientOf(t, brokers)
	produceTo(t, admin, name, 20, 20_000)
	limit := func(bytes float64) {
		t.Helper()
		req, entry := kmsg.NewPtrAlterClientQuotasRequest(), kmsg.NewAlterClientQuotasRequestEntry()
		entity, op := kmsg.NewAlterClientQuotasRequestEntryEntity(), kmsg.NewAlterClientQuotasRequestEntryOp()
		entity.Type, entity.Name = "client-id", kmsg.StringPtr("metaflow")
		op.Key, op.Value, op.Remove = "consumer_byte_rate", bytes, bytes == 0
		entry.Entity, entry.Ops = append(entry.Entity, entity), append(entry.Ops, op)
		req.Entries = append(req.Entries, entry)
		res, err := req.RequestWith(t.Context(), admin)
		if err != nil {
			t.Fatal(err)
		}
		admin.check(res.Entries[0].ErrorCode, nil)
	}
	claim := startMemberOf(t, client, name, nil).await(1)[0]
	limit(25_000)
	// The broker answers before it applies the quota.
	wait.Until(t, "the quota is in force", func() bool {
		b, err := claim.Fetch(t.Context(), 0, 50_000, 20*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		return b.Throttled
	})
	begun := time.Now()
	read, throttled := 0, 0
	for next := int64(0); next < 20; {
		b, err := claim.Fetch(t.Context(), next, 50_000, 20*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if b.Throttled {
			throttled++
		}
		if empty := len(b.Records) == 0; b.Throttled != empty || b.HighWatermark != 20 {
			t.Errorf("at offset %d: %d records, Throttled = %t, HighWatermark = %d", next, len(b.Records), b.Throttled, b.HighWatermark)
		}
		read += len(b.Records)
		next = b.Next
	}
	if read != 20 || throttled == 0 {
		t.Errorf("%d records were read, want 20; %d responses were throttled, want some", read, throttled)
	}
	if took := time.Since(begun); took < time.Second {
		t.Errorf("400 KB came within %s, so the quota was never exhausted", took)
	}
	limit(0)
}

// produceTo writes n records of random bytes, each in its own batch.
func produceTo(t *testing.T, producer admin, name string, n, bytes int) {
	t.Helper()
	for range n {
		record := &kgo.Record{Topic: name, Value: noise(bytes)}
		if err := producer.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// A broker without replicas loses the end of its log, as in a power loss, and gets other
// records in its place.
func realTruncation(t *testing.T, broker *apachekafka.Broker) {
	name := topicName(t)
	brokers := []string{broker.Addr()}
	admin := adminOf(t, brokers)
	admin.create(name, 1)
	client, _ := clientOf(t, brokers)
	produceTo(t, admin, name, 10, 10)
	m := startMemberOf(t, client, name, nil)
	claim := m.await(1)[0]
	if got := fetchValues(t, claim, 0, 10); len(got) != 10 {
		t.Fatalf("%d records were read", len(got))
	}
	b, err := claim.Fetch(t.Context(), 9, 1<<20, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	committed := kafka.Position{Offset: 10, LeaderEpoch: b.LeaderEpoch, Metadata: "before"}
	if err := claim.CommitPosition(t.Context(), committed); err != nil {
		t.Fatal(err)
	}

	broker.Kill()
	cutLog(t, filepath.Join(broker.LogDir(name, 0), "00000000000000000000.log"), 6)
	broker.Restart()
	produceTo(t, admin, name, 7, 10)

	// The claim that has read the records notices.
	wait.Until(t, "the broker answers the claim", func() bool {
		_, err = claim.Fetch(t.Context(), 10, 1<<20, time.Second)
		return err == nil || errors.Is(err, kafka.ErrTruncated)
	})
	if !errors.Is(err, kafka.ErrTruncated) {
		t.Errorf("Fetch from the last read offset = %v, want ErrTruncated", err)
	}
	if end, err := claim.EpochEnd(t.Context(), committed.LeaderEpoch); end != 6 || err != nil {
		t.Errorf("EpochEnd = %d, %v; want 6", end, err)
	}
	if got := fetchValues(t, claim, 6, 13); len(got) != 7 {
		t.Errorf("%d records were read from there, want 7", len(got))
	}

	// A claim that has only the committed position notices, too.
	m.stop()
	next := startMemberOf(t, client, name, nil).await(1)[0]
	if got, err := next.Position(t.Context()); got != committed || err != nil {
		t.Errorf("Position = %+v, %v; want %+v", got, err, committed)
	}
	if _, err := next.Fetch(t.Context(), 10, 1<<20, time.Second); !errors.Is(err, kafka.ErrTruncated) {
		t.Errorf("Fetch from the committed position = %v, want ErrTruncated", err)
	}
	if diff := cmp.Diff(claim.TopicID(), next.TopicID()); diff != "" {
		t.Errorf("topic differs:\n%s", diff)
	}
}

// cutLog keeps only the first batches of a segment.
func cutLog(t *testing.T, file string, batches int) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for range batches {
		size += 12 + int(binary.BigEndian.Uint32(b[size+8:]))
	}
	if err := os.Truncate(file, int64(size)); err != nil {
		t.Fatal(err)
	}
}
