package kafka_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

func TestMetrics(t *testing.T) {
	cluster := startCluster(t)
	registry := prometheus.NewRegistry()
	cfg := kafka.DefaultConfig()
	cfg.Brokers = cluster.ListenAddrs()
	client, err := kafka.New(cfg, kafka.Options{Registerer: registry})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	createTopic(t, client, 1)
	refuse(cluster, kerr.NotEnoughReplicas, 1)
	producer := startProducer(t, client, kafka.ProducerOptions{})
	if err := producer.Produce(t.Context(), numbered(0, "a", 3)); err != nil {
		t.Fatal(err)
	}
	m := startMember(t, client, nil)
	claim := m.await(1)[0]
	if _, err := claim.Fetch(t.Context(), 0, 1<<20, time.Second); err != nil {
		t.Fatal(err)
	}
	if err := commit(t.Context(), claim, 3, ""); err != nil {
		t.Fatal(err)
	}
	m.stop()
	if err := commit(t.Context(), claim, 3, ""); err == nil {
		t.Fatal("a commit after leaving the group was accepted")
	}

	want := map[string]float64{
		"metaflow_kafka_produced_records_total":                   3,
		"metaflow_kafka_produced_bytes_total":                     9,
		"metaflow_kafka_produce_duration_seconds acknowledged":    1,
		"metaflow_kafka_produce_duration_seconds failed":          0,
		"metaflow_kafka_produce_errors_total Not Enough Replicas": 1,
		"metaflow_kafka_produce_behind_total":                     0,
		"metaflow_kafka_produce_throttled_seconds_total":          0,
		"metaflow_kafka_fetched_records_total":                    3,
		"metaflow_kafka_commits_total accepted":                   1,
		"metaflow_kafka_commits_total failed":                     1,
		"metaflow_kafka_rebalances_total":                         1,
		"metaflow_kafka_assigned_partitions":                      0,
	}
	if diff := cmp.Diff(want, gather(t, registry)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	if _, err := kafka.New(cfg, kafka.Options{Registerer: registry}); err == nil {
		t.Error("metrics were registered twice without an error")
	}
}

// gather returns every value by metric name and labels, except byte counts that depend on
// compression.
func gather(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			if strings.Contains(name, "sent_bytes") || strings.Contains(name, "fetched_bytes") {
				continue
			}
			for _, l := range m.GetLabel() {
				if l.GetName() != "topic" && l.GetName() != "group" {
					name += " " + l.GetValue()
				}
			}
			all[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return all
}
