package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/metaflowys/metaflow-server/pkg/control"
	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/opshttp"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/schema"
)

// controls is the role control: agents on the port, operators over HTTP, and the topic
// metaflow.control with the operators' changes.
type controls struct {
	*core

	know     *knowledge
	commands *kafka.Producer
	reports  *kafka.Producer // writes the agents' statuses
	// Set by attach.
	control *control.Control
	streams *rpc.ControlService
}

func newControls(c *core, know *knowledge, reports *kafka.Producer) *controls {
	return &controls{core: c, know: know, commands: c.newProducer(schema.TopicControl), reports: reports}
}

// attach serves operators on the HTTP port. They may connect as soon as the port is
// served, and get an error while control is not ready. Call it before the port runs.
func (c *controls) attach(http *opshttp.Server) error {
	replica, err := replicaName(http.Addr())
	if err != nil {
		return err
	}
	c.control, err = control.New(c.cfg.Control, control.Options{
		Log: c.kafka, Commands: c.commands, Resources: c.reports, Replica: replica, Logger: c.log, Registerer: c.reg, Guard: c.know.guard,
	})
	if err != nil {
		return err
	}
	c.streams, err = rpc.NewControlService(c.control, rpc.ControlOptions{
		Logger: c.log, Registerer: c.reg, MaxStreams: c.cfg.Control.MaxStreams, Authorize: c.know.guard.Check,
	})
	if err != nil {
		return err
	}
	http.Handle("/v1/", api.NewHandler(c.control, api.HandlerOptions{
		Logger: c.log, Tokens: c.tokens.operators, AnonymousWrites: c.cfg.Control.AllowAnonymousWrites,
	}))
	return nil
}

// replicaName returns the address at which other hosts, and metaflow-ctl there, reach
// this server. Two servers on one host have different ports.
func replicaName(http net.Addr) (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("find the name of this host: %w", err)
	}
	_, port, err := net.SplitHostPort(http.String())
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(host, port), nil
}

func (c *controls) needs() []kafka.Access {
	return []kafka.Access{{Topic: schema.TopicControl, Read: true, Write: true}, {Topic: schema.TopicResources, Read: true, Write: true}}
}

func (c *controls) checks() []opshttp.Check {
	return []opshttp.Check{{Name: "control", Func: func(ctx context.Context) error { return c.control.Ready(ctx) }}}
}

func (c *controls) open(ctx context.Context, o *offer) error {
	if err := o.ensureTopics(ctx, namesOf(c.needs())...); err != nil {
		return err
	}
	o.options.Services = append(o.options.Services, c.streams.Register)
	o.agents, o.groups = c.control, c.control
	o.beneath = append(o.beneath, c.control.Run)
	o.producers = append(o.producers, c.commands)
	return nil
}
