package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/pkg/gateway"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/opshttp"
	"github.com/metaflowys/metaflow-server/pkg/otlphttp"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/schema"
)

// port serves collectors and agents: the gRPC port, which the roles gateway and control
// share, and the OTLP/HTTP port. It has at least one service.
type port struct {
	*startup

	know     *knowledge
	services []service
}

func newPort(c *core, know *knowledge, services []service) *port {
	return &port{startup: &startup{core: c}, know: know, services: services}
}

// service is one service of the port.
type service interface {
	needs() []kafka.Access
	checks() []opshttp.Check
	// open waits for what the service needs and adds the service to o.
	open(ctx context.Context, o *offer) error
}

// offer collects the services of a port.
type offer struct {
	*startup

	sinks    []rpc.Sink        // of the signals that this server receives
	overHTTP otlphttp.Consumer // nil disables OTLP/HTTP
	options  rpc.Options       // of the other services
	agents   gateway.Agents    // the registered agents; nil if this server does not know them
	groups   gateway.Groups    // the groups of all agents; the role gateway sets it if control does not
	// Calls depend on beneath, and both depend on the producers.
	beneath   []func(context.Context) error
	producers []*kafka.Producer
}

func (p *port) needs() (needs []kafka.Access) {
	for _, s := range p.services {
		needs = append(needs, s.needs()...)
	}
	return needs
}

func (p *port) checks() []opshttp.Check {
	checks := []opshttp.Check{{Name: "port", Func: p.ready}}
	for _, s := range p.services {
		checks = append(checks, s.checks()...)
	}
	return checks
}

func (p *port) close() {}

// run serves the ports until ctx ends, and returns when all calls are answered.
func (p *port) run(ctx context.Context) error {
	o := offer{startup: p.startup, options: rpc.Options{
		Logger: p.log, Registerer: p.reg, ShutdownGrace: p.cfg.ShutdownGrace, Auth: p.know.guard,
		Bearer: p.tokens.bearers, BearerKey: gateway.BearerKey,
	}}
	for _, s := range p.services {
		if err := s.open(ctx, &o); err != nil {
			return unlessStopped(ctx, err)
		}
	}
	p.know.await(ctx, "agents are refused until the owners of their ids are known")
	receiver, err := rpc.New(p.cfg.GRPC, o.sinks, o.options)
	if err != nil {
		return err
	}
	p.log.Info("listening for grpc", slog.String("address", receiver.Addr().String()), slog.Any("roles", p.cfg.Roles))
	httpReceiver, err := p.newOTLPHTTP(o.overHTTP, receiver)
	if err != nil {
		return errors.Join(err, receiver.Close())
	}
	receivers, receiving := errgroup.WithContext(ctx)
	if httpReceiver == nil {
		p.listening(receiver.Addr(), nil)
	} else {
		p.listening(receiver.Addr(), httpReceiver.Addr())
		receivers.Go(func() error { return httpReceiver.Run(receiving) })
	}
	receivers.Go(func() error { return receiver.Run(receiving) })
	p.finish()

	// Dependencies of a call outlive the last call.
	var producing, beneath background
	for _, producer := range o.producers {
		producing.run(ctx, producer.Run)
	}
	for _, f := range o.beneath {
		beneath.run(ctx, f)
	}
	beneath.run(ctx, func(ctx context.Context) error {
		collectSooner(ctx, receiver.Budget())
		return nil
	})
	return errors.Join(receivers.Wait(), beneath.stop(), producing.stop())
}

// newOTLPHTTP binds the OTLP/HTTP port, which shares bounds and certificates with
// OTLP/gRPC. It returns nil if the port is disabled.
func (p *port) newOTLPHTTP(traces otlphttp.Consumer, receiver *rpc.Server) (*otlphttp.Server, error) {
	if traces == nil || p.cfg.Gateway.HTTPListen == "" {
		return nil, nil //nolint:nilnil // nil means no port
	}
	certificates, err := p.cfg.GRPC.TLS.Config("grpc.tls", p.log, "h2", "http/1.1")
	if err != nil {
		return nil, err
	}
	s, err := otlphttp.New(p.cfg.otlpHTTP(), traces, otlphttp.Options{
		Logger: p.log, Metrics: otlphttp.NewMetrics(p.reg), ShutdownGrace: p.cfg.ShutdownGrace, TLS: certificates,
		Budget: receiver.Budget(), Trusted: receiver.Trusted, Bearer: p.tokens.bearers, BearerKey: gateway.BearerKey,
	})
	switch {
	case err != nil && p.cfg.Gateway.HTTPListen == p.spareHTTP && errors.Is(err, syscall.EADDRINUSE):
		p.log.Warn("otlp http is disabled: its port is in use; choose another with --otlp-http-listen", slog.String("address", p.spareHTTP))
		return nil, nil //nolint:nilnil // nil means no port
	case err != nil:
		return nil, fmt.Errorf("gateway.http_listen: %w", err)
	}
	p.log.Info("listening for otlp http", slog.String("address", s.Addr().String()))
	return s, nil
}

// reports receives the agents' reports of pods and services.
type reports struct {
	*core

	know     *knowledge
	producer *kafka.Producer
}

func newReports(c *core) *reports {
	return &reports{core: c, producer: c.newProducer(schema.TopicResources)}
}

func (r *reports) needs() []kafka.Access {
	return []kafka.Access{{Topic: schema.TopicResources, Read: true, Write: true}}
}

func (r *reports) checks() []opshttp.Check { return nil }

func (r *reports) open(_ context.Context, o *offer) error {
	o.options.Services = append(o.options.Services, rpc.NewResourceService(r.know.resources, r.know.guard.Check).Register)
	o.producers = append(o.producers, r.producer)
	return nil
}
