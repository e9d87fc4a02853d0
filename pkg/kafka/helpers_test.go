package kafka_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"go.uber.org/goleak"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const topic = "metaflow.test"

// startCluster runs an in-memory broker until the test ends.
func startCluster(t testing.TB, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	standard := []kfake.Opt{kfake.NumBrokers(1), kfake.GroupMinSessionTimeout(time.Second)}
	cluster, err := kfake.NewCluster(append(standard, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster
}

// newClient returns a client of cluster. edit may change its configuration.
func newClient(t testing.TB, cluster *kfake.Cluster, edit func(*kafka.Config)) *kafka.Client {
	t.Helper()
	cfg := kafka.DefaultConfig()
	cfg.Brokers = cluster.ListenAddrs()
	if edit != nil {
		edit(&cfg)
	}
	client, err := kafka.New(cfg, kafka.Options{Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// testLogger logs to the test.
func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// createTopic creates topic.
func createTopic(t testing.TB, client *kafka.Client, partitions int) {
	t.Helper()
	if err := client.EnsureTopics(t.Context(), kafka.Topic{Name: topic, Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
}

// startProducer runs a producer until the test ends.
func startProducer(t testing.TB, client *kafka.Client, opts kafka.ProducerOptions) *kafka.Producer {
	t.Helper()
	p := client.NewProducer(topic, opts)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Producer.Run = %v", err)
		}
	})
	return p
}

// readAll fetches a partition from offset to its end.
func readAll(t testing.TB, client *kafka.Client, partition int, offset int64) []delivery.Record {
	t.Helper()
	var all []delivery.Record
	for {
		b, err := client.Fetch(t.Context(), topic, partition, offset, 1<<20, 10*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if len(b.Records) == 0 && b.Next == offset {
			return all
		}
		all = append(all, b.Records...)
		offset = b.Next
	}
}

// values returns the values of the records as text.
func values(records []delivery.Record) []string {
	var texts []string
	for _, r := range records {
		texts = append(texts, string(r.Value))
	}
	return texts
}

// numbered returns n records for a partition, with the values prefix-0, prefix-1 and so on.
func numbered(partition int, prefix string, n int) []kafka.Outgoing {
	batch := make([]kafka.Outgoing, n)
	for i := range batch {
		batch[i] = kafka.Outgoing{Partition: partition, Value: fmt.Appendf(nil, "%s-%d", prefix, i)}
	}
	return batch
}

// commit commits without a leader epoch.
func commit(ctx context.Context, c *kafka.Claim, offset int64, metadata string) error {
	return c.CommitPosition(ctx, kafka.Position{Offset: offset, LeaderEpoch: -1, Metadata: metadata})
}

// positionOf returns the group's committed position.
func positionOf(t testing.TB, c *kafka.Claim) (offset int64, metadata string, err error) {
	p, err := c.Position(t.Context())
	return p.Offset, p.Metadata, err
}
