package kafka_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
)

// Several replicas start at once and create the same topics.
func TestEnsureTopicsRace(t *testing.T) {
	cluster := startCluster(t)
	topics := []kafka.Topic{{Name: "a", Partitions: 3}, {Name: "b", Partitions: 1, Compacted: true}, {Name: "c"}}
	var wg sync.WaitGroup
	for range 6 {
		client := newClient(t, cluster, nil)
		wg.Go(func() {
			if err := client.EnsureTopics(t.Context(), topics...); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	client := newClient(t, cluster, nil)
	for name, want := range map[string]int{"a": 3, "b": 1, "c": kafka.DefaultConfig().Partitions} {
		if n, err := client.Partitions(t.Context(), name); n != want || err != nil {
			t.Errorf("topic %s has %d partitions, %v; want %d", name, n, err, want)
		}
	}
}

func TestTopicSettings(t *testing.T) {
	cluster := startCluster(t)
	client := newClient(t, cluster, func(c *kafka.Config) { c.Retention = 3 * time.Hour })
	err := client.EnsureTopics(t.Context(),
		kafka.Topic{Name: "by-config"},
		kafka.Topic{Name: "by-topic", Retention: time.Hour, MaxMessageBytes: 2 << 20},
		kafka.Topic{Name: "compacted", Compacted: true},
		kafka.Topic{Name: "for-ever", Forever: true},
	)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]map[string]string{}
	transport := &kafkago.Transport{}
	defer transport.CloseIdleConnections()
	admin := &kafkago.Client{Addr: kafkago.TCP(cluster.ListenAddrs()...), Transport: transport}
	names := []string{"cleanup.policy", "retention.ms", "max.message.bytes"}
	for _, name := range []string{"by-config", "by-topic", "compacted", "for-ever"} {
		res, err := admin.DescribeConfigs(t.Context(), &kafkago.DescribeConfigsRequest{
			Resources: []kafkago.DescribeConfigRequestResource{{ResourceType: kafkago.ResourceTypeTopic, ResourceName: name, ConfigNames: names}},
		})
		if err != nil {
			t.Fatal(err)
		}
		got[name] = map[string]string{}
		for _, entry := range res.Resources[0].ConfigEntries {
			got[name][entry.ConfigName] = entry.ConfigValue
		}
	}
	const week, standard = "604800000", "1048588"
	want := map[string]map[string]string{
		"by-config": {"cleanup.policy": "delete", "retention.ms": "10800000", "max.message.bytes": standard},
		"by-topic":  {"cleanup.policy": "delete", "retention.ms": "3600000", "max.message.bytes": "2097152"},
		"compacted": {"cleanup.policy": "compact", "retention.ms": week, "max.message.bytes": standard},
		"for-ever":  {"cleanup.policy": "delete", "retention.ms": "-1", "max.message.bytes": standard},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

// EnsureTopics keeps an existing topic and warns the operator.
func TestOtherPartitionCountIsAWarning(t *testing.T) {
	cluster := startCluster(t)
	createTopic(t, newClient(t, cluster, nil), 3)
	var out strings.Builder
	cfg := kafka.DefaultConfig()
	cfg.Brokers = cluster.ListenAddrs()
	client, err := kafka.New(cfg, kafka.Options{Logger: slog.New(slog.NewTextHandler(&out, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	createTopic(t, client, 5)
	for _, word := range []string{"level=WARN", "partitions=3", "configured=5"} {
		if !strings.Contains(out.String(), word) {
			t.Errorf("the log does not contain %s:\n%s", word, out.String())
		}
	}
}

func TestPingWithoutBroker(t *testing.T) {
	cluster := startCluster(t, kfake.Ports(ports.Free(t)))
	client := newClient(t, cluster, nil)
	if err := client.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	cluster.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for _, what := range []string{"at first", "and again"} {
		if err := client.Ping(ctx); err == nil {
			t.Errorf("Ping %s said that a closed broker answers", what)
		}
	}
}
