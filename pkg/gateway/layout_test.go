package gateway_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/metaflowys/metaflow-server/pkg/gateway"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// admin changes topics as Kafka's own tools do.
type admin struct{ *kgo.Client }

func newAdmin(t *testing.T, addr string) admin {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return admin{client}
}

func (a admin) grow(t *testing.T, topic string, partitions int32) {
	t.Helper()
	req := kmsg.NewPtrCreatePartitionsRequest()
	req.TimeoutMillis = 10_000
	rt := kmsg.NewCreatePartitionsRequestTopic()
	rt.Topic, rt.Count = topic, partitions
	req.Topics = append(req.Topics, rt)
	res, err := req.RequestWith(t.Context(), a.Client)
	if err != nil || res.Topics[0].ErrorCode != 0 {
		t.Fatalf("grow %s: %v, %+v", topic, err, res)
	}
}

func (a admin) delete(t *testing.T, topic string) {
	t.Helper()
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TimeoutMillis = 10_000
	req.TopicNames = []string{topic}
	rt := kmsg.NewDeleteTopicsRequestTopic()
	rt.Topic = &topic
	req.Topics = append(req.Topics, rt)
	res, err := req.RequestWith(t.Context(), a.Client)
	if err != nil || res.Topics[0].ErrorCode != 0 {
		t.Fatalf("delete %s: %v, %+v", topic, err, res)
	}
}

// Two gateways run while the topic grows, and is then made anew with fewer partitions. Both follow.
func TestGatewaysFollowTheTopic(t *testing.T) {
	for name, start := range brokers {
		t.Run(name, func(t *testing.T) {
			const topic = "metaflow.test"
			addr := start(t)
			admin := newAdmin(t, addr)
			var gateways []*gateway.Gateway
			var producers []*kafka.Producer
			var client *kafka.Client
			for range 2 {
				c, producer := connect(t, addr, kafka.Topic{Name: topic, Partitions: 3})
				g, err := gateway.New(gateway.DefaultConfig(), traces.Signal, producer, gateway.Options{
					MaxRecordBytes: 900 << 10, DedupWindow: time.Hour, Now: time.Now,
				})
				if err != nil {
					t.Fatal(err)
				}
				gateways, producers, client = append(gateways, g), append(producers, producer), c
			}
			var spans []*tracepb.Span
			for i := range byte(30) {
				s := span(i+1, i+1)
				s.StartTimeUnixNano, s.EndTimeUnixNano = uint64(time.Now().UnixNano()), uint64(time.Now().UnixNano())
				spans = append(spans, s)
			}
			body := request(t, spans...)
			consume := func(g *gateway.Gateway) error {
				_, err := g.Consume(t.Context(), signal.Request{Body: body})
				return err
			}
			await := func(partitions int) {
				t.Helper()
				for _, p := range producers {
					wait.NoError(t, func() error {
						if n := p.Layout().Partitions; n != partitions {
							return fmt.Errorf("a gateway sees %d partitions, want %d", n, partitions)
						}
						return nil
					})
				}
			}
			for _, g := range gateways {
				if err := consume(g); err != nil {
					t.Fatal(err)
				}
			}

			admin.grow(t, topic, 6)
			await(6)
			for _, g := range gateways {
				wait.NoError(t, func() error { return consume(g) })
			}
			perPartition := 0
			for p := range 6 {
				old, marked := 0, 0
				var last []byte
				for _, r := range records(t, client, topic, p) {
					if !r.Meta.Resend {
						old++
						continue
					}
					if marked > 0 && !bytes.Equal(last, r.Value) {
						t.Errorf("partition %d: two gateways divide the same request differently", p)
					}
					marked, last = marked+1, bytes.Clone(r.Value)
				}
				if marked < 2 || p < 3 && old != 2 || p >= 3 && old != 0 {
					t.Errorf("partition %d: %d records from before the growth, and %d since then that writers look up", p, old, marked)
				}
				perPartition += marked
			}
			if perPartition < 12 {
				t.Errorf("%d records since the growth, want 2 in each of 6 partitions", perPartition)
			}

			admin.delete(t, topic)
			for _, p := range producers {
				wait.NoError(t, func() error {
					if p.Ready(t.Context()) == nil {
						return errors.New("a gateway is ready without its topic")
					}
					return nil
				})
			}
			wait.NoError(t, func() error {
				return client.EnsureTopics(t.Context(), kafka.Topic{Name: topic, Partitions: 2})
			})
			await(2)
			for i, g := range gateways {
				wait.NoError(t, func() error { return consume(g) })
				wait.NoError(t, func() error { return producers[i].Ready(t.Context()) })
			}
			for p := range 2 {
				if len(records(t, client, topic, p)) < 2 {
					t.Errorf("partition %d of the new topic lacks records", p)
				}
			}
		})
	}
}
