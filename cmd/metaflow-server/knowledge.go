package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/inventory"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/opshttp"
	"github.com/metaflowys/metaflow-server/pkg/rpc/agentauth"
	"github.com/metaflowys/metaflow-server/schema"
)

// knowledge is what every server reads from metaflow.resources, whatever its roles: which
// pod or service held which address at a given time, and which agent owns an id.
type knowledge struct {
	*core

	starting  startup
	resources *inventory.Resources
	guard     *agentauth.Guard
}

// newKnowledge returns a reader of the topic. reports is the producer of a server that
// accepts reports of pods, otherwise nil.
func newKnowledge(c *core, reports *kafka.Producer) (*knowledge, error) {
	guard := c.tokens.guard(c.cfg)
	opts := inventory.Options{Log: c.kafka, Logger: c.log, Registerer: c.reg, Also: guard, Joined: guard.Joined}
	if reports != nil {
		opts.Producer = reports
	}
	resources, err := inventory.New(c.cfg.Resources, opts)
	return &knowledge{core: c, starting: startup{core: c}, resources: resources, guard: guard}, err
}

func (k *knowledge) needs() []kafka.Access {
	return []kafka.Access{{Topic: schema.TopicResources, Read: true}}
}

func (k *knowledge) checks() []opshttp.Check {
	return []opshttp.Check{{Name: "resources", Func: k.resources.Ready}}
}

// run reads the topic until ctx ends.
func (k *knowledge) run(ctx context.Context) error {
	if err := k.starting.ensureTopics(ctx, schema.TopicResources); err != nil {
		return unlessStopped(ctx, err)
	}
	return k.resources.Run(ctx)
}

func (k *knowledge) close() {}

// patience bounds how long others wait after a start until the topic is read. It is
// several times what reading resources.max_objects takes, and no longer than agents
// gather flows before they send them.
const patience = 10 * time.Second

// await returns once the topic has been read to its end. After patience it gives up and
// logs the consequence.
func (k *knowledge) await(ctx context.Context, without string) {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := k.resources.Await(waiting); err != nil && ctx.Err() == nil {
		k.log.Warn("metaflow.resources has not been read to its end yet", slog.String("consequence", without), slog.Any("error", err))
	}
}
