package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
)

// brokerEnv turns this program into the broker: in a process of its own, so
// that what it costs is not taken for the gateway's.
const brokerEnv = "PIPELINEBENCH_BROKER"

// maybeRunBroker serves Kafka at the address in brokerEnv until killed.
func maybeRunBroker() {
	addr, ok := os.LookupEnv(brokerEnv)
	if !ok {
		return
	}
	if _, err := broker.Start(broker.Options{Listen: addr}); err != nil {
		fmt.Fprintln(os.Stderr, "broker:", err)
		os.Exit(1)
	}
	select {}
}

func startBroker(ctx context.Context, verbose bool) (*measured.Process, string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	addr, err := measured.FreeAddr()
	if err != nil {
		return nil, "", err
	}
	p, err := measured.Start(verbose, []string{brokerEnv + "=" + addr}, self)
	if err != nil {
		return nil, "", err
	}
	if err := p.WaitListening(ctx, addr); err != nil {
		p.Stop()
		return nil, "", err
	}
	return p, addr, nil
}

// createTopic creates a topic that takes large messages.
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
