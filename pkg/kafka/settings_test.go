package kafka_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/apachekafka"
)

// keysOf returns the settings that differ, with the values found.
func keysOf(t *testing.T, client *kafka.Client, replicated bool, topics ...kafka.Topic) map[string]string {
	t.Helper()
	differences, err := client.Differences(t.Context(), replicated, topics...)
	if err != nil {
		t.Fatal(err)
	}
	keys := make(map[string]string)
	for _, d := range differences {
		if d.Needed == "" || d.Breaks == "" {
			t.Errorf("difference without a reason: %+v", d)
		}
		keys[d.Topic+" "+d.Key] = d.Found
	}
	return keys
}

// Created topics have the needed settings, and settings changed by an operator are found,
// on both brokers.
func TestSettingsAreCompared(t *testing.T) {
	brokers := map[string]func() []string{
		"embedded": func() []string { return startCluster(t, kfake.NumBrokers(3)).ListenAddrs() },
		"apache":   func() []string { return []string{apachekafka.Start(t).Addr()} },
	}
	for name, start := range brokers {
		t.Run(name, func(t *testing.T) {
			addresses := start()
			cfg := kafka.DefaultConfig()
			cfg.Brokers, cfg.Replication = addresses, len(addresses)
			client, err := kafka.New(cfg, kafka.Options{Logger: testLogger(t)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(client.Close)
			replicated := len(addresses) > 1
			good := []kafka.Topic{
				{Name: "spans", Partitions: 2, MaxMessageBytes: 900_000},
				{Name: "resources", Partitions: 1, Compacted: true, MaxMessageBytes: 900_000},
				{Name: "control", Partitions: 1, Forever: true},
			}
			if err := client.EnsureTopics(t.Context(), good...); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string]string{}, keysOf(t, client, replicated, good...)); diff != "" {
				t.Errorf("topics just created (-want +got):\n%s", diff)
			}
			bad := []kafka.Topic{
				{Name: "bad.spans", Partitions: 1, MaxMessageBytes: 100_000, Retention: time.Hour, Replication: 1, MinInSync: 1},
				{Name: "bad.compacted", Partitions: 1, Compacted: true, Replication: 1, MinInSync: 1},
			}
			if err := client.EnsureTopics(t.Context(), bad...); err != nil {
				t.Fatal(err)
			}
			want := map[string]string{
				"bad.spans max.message.bytes": "100000", "bad.spans retention.ms": "3600000",
				"bad.spans replication": "1", "bad.spans min.insync.replicas": "1",
				"bad.compacted cleanup.policy": "compact",
				"bad.compacted replication":    "1", "bad.compacted min.insync.replicas": "1",
			}
			got := keysOf(t, client, true,
				kafka.Topic{Name: "bad.spans", MaxMessageBytes: 900_000},
				kafka.Topic{Name: "bad.compacted"},
			)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Topics with three replicas require two of them for an acknowledgement by default.
func TestCreatedTopicsSetMinInSync(t *testing.T) {
	tests := map[string]struct {
		replication, minInSync int
		want                   string
	}{
		"one broker":     {1, 0, "1"},
		"two brokers":    {2, 0, "1"},
		"three brokers":  {3, 0, "2"},
		"as configured":  {3, 3, "3"},
		"as many as are": {2, 2, "2"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cluster := startCluster(t, kfake.NumBrokers(3))
			client := newClient(t, cluster, func(c *kafka.Config) { c.Replication, c.MinInSync = tc.replication, tc.minInSync })
			createTopic(t, client, 1)
			req := kmsg.NewPtrDescribeConfigsRequest()
			resource := kmsg.NewDescribeConfigsRequestResource()
			resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, topic
			req.Resources = append(req.Resources, resource)
			res, err := req.RequestWith(t.Context(), newFranz(t, cluster))
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, c := range res.Resources[0].Configs {
				if c.Name == "min.insync.replicas" && c.Value != nil {
					got = *c.Value
				}
			}
			if got != tc.want {
				t.Errorf("min.insync.replicas = %q, want %q", got, tc.want)
			}
		})
	}
}
