package main

import (
	"context"

	"github.com/metaflowys/metaflow-server/pkg/gateway"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/opshttp"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/schema"
)

// gateways is the role gateway: it forwards spans and flows from the port to Kafka.
type gateways struct {
	*core

	spans, flows *kafka.Producer
}

func newGateways(c *core) *gateways {
	return &gateways{core: c, spans: c.newProducer(schema.TopicSpans), flows: c.newProducer(schema.TopicFlows)}
}

func (g *gateways) topics() []string { return dataTopics }

func (g *gateways) checks() []opshttp.Check { return nil }

func (g *gateways) open(ctx context.Context, o *offer) error {
	if err := g.ensureTopics(ctx, g.topics()...); err != nil {
		return err
	}
	for _, p := range []*kafka.Producer{g.spans, g.flows} {
		if err := g.retry(ctx, "count the partitions", p.Look); err != nil {
			return err
		}
	}
	opts := gateway.Options{
		MaxRecordBytes: int(g.cfg.Kafka.MaxRecordBytes), Registerer: g.reg,
		DedupWindow: max(g.cfg.Writer.DedupWindow, g.cfg.FlowWriter.DedupWindow),
	}
	spans, err := gateway.New(g.cfg.Gateway, traces.Signal, g.spans, opts)
	if err != nil {
		return err
	}
	opts.Agents = o.agents
	fromAgents, err := gateway.New(g.cfg.Gateway, flows.Signal, g.flows, opts)
	if err != nil {
		return err
	}
	o.traces, o.overHTTP, o.options.Flows = spans, spans, fromAgents
	o.producers = append(o.producers, g.spans, g.flows)
	return nil
}
