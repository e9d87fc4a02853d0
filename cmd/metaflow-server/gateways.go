package main

import (
	"context"

	"github.com/metaflowys/metaflow-server/pkg/gateway"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/opshttp"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
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

func (g *gateways) topics() []string { return dataTopics }

func (g *gateways) checks() []opshttp.Check { return nil }

func (g *gateways) open(ctx context.Context, o *offer) error {
	if err := g.ensureTopics(ctx, g.topics()...); err != nil {
		return err
	}
	for _, p := range g.producers {
		if err := g.retry(ctx, "count the partitions", p.Look); err != nil {
			return err
		}
	}
	var quotas *gateway.Quotas
	if o.groups != nil {
		quotas = gateway.NewQuotas(o.groups, g.reg, nil)
	}
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
