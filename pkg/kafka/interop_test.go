package kafka_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

// newFranz returns a client that shares no code with the package.
func newFranz(t testing.TB, cluster *kfake.Cluster, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(cluster.ListenAddrs()...)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// Another implementation of the protocol reads what this package writes.
func TestFranzReadsBatches(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_123).UTC()
	big := bytes.Repeat([]byte("0123456789abcdef"), 40_000) // several blocks of most codecs
	batch := []kafka.Outgoing{
		{Value: big, Headers: []delivery.Header{{Key: "k", Value: []byte("v")}}, Time: at},
		{Key: []byte("key"), Value: []byte("small"), Time: at.Add(time.Second)},
		{Key: []byte("tombstone"), Time: at},
	}
	want := []*kgo.Record{
		{Topic: topic, Value: big, Headers: []kgo.RecordHeader{{Key: "k", Value: []byte("v")}}, Timestamp: at},
		{Topic: topic, Offset: 1, Key: []byte("key"), Value: []byte("small"), Timestamp: at.Add(time.Second)},
		{Topic: topic, Offset: 2, Key: []byte("tombstone"), Timestamp: at},
	}
	for _, compression := range compressions {
		t.Run(compression, func(t *testing.T) {
			cluster := startCluster(t)
			client := newClient(t, cluster, func(c *kafka.Config) { c.Compression = compression })
			createTopic(t, client, 1)
			if err := startProducer(t, client, kafka.ProducerOptions{}).Produce(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
			franz := newFranz(t, cluster, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
			var got []*kgo.Record
			for len(got) < len(want) {
				fetches := franz.PollFetches(t.Context())
				if err := fetches.Err(); err != nil {
					t.Fatal(err)
				}
				got = append(got, fetches.Records()...)
			}
			for i, r := range got {
				r = &kgo.Record{Topic: r.Topic, Offset: r.Offset, Key: r.Key, Value: r.Value, Headers: r.Headers, Timestamp: r.Timestamp.UTC()}
				if diff := cmp.Diff(want[i], r, cmp.AllowUnexported(kgo.Record{}, kgo.RecordAttrs{})); diff != "" {
					t.Errorf("record %d (-want +got):\n%s", i, diff)
				}
			}
		})
	}
}

// This package reads what another implementation writes, in that implementation's
// batches.
func TestReadsFranzBatches(t *testing.T) {
	codecs := map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}
	for _, compression := range compressions {
		t.Run(compression, func(t *testing.T) {
			cluster := startCluster(t)
			client := newClient(t, cluster, nil)
			createTopic(t, client, 1)
			franz := newFranz(t, cluster, kgo.ProducerBatchCompression(codecs[compression]), kgo.DefaultProduceTopic(topic))
			var records []*kgo.Record
			var want []string
			for i := range 500 {
				value := bytes.Repeat([]byte{byte('a' + i%26)}, i*10)
				records = append(records, &kgo.Record{Value: value})
				want = append(want, string(value))
			}
			if err := franz.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, values(readAll(t, client, 0, 0))); diff != "" {
				t.Errorf("values (-want +got):\n%s", diff)
			}
			// A fetch from the middle of a batch omits the records before the offset.
			if diff := cmp.Diff(want[123:], values(readAll(t, client, 0, 123))); diff != "" {
				t.Errorf("values from offset 123 (-want +got):\n%s", diff)
			}
		})
	}
}
