package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/pkg/agent/capture"
	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/retry"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Upstream sends requests to the servers. pkg/agent/upstream implements it.
type Upstream interface {
	Controller
	Servers
}

// Spools keep the requests that wait for a server, by signal.
type Spools struct{ Spans, Flows Spool }

// Pods knows the pods of this host. It is declared here because the agent is
// its caller; pkg/agent/k8s implements it. Its methods are safe for concurrent
// use and never block for long.
type Pods interface {
	// Pod returns a pod by the UID after which its control groups are named.
	Pod(uid string) (Pod, bool)
	// ReportAll queues everything to be reported to the servers again, which
	// may be different ones now.
	ReportAll()
	// Exceptions returns the current problems, as sentences for an operator.
	Exceptions() []string
}

// Pod identifies a pod in Kubernetes.
type Pod struct{ UID, Namespace, Name, Workload string }

// Options are set by code.
type Options struct {
	Identity   Identity
	Pods       Pods   // nil without Kubernetes
	Server     string // host:port of a server; the route to it determines this host's address
	Version    string
	StateDir   string                // holds the last configuration; must exist
	Logger     *slog.Logger          // nil logs nothing
	Registerer prometheus.Registerer // nil registers nothing
	// Parked holds what servers reject out of the spools. Without a folder it
	// stays in the spools.
	Parked Parking
}

// Agent is the agent of one host. Use New.
type Agent struct {
	log        *slog.Logger
	metrics    *metrics
	codec      *codec
	forwarder  *forwarder
	flows      *flowSender
	capture    *capture.Capture
	drainers   []*drainer
	listeners  *listeners
	control    *control
	exceptions *exceptions
	link       *link
	pods       Pods
	state      stateFile
	inForce    atomic.Pointer[agentv1.Configuration]
}

// New returns an Agent that has started nothing. It uses up and the spools
// until Run returns; the caller closes them.
func New(cfg Config, up Upstream, spools Spools, opts Options) (*Agent, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Pods == nil {
		opts.Pods = noPods{}
	}
	codec, err := newCodec()
	if err != nil {
		return nil, err
	}
	a := &Agent{
		log: opts.Logger, metrics: newMetrics(opts.Registerer), codec: codec, exceptions: newExceptions(), link: newLink(opts.Logger), pods: opts.Pods,
		state: stateFile(filepath.Join(opts.StateDir, "configuration.json")),
	}
	newPipe := func(sig *signal.Signal, spool Spool) *pipe {
		return &pipe{
			signal: sig, up: up, spool: spool, codec: codec, log: opts.Logger,
			metrics: newPipeMetrics(opts.Registerer, sig), liveTime: cfg.LiveTimeout,
		}
	}
	a.forwarder = &forwarder{host: ownAddress(opts.Server, opts.Identity.Addresses), pipe: newPipe(traces.Signal, spools.Spans)}
	a.forwarder.foreign = true
	a.flows = &flowSender{
		pod: opts.Pods.Pod, node: opts.Identity.Name, agentID: opts.Identity.ID, cluster: opts.Identity.Cluster,
		pipe: newPipe(flows.Signal, spools.Flows),
	}
	a.capture = capture.New(agentconfig.Flow{}, a.flows, capture.Options{Logger: opts.Logger, Registerer: opts.Registerer})
	a.flows.owner, a.flows.process = a.capture.Owner, a.capture.Process
	a.drainers = []*drainer{newDrainer(a.forwarder.pipe, opts.Parked), newDrainer(a.flows.pipe, opts.Parked)}
	if opts.Parked.Folder != nil {
		registerParked(opts.Registerer, opts.Parked.Folder, a.drainers)
	}
	if a.listeners, err = newListeners(cfg, a.forwarder, opts.Registerer, opts.Logger, a.exceptions); err != nil {
		return nil, err
	}
	a.control = &control{
		up: up, log: opts.Logger, metrics: a.metrics, exceptions: a.exceptions, link: a.link,
		hello:      opts.Identity.Registration(opts.Version),
		connected:  opts.Pods.ReportAll,
		configured: a.configured,
		inForce: func() (string, uint64) {
			c := a.inForce.Load()
			return c.GetGroupId(), c.GetRevision()
		},
	}
	a.apply(&agentv1.Configuration{}) // defaults until a configuration is known
	return a, nil
}

// Run runs the agent until ctx ends, then lets requests in flight finish.
// Entries of the spools stay there.
func (a *Agent) Run(ctx context.Context) error {
	defer a.codec.close()
	switch kept, err := a.state.load(); {
	case err != nil:
		a.log.Warn("cannot read the stored configuration, waiting for the server's", slog.Any("error", err))
	case kept != nil:
		a.apply(kept)
		a.log.Info("using the stored configuration until a server is reached",
			slog.String("group", kept.GroupName), slog.Uint64("revision", kept.Revision))
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.listeners.run(ctx) })
	g.Go(func() error { return a.control.run(ctx) })
	for _, d := range a.drainers {
		g.Go(func() error { return d.run(ctx) })
	}
	g.Go(func() error { return a.capture.Run(ctx) })
	g.Go(func() error { return a.watchExceptions(ctx) })
	return g.Wait()
}

