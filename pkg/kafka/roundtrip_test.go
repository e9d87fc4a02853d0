package kafka_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

var compressions = []string{"none", "gzip", "snappy", "lz4", "zstd"}

// Fetch returns what was produced: values, headers and times, in order, under every
// compression.
func TestRoundTrip(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_123)
	value := bytes.Repeat([]byte("metaflow "), 1000)
	meta := delivery.Meta{Agent: "node-1", Received: at, Hash: delivery.HashOf(value), HasHash: true, Resend: true}
	for _, compression := range compressions {
		t.Run(compression, func(t *testing.T) {
			client := newClient(t, startCluster(t), func(c *kafka.Config) { c.Compression = compression })
			createTopic(t, client, 2)
			producer := startProducer(t, client, kafka.ProducerOptions{})
			batch := []kafka.Outgoing{
				{Partition: 1, Value: value, Headers: meta.Headers(), Time: at},
				{Partition: 0, Value: []byte("other partition"), Time: at},
				{Partition: 1, Key: []byte("key"), Value: []byte{}, Time: at.Add(-time.Hour)},
				{Partition: 1, Value: []byte("strange header"), Headers: []delivery.Header{{Key: "x", Value: nil}, {Key: "", Value: []byte("y")}}, Time: at},
			}
			if err := producer.Produce(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
			b, err := client.Fetch(t.Context(), topic, 1, 0, 1<<20, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			want := kafka.Batch{
				Records: []delivery.Record{
					{Offset: 0, Time: at, Value: value, Meta: meta},
					{Offset: 1, Time: at.Add(-time.Hour), Key: []byte("key"), Value: []byte{}},
					{Offset: 2, Time: at, Value: []byte("strange header")},
				},
				Next: 3, HighWatermark: 3, LogEnd: 3,
			}
			if b.TopicID.IsZero() {
				t.Error("the batch has no topic id")
			}
			want.TopicID = b.TopicID
			if diff := cmp.Diff(want, b, cmpopts.IgnoreUnexported(kafka.Batch{})); diff != "" {
				t.Errorf("fetched (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(batch[3].Headers, b.Headers(2)); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
		})
	}
}
