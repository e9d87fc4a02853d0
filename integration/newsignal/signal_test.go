// Package newsignal takes a signal that no program knows through the whole
// pipeline, to show that a new signal needs nothing but its own definition.
package newsignal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/deadletter"
	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
	"github.com/metaflowys/metaflow-server/pkg/gateway"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/kafkatest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	"github.com/metaflowys/metaflow-server/pkg/writer"
	"github.com/metaflowys/metaflow-server/schema"
)

func TestMain(m *testing.M) {
	chengine.MaybeRunChild()
	os.Exit(m.Run())
}

// pipeline holds the components that readings pass through.
type pipeline struct {
	agent    *upstream.Client
	kafka    *kafka.Client
	producer *kafka.Producer
}

// startPipeline connects the components like a program does.
func startPipeline(t *testing.T, engine *chengine.Engine) *pipeline {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var g errgroup.Group
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(func() {
		stop()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	p := &pipeline{}
	var err error

	kafkaConfig := kafka.DefaultConfig()
	kafkaConfig.Brokers = []string{kafkatest.Start(t, broker.Options{}).Addr()}
	p.kafka, err = kafka.New(kafkaConfig, kafka.Options{})
	must(err)
	t.Cleanup(p.kafka.Close)
	must(p.kafka.EnsureTopics(t.Context(), kafka.Topic{Name: readings.Topic, Partitions: 1}, kafka.Topic{Name: schema.TopicDeadLetter, Partitions: 1}))
	p.producer = p.kafka.NewProducer(readings.Topic, kafka.ProducerOptions{})
	must(p.producer.Look(t.Context()))
	dead := p.kafka.NewProducer(schema.TopicDeadLetter, kafka.ProducerOptions{})
	g.Go(func() error { return p.producer.Run(ctx) })
	g.Go(func() error { return dead.Run(ctx) })

	gatewayConfig := gateway.DefaultConfig()
	gw, err := gateway.New(gatewayConfig, readings, p.producer, gateway.Options{MaxRecordBytes: 900 << 10})
	must(err)
	rpcConfig := rpc.DefaultConfig()
	rpcConfig.Listen = "127.0.0.1:0"
	server, err := rpc.New(rpcConfig, []rpc.Sink{{Signal: readings, Consumer: gw}}, rpc.Options{})
	must(err)
	g.Go(func() error { return server.Run(ctx) })

	clickhouseConfig := clickhouse.DefaultConfig()
	clickhouseConfig.Addresses, clickhouseConfig.Database = []string{engine.NativeAddr()}, "default"
	db, err := clickhouse.Open(clickhouseConfig, nil)
	must(err)
	t.Cleanup(func() { must(db.Close()) })
	inserter, err := clickhouse.NewInserter(clickhouseConfig, clickhouse.InserterOptions{})
	must(err)
	t.Cleanup(inserter.Close)
	must(inserter.Discover(t.Context()))
	writerConfig := writer.DefaultConfig()
	writerConfig.MaxWait = 10 * time.Millisecond
	w, err := writer.New(writerConfig, table, db, inserter, dead, writer.Options{
		AcceptPast: gatewayConfig.AcceptPast, AcceptFuture: gatewayConfig.AcceptFuture, Grace: time.Second,
	})
	must(err)
	group := p.kafka.NewGroup("test", readings.Topic, kafka.GroupOptions{SessionTimeout: 10 * time.Second})
	g.Go(func() error {
		return group.Run(ctx, func(ctx context.Context, c *kafka.Claim) error { return w.Handle(ctx, c) })
	})

	agentConfig := upstream.DefaultConfig()
	agentConfig.Addresses = []string{server.Addr().String()}
	p.agent, err = upstream.New(agentConfig, upstream.Options{AgentID: "agent-1"})
	must(err)
	t.Cleanup(p.agent.Close)
	return p
}

// send makes an agent send a request until a server accepts it.
func (p *pipeline) send(t *testing.T, req []byte, resend bool) (res signal.Result) {
	t.Helper()
	if err := p.agent.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	res, err := p.agent.Export(t.Context(), readings, req, upstream.ExportOptions{Resend: resend, Received: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// Readings pass from an agent through a server, a gateway, Kafka and a writer
// into ClickHouse, once each, however often the agent sends them.
func TestNewSignalIsStoredExactlyOnce(t *testing.T) {
	engine := chtest.Start(t, chengine.Options{})
	conn := chtest.Open(t, engine)
	if err := conn.Exec(t.Context(), migration); err != nil {
		t.Fatal(err)
	}
	p := startPipeline(t, engine)

	now := time.Now()
	bad := reading{time: uint64(now.UnixNano()), id: []byte("short")}
	first := bad.append(request(now, 1, 2, 3))
	for range 2 { // the second request has the same content
		res := p.send(t, first, false)
		if res.Rejected != 1 || !strings.Contains(res.Message, "1 readings rejected: id is not 8 bytes; the first: reading 3 (counted from 0; id 73686f7274)") {
			t.Errorf("answer %+v", res)
		}
	}
	stored := func(want uint64) {
		t.Helper()
		wait.NoError(t, func() error {
			var rows, ids, sum uint64
			if err := conn.QueryRow(t.Context(), "SELECT count(), uniqExact(id), sum(value) FROM readings_local").Scan(&rows, &ids, &sum); err != nil {
				return err
			}
			if rows != want || ids != want || sum != 10*want*(want+1)/2 {
				return fmt.Errorf("%d rows of %d readings, sum %d; want %d", rows, ids, sum, want)
			}
			return nil
		})
	}
	stored(3)
	p.send(t, request(now, 2, 3, 4), true) // another content: the writer looks the readings up
	stored(4)

	// Another program writes records that no gateway accepts.
	err := p.producer.Produce(t.Context(), []kafka.Outgoing{{Value: bad.append(nil)}})
	if err != nil {
		t.Fatal(err)
	}
	// The last record of the only partition is stored after all others.
	p.send(t, request(now, 5), false)
	stored(5)

	var causes []string
	err = deadletter.Each(t.Context(), p.kafka, schema.TopicDeadLetter, []*signal.Signal{readings}, func(e deadletter.Entry) error {
		if e.Topic != readings.Topic || e.Items != 1 {
			return errors.New("a letter of another topic")
		}
		causes = append(causes, e.Cause)
		return nil
	})
	if err != nil || len(causes) != 1 || causes[0] != "reading refused for its id" {
		t.Errorf("dead letters %q, %v", causes, err)
	}
}
