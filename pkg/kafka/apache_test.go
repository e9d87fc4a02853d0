package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/apachekafka"
)

// brokersVariable names the brokers to use, separated by commas. Without it the test
// starts Apache Kafka itself.
const brokersVariable = "METAFLOW_TEST_KAFKA_BROKERS"

// Apache Kafka behaves like the embedded broker of the other tests.
func TestApacheKafka(t *testing.T) {
	brokers := os.Getenv(brokersVariable)
	if brokers == "" {
		brokers = apachekafka.Start(t).Addr()
	}
	name := fmt.Sprintf("metaflow.test.%d", time.Now().UnixNano())
	connect := func(compression string) *kafka.Client {
		cfg := kafka.DefaultConfig()
		cfg.Brokers, cfg.Compression = strings.Split(brokers, ","), compression
		client, err := kafka.New(cfg, kafka.Options{Logger: testLogger(t)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		return client
	}
	client := connect("none")
	if err := client.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := client.EnsureTopics(t.Context(), kafka.Topic{Name: name, Partitions: 4}); err != nil {
		t.Fatal(err)
	}

	if err := client.CheckAccess(t.Context(), kafka.Access{Topic: name, Read: true, Write: true, Group: name}); err != nil {
		t.Errorf("CheckAccess = %v", err)
	}

	want := map[int][]string{}
	for _, compression := range compressions {
		batch := append(numbered(0, compression, 100), numbered(3, compression, 10)...)
		for _, o := range batch {
			want[o.Partition] = append(want[o.Partition], string(o.Value))
		}
		producer := connect(compression).NewProducer(name, kafka.ProducerOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = producer.Run(ctx) })
		if err := producer.Produce(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
		err := producer.Produce(t.Context(), []kafka.Outgoing{{Value: noise(2 << 20)}})
		if !errors.Is(err, kafka.ErrTooLarge) || fault.ClassOf(err) != fault.Retryable {
			t.Errorf("%s: Produce of 2 MiB of noise = %v, want an ErrTooLarge of class retryable", compression, err)
		}
		cancel()
		running.Wait()
	}

	got := map[int][]string{}
	followGroup(t, client, name, func(c *kafka.Claim) {
		_, end, err := c.Bounds(t.Context())
		if err != nil {
			t.Error(err)
			return
		}
		var values []string
		for next := int64(0); next < end; {
			b, err := c.Fetch(t.Context(), next, 500, time.Second)
			if err != nil {
				t.Error(err)
				return
			}
			for _, r := range b.Records {
				values = append(values, string(r.Value))
			}
			next = b.Next
		}
		if len(values) > 0 {
			got[c.Partition()] = values
		}
		if err := commit(t.Context(), c, end, "plan"); err != nil {
			t.Error(err)
		}
		if offset, metadata, err := positionOf(t, c); offset != end || metadata != "plan" || err != nil {
			t.Errorf("committed = %d, %q, %v", offset, metadata, err)
		}
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := client.Fetch(t.Context(), name, 0, 1<<40, 1000, time.Millisecond); !errors.Is(err, kafka.ErrOffsetOutOfRange) {
		t.Errorf("fetch far beyond the log = %v, want ErrOffsetOutOfRange", err)
	}
}

// noise returns n bytes that do not compress.
func noise(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

// followGroup runs one member on all four partitions in turn, then a second one that
// takes half of them, and verifies that every commit of an old generation is refused.
func followGroup(t *testing.T, client *kafka.Client, name string, work func(*kafka.Claim)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	claims := make(chan *kafka.Claim, 100)
	last := make(chan error, 100)
	join := func() {
		group := client.NewGroup(name+".group", name, kafka.GroupOptions{})
		err := group.Run(ctx, func(ctx context.Context, c *kafka.Claim) error {
			claims <- c
			<-ctx.Done()
			last <- commit(context.WithoutCancel(ctx), c, 1, "last")
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	var members sync.WaitGroup
	members.Go(join)
	var first []*kafka.Claim
	for range 4 {
		first = append(first, <-claims)
	}
	for _, c := range first {
		work(c)
	}
	members.Go(join)
	for range 4 {
		if c := <-claims; c.Generation() <= first[0].Generation() {
			t.Errorf("generation %d follows %d", c.Generation(), first[0].Generation())
		}
	}
	for _, c := range first {
		if err := commit(t.Context(), c, 0, ""); fault.ClassOf(err) != fault.Fenced {
			t.Errorf("commit of an old generation = %v, want class fenced", err)
		}
	}
	cancel()
	members.Wait()
	for range 8 {
		if err := <-last; err != nil {
			t.Errorf("last commit = %v", err)
		}
	}
}
