package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/opshttp"
)

// app is a server: the roles of this process in the order of the data, and the
// HTTP port by which operators watch them.
//
//	knowledge  every role        reads who has which address and which agent's id
//	port       gateway, control  takes calls of collectors and agents to its services:
//	             reports           pods and services, into a topic
//	             controls          agent groups, from a topic; operators come over HTTP
//	             gateways          spans and flows, into topics
//	storage    writer            reads topics and stores what they hold in ClickHouse
//	queries    query             answers questions about what ClickHouse holds
type app struct {
	*core

	know  *knowledge
	roles []role
	// operated is the role control; nil without it.
	operated *controls
	// asked is the role query; nil without it.
	asked *queries
	http  *opshttp.Server
}

// role is a part of the server. A new role has started nothing.
type role interface {
	// needs returns the topics that the role needs, and what it does with them. The
	// role creates missing ones.
	needs() []kafka.Access
	// checks report whether the role is ready.
	checks() []opshttp.Check
	// run works until ctx ends, finishes what is in progress, and returns.
	run(ctx context.Context) error
	// close releases what the role opened. The role does not run.
	close()
}

// newApp opens what can be opened while Kafka and ClickHouse are still away.
// It starts nothing. The caller must run or close the app.
func newApp(cfg *server, log *slog.Logger) (_ *app, err error) {
	exposures := cfg.exposures()
	for _, e := range exposures {
		log.Warn("this server is open to the network", slog.String("how", e))
	}
	c, err := newCore(cfg, log)
	if err != nil {
		return nil, err
	}
	a := &app{core: c}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	var services []service
	if !cfg.needsKafka() {
		// The role query alone reads ClickHouse only.
	} else if !cfg.servesPort() {
		a.know, err = newKnowledge(c, nil)
	} else {
		r := newReports(c)
		a.know, err = newKnowledge(c, r.producer)
		r.know = a.know
		services = append(services, r)
		if cfg.has(roleControl) {
			a.operated = newControls(c, a.know, r.producer)
			services = append(services, a.operated)
		}
		if cfg.has(roleGateway) {
			services = append(services, newGateways(c))
		}
	}
	if err != nil {
		return nil, err
	}
	if a.know != nil {
		a.roles = append(a.roles, a.know)
	}
	if len(services) > 0 {
		a.roles = append(a.roles, newPort(c, a.know, services))
	}
	if cfg.has(roleWriter) {
		s, err := newStorage(c, a.know)
		if err != nil {
			return nil, err
		}
		a.roles = append(a.roles, s)
	}
	if cfg.has(roleQuery) {
		if a.asked, err = newQueries(c); err != nil {
			return nil, err
		}
		a.roles = append(a.roles, a.asked)
	}
	if a.http, err = opshttp.New(cfg.HTTP, opshttp.Options{Logger: log, Gatherer: c.reg, Checks: a.checks(), Notices: exposures}); err != nil {
		return nil, err
	}
	if a.operated != nil {
		err = a.operated.attach(a.http)
	}
	return a, err
}

func (a *app) close() {
	if a.http != nil {
		_ = a.http.Close()
	}
	for _, r := range a.roles {
		r.close()
	}
	a.kafka.Close()
}

// checks are those of the main port. The role query beside others counts at its own port
// only, because a slow read side must not stop the others' work.
func (a *app) checks() []opshttp.Check {
	var checks []opshttp.Check
	if a.cfg.needsKafka() {
		checks = append(checks, opshttp.Check{Name: "kafka", Func: a.kafka.Ping}, opshttp.Check{Name: "access", Func: a.checkAccess})
	}
	for _, r := range a.roles {
		if r != role(a.asked) || len(a.roles) == 1 {
			checks = append(checks, r.checks()...)
		}
	}
	if a.cfg.needsKafka() {
		checks = append(checks, opshttp.Check{Name: "topics", Func: a.checkProducers})
	}
	return checks
}

// checkAccess reports topics that do not exist, and what the roles need to do with topics
// and may not.
func (a *app) checkAccess(ctx context.Context) error {
	return a.kafka.CheckAccess(ctx, a.needs()...)
}

// needs returns what the roles do with topics, each topic once for each group.
func (a *app) needs() []kafka.Access {
	var all []kafka.Access
	for _, r := range a.roles {
		for _, need := range r.needs() {
			i := slices.IndexFunc(all, func(n kafka.Access) bool { return n.Topic == need.Topic && (n.Group == "" || need.Group == "") })
			if i < 0 {
				all = append(all, need)
				continue
			}
			all[i].Read, all[i].Write = all[i].Read || need.Read, all[i].Write || need.Write
			all[i].Group = cmp.Or(all[i].Group, need.Group)
		}
	}
	return all
}

// ready returns nil once the roles can do their work.
func (a *app) ready(ctx context.Context) error {
	var errs []error
	for _, r := range a.roles {
		for _, c := range r.checks() {
			errs = append(errs, c.Func(ctx))
		}
	}
	return errors.Join(errs...)
}

// run serves until ctx ends or a role fails for good. All roles stop at once,
// each in the order of the data: first what takes calls, then what these calls
// stand on. The HTTP port, by which operators watch the others, stops last.
func (a *app) run(ctx context.Context) error {
	defer a.close()
	g, ctx := errgroup.WithContext(ctx)
	ops, stopOps := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { return a.http.Run(ops) })
	g.Go(func() error {
		defer stopOps()
		return a.runRoles(ctx)
	})
	err := g.Wait()
	a.log.Info("stopped")
	return err
}

func (a *app) runRoles(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, r := range a.roles {
		g.Go(func() error { return r.run(ctx) })
	}
	g.Go(func() error {
		a.tokens.run(ctx, a.recheckAgents)
		return nil
	})
	topics := namesOf(a.needs())
	slices.Sort(topics)
	if len(topics) > 0 {
		g.Go(func() error {
			a.kafka.WatchSettings(ctx, !a.single, a.topicsNamed(slices.Compact(topics)...)...)
			return nil
		})
	}
	return g.Wait()
}

// recheckAgents ends the streams of agents whose tokens were revoked.
func (a *app) recheckAgents() {
	if a.operated != nil {
		a.operated.control.Recheck()
	}
}
