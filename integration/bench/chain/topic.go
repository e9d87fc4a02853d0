package chain

import (
	"context"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

// createTopic creates a topic that accepts large messages.
func createTopic(ctx context.Context, addr, name string, partitions int) error {
	cfg := kafka.DefaultConfig()
	cfg.Brokers = []string{addr}
	client, err := kafka.New(cfg, kafka.Options{})
	if err != nil {
		return err
	}
	defer client.Close()
	return client.EnsureTopics(ctx, kafka.Topic{
		Name: name, Partitions: partitions, Replication: 1, Retention: time.Hour, MaxMessageBytes: 16 << 20,
	})
}
