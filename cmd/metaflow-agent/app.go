package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/agent"
	"github.com/metaflowys/metaflow-server/pkg/agent/k8s"
	"github.com/metaflowys/metaflow-server/pkg/agent/parked"
	"github.com/metaflowys/metaflow-server/pkg/agent/spool"
	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/opshttp"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// app is an agent with everything it needs.
type app struct {
	log   *slog.Logger
	http  *opshttp.Server
	up    *upstream.Client
	spans *spool.Spool
	flows *spool.Spool
	agent *agent.Agent
	pods  *k8s.Watcher // nil without Kubernetes
	// kubernetesErr is why Kubernetes is not watched although it seems to
	// exist.
	kubernetesErr error
}

// newApp opens everything that needs no server. The caller must run or close
// the app.
func newApp(cfg *settings, log *slog.Logger) (_ *app, err error) {
	a := &app{log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	id, err := agent.Identity{ID: cfg.ID, Name: cfg.Name, Cluster: cfg.Cluster, Group: cfg.Group}.Complete()
	if err != nil {
		return nil, fmt.Errorf("identify this host: %w", err)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// The port comes before the agent's state: an agent that cannot start leaves nothing behind.
	// It is served from run on.
	check := func(name string, f func(*agent.Agent, context.Context) error) opshttp.Check {
		return opshttp.Check{Name: name, Func: func(ctx context.Context) error { return f(a.agent, ctx) }}
	}
	a.http, err = opshttp.New(cfg.HTTP, opshttp.Options{
		Logger: log, Gatherer: reg, Notices: cfg.exposures(), News: func() []string { return a.agent.Notices() },
		Checks: []opshttp.Check{
			check("server", (*agent.Agent).Reached), check("configuration", (*agent.Agent).Configured),
			check("listeners", (*agent.Agent).Listening), check("spool", (*agent.Agent).Draining),
		},
	})
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Spool.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("spool.dir: %w", err)
	}
	secret, err := agent.Secret(cfg.Spool.Dir)
	if err != nil {
		return nil, fmt.Errorf("spool.dir: %w", err)
	}
	if (cfg.Server.Token != "" || cfg.Server.TokenFile != "") && !cfg.Server.TLS.Enabled {
		log.Warn("the agent's token is sent in plain text; set server.tls")
	}
	for _, e := range cfg.exposures() {
		log.Warn("this agent is open to the network", slog.String("how", e))
	}
	if a.up, err = upstream.New(cfg.Server, upstream.Options{Logger: log, Registerer: reg, AgentID: id.ID, Secret: secret}); err != nil {
		return nil, err
	}
	open := func(what string) (*spool.Spool, error) {
		sp, err := spool.Open(
			spool.Config{Dir: filepath.Join(cfg.Spool.Dir, what), MaxBytes: agentconfig.Default().Spool.MaxBytes},
			spool.Options{Logger: log, Registerer: prometheus.WrapRegistererWith(prometheus.Labels{"spool": what}, reg)})
		if err != nil {
			return nil, fmt.Errorf("spool.dir: %w", err)
		}
		return sp, nil
	}
	if a.spans, err = open("spans"); err != nil {
		return nil, err
	}
	if a.flows, err = open("flows"); err != nil {
		return nil, err
	}
	folder, err := parked.Open(cfg.Spool.parkedDir(), cfg.Spool.ParkedMaxBytes)
	if err == nil {
		err = folder.Sweep()
	}
	if err != nil {
		return nil, fmt.Errorf("spool.dir: %w", err)
	}
	if err := a.watchPods(cfg.Kubernetes, id, reg); err != nil {
		return nil, err
	}
	a.agent, err = agent.New(cfg.OTLP, a.up, agent.Spools{Spans: a.spans, Flows: a.flows}, agent.Options{
		Identity: id, Pods: a.podsOfHost(), Server: cfg.Server.Addresses[0], Version: program.Version(), StateDir: cfg.Spool.Dir, Logger: log, Registerer: reg,
		Parked: agent.Parking{Folder: folder, MaxAge: cfg.Spool.ParkedMaxAge},
	})
	if err != nil {
		return nil, err
	}
	log.Info("starting agent", slog.String("id", id.ID), slog.String("name", id.Name), slog.Any("servers", cfg.Server.Addresses),
		slog.String("http", a.http.Addr().String()))
	return a, nil
}

// watchPods prepares the watch of Kubernetes if it is wanted. The agent does
// not depend on it: where Kubernetes was only detected and cannot be used, the
// agent runs without.
func (a *app) watchPods(cfg k8s.Config, id agent.Identity, reg prometheus.Registerer) (err error) {
	if !cfg.Wanted() {
		return nil
	}
	a.pods, err = k8s.New(cfg, k8s.Options{
		Reporter: reporter{a.up, a.log}, AgentID: id.ID, Cluster: id.Cluster, Node: id.Name, Logger: a.log, Registerer: reg,
	})
	if err != nil && cfg.Enabled == k8s.Auto {
		a.log.Warn("cannot watch pods in Kubernetes", slog.Any("error", err))
		a.pods, a.kubernetesErr = nil, err
		return nil
	}
	return err
}

// podsOfHost returns the agent's source of pods, nil without Kubernetes.
func (a *app) podsOfHost() agent.Pods {
	switch {
	case a.pods != nil:
		return podsOf{a.pods}
	case a.kubernetesErr != nil:
		return noPods{a.kubernetesErr}
	default:
		return nil
	}
}

// noPods stands for a Kubernetes that cannot be used.
type noPods struct{ why error }

// Pod implements agent.Pods.
func (noPods) Pod(string) (pod agent.Pod, ok bool) { return pod, false }

// ReportAll implements agent.Pods.
func (noPods) ReportAll() {}

// Exceptions implements agent.Pods.
func (p noPods) Exceptions() []string {
	return []string{fmt.Sprintf("Pods are not watched: %v", p.why)}
}

// podsOf adapts a Watcher to agent.Pods.
type podsOf struct{ *k8s.Watcher }

// Pod implements agent.Pods.
func (p podsOf) Pod(uid string) (agent.Pod, bool) {
	pod, ok := p.Watcher.Pod(uid)
	return agent.Pod{UID: pod.UID, Namespace: pod.Namespace, Name: pod.Name, Workload: pod.Workload}, ok
}

// reporter sends the Kubernetes watcher's reports to a server.
type reporter struct {
	up  *upstream.Client
	log *slog.Logger
}

// Report implements k8s.Reporter.
func (r reporter) Report(ctx context.Context, report *agentv1.ReportRequest) error {
	result, err := r.up.Report(ctx, report)
	if result.Rejected > 0 {
		r.log.Warn("server rejected pods or services", slog.Int64("rejected", result.Rejected), slog.String("cause", result.Message))
	}
	return err
}

// run runs the app until ctx ends, and stops its parts in the order of the data
// flow.
func (a *app) run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.close()) }()
	g, ctx := errgroup.WithContext(ctx)
	ops, stopOps := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { return a.http.Run(ops) })
	g.Go(func() error {
		defer stopOps() // keep /metrics available until the end
		return a.agent.Run(ctx)
	})
	if a.pods != nil {
		g.Go(func() error { return a.pods.Run(ctx) })
	}
	err = g.Wait()
	a.log.Info("stopped")
	return err
}

func (a *app) close() error {
	var errs []error
	if a.http != nil {
		errs = append(errs, a.http.Close())
	}
	for _, sp := range []*spool.Spool{a.spans, a.flows} {
		if sp != nil {
			errs = append(errs, sp.Close())
		}
	}
	if a.up != nil {
		a.up.Close()
	}
	return errors.Join(errs...)
}
