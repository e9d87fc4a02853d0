package main

import (
	"context"

	"github.com/metaflowys/metaflow-server/pkg/control"
	"github.com/metaflowys/metaflow-server/pkg/gateway"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/opshttp"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/schema"
)

// gateways is the role gateway: it forwards the requests of signals from
// the port to Kafka.
type gateways struct {
	*core

	producers []*kafka.Producer // one for each of signals
}

func newGateways(c *core) *gateways {
	g := &gateways{core: c}
	for _, sig := range signals {
		g.producers = append(g.producers, c.newProducer(sig.Topic))
	}
	return g
}

func (g *gateways) needs() []kafka.Access {
	needs := []kafka.Access{{Topic: schema.TopicResources, Read: true}, {Topic: schema.TopicControl, Read: true}}
	for _, sig := range signals {
		needs = append(needs, kafka.Access{Topic: sig.Topic, Write: true})
	}
	return needs
}

func (g *gateways) checks() []opshttp.Check { return nil }

func (g *gateways) open(ctx context.Context, o *offer) error {
	names := []string{schema.TopicResources}
	for _, sig := range signals {
		names = append(names, sig.Topic)
	}
	if err := o.ensureTopics(ctx, names...); err != nil {
		return err
	}
	for _, p := range g.producers {
		if err := o.retry(ctx, "count the partitions", p.Look); err != nil {
			return err
		}
	}
	if o.groups == nil {
		if err := g.followGroups(o); err != nil {
			return err
		}
	}
	quotas := gateway.NewQuotas(o.groups, g.reg, nil)
	for i, sig := range signals {
		gw, err := gateway.New(g.cfg.Gateway, sig, g.producers[i], gateway.Options{
			MaxRecordBytes: int(g.cfg.Kafka.MaxRecordBytes), Agents: o.agents, Quotas: quotas, Registerer: g.reg,
			DedupWindow: max(g.cfg.Writer.DedupWindow, g.cfg.FlowWriter.DedupWindow),
		})
		if err != nil {
			return err
		}
		o.sinks = append(o.sinks, rpc.Sink{Signal: sig, Consumer: gw})
		if sig == traces.Signal {
			o.overHTTP = gw
		}
	}
	o.producers = append(o.producers, g.producers...)
	return nil
}

// followGroups makes a server without the role control read the agent groups, for their
// quotas. Requests are served meanwhile, without quotas.
func (g *gateways) followGroups(o *offer) error {
	groups, err := control.New(g.cfg.Control, control.Options{Log: g.kafka, Replica: roleGateway, Logger: g.log})
	if err != nil {
		return err
	}
	o.groups = groups
	o.beneath = append(o.beneath, func(ctx context.Context) error {
		quotas := startup{core: g.core}
		if err := quotas.ensureTopics(ctx, schema.TopicControl); err != nil {
			return unlessStopped(ctx, err)
		}
		return groups.Follow(ctx)
	})
	return nil
}