// configured applies a server's configuration and stores it.
func (a *Agent) configured(c *agentv1.Configuration) {
	a.apply(c)
	a.log.Info("configuration applied", slog.String("group", c.GroupName), slog.Uint64("revision", c.Revision))
	if err := a.state.save(c); err != nil {
		a.log.Warn("cannot store the configuration for the next start", slog.Any("error", err))
	}
}

// apply makes c the current configuration.
func (a *Agent) apply(c *agentv1.Configuration) {
	document, ignored, err := agentconfig.ParseLenient([]byte(c.Yaml))
	if err != nil { // the server validates before it stores; defaults would close the listener
		a.exceptions.set("configuration", err.Error())
		a.log.Error("cannot read the configuration, keeping the previous one", slog.Any("error", err))
		return
	}
	text := ""
	if len(ignored) > 0 {
		text = fmt.Sprintf("unknown to this version of the agent: %v", ignored)
	}
	a.exceptions.set("configuration", text)
	cfg := document.Config()
	// Flow data is a fraction of the traces, so a quarter of the room keeps it
	// for longer.
	a.flows.spool.SetMaxBytes(cfg.Spool.MaxBytes / 4)
	a.forwarder.spool.SetMaxBytes(cfg.Spool.MaxBytes - cfg.Spool.MaxBytes/4)
	for _, d := range a.drainers {
		d.setRate(cfg.Spool.DrainBytesPerSecond)
		d.compress.Store(cfg.Integration.Compression.Trace)
	}
	a.capture.Configure(cfg.Flow)
	a.forwarder.config.Store(&cfg)
	a.forwarder.group.Store(&c.GroupName)
	a.metrics.revision.Set(float64(c.Revision))
	a.listeners.configure(&cfg)
	a.inForce.Store(c)
}

// watchExceptions copies the exceptions of capture, parking and the Kubernetes
// watch to the heartbeats.
func (a *Agent) watchExceptions(ctx context.Context) error {
	for ctx.Err() == nil {
		a.exceptions.set("flow data", strings.Join(a.capture.Exceptions(), "; "))
		a.exceptions.set("parked", a.parkedException())
		a.exceptions.set("pods", strings.Join(a.pods.Exceptions(), "; "))
		_ = retry.Sleep(ctx, exceptionsInterval)
	}
	return nil
}

// exceptionsInterval is half of a heartbeat's interval.
const exceptionsInterval = heartbeatInterval / 2

// noPods is a host without Kubernetes.
type noPods struct{}

func (noPods) Pod(string) (Pod, bool) { return Pod{}, false }
func (noPods) ReportAll()             {}
func (noPods) Exceptions() []string   { return nil }

// Reached is a check for /ready: it returns nil once a server has answered in
// this run of the program, otherwise why none has. Later it stays nil while no
// server answers, because the agent goes on to take requests into its spool; see
// Notices.
func (a *Agent) Reached(context.Context) error { return a.link.check() }

// Configured is a check for /ready: it returns nil once some server has sent a
// configuration, in this run or an earlier one, unless the servers do not know
// the agent's group.
func (a *Agent) Configured(context.Context) error {
	if err := a.link.checkGroup(); err != nil {
		return err
	}
	if a.inForce.Load().GetGroupId() == "" {
		return errors.New("no server has sent a configuration yet")
	}
	return nil
}

// Notices returns what /ready tells beside its checks: for how long no server
// has answered.
func (a *Agent) Notices() []string {
	text := a.link.notice()
	if text == "" {
		return nil
	}
	if n := a.forwarder.spool.Len() + a.flows.spool.Len(); n > 0 {
		text += fmt.Sprintf("; %s in the spool", plural(n, "request"))
	}
	return []string{text}
}

// Listening is a check for /ready: it returns an error while a port of the
// configuration cannot be opened.
func (a *Agent) Listening(context.Context) error { return a.listeners.check() }

// Draining is a check for /ready: it returns an error while a spool cannot be
// drained because there is no room to park what servers reject.
func (a *Agent) Draining(context.Context) error {
	for _, d := range a.drainers {
		if n := d.held.blocked(); n > 0 {
			return fmt.Errorf("servers reject %s from the spool and the folder of parked requests is full (spool.parked_max_bytes); they stay in the spool, see metaflow-agent parked", plural(n, "request"))
		}
	}
	return nil
}

// parkedException returns the exception about parked requests, or "".
func (a *Agent) parkedException() string {
	if err := a.Draining(context.Background()); err != nil {
		return err.Error()
	}
	folder := a.drainers[0].parking.Folder
	if folder == nil {
		return ""
	}
	n, bytes, err := folder.Usage()
	switch {
	case err != nil:
		return err.Error()
	case n == 0:
		return ""
	default:
		return fmt.Sprintf("servers rejected %s (%s), see metaflow-agent parked list", plural(n, "request"), plural(int(bytes), "byte"))
	}
}
