package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/cors"
	"github.com/metaflowys/metaflow-server/pkg/otlphttp"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
)

const (
	// bindRetry is the interval at which a port that is in use is tried again.
	bindRetry = 3 * time.Second
	// listenerGrace is how long requests in flight may take when the
	// configuration closes a listener: longer than they may wait for a server.
	listenerGrace = 10 * time.Second
)

// receiver is a server on one port: otlphttp.Server or rpc.Server.
type receiver interface {
	Addr() net.Addr
	Run(ctx context.Context) error
}

// settings are what an endpoint depends on; a change reopens it.
type settings struct {
	port            int // 0 closes the port
	maxRequestBytes int64
	cors            cors.Policy
}

func (s settings) equal(o settings) bool {
	return s.port == o.port && s.maxRequestBytes == o.maxRequestBytes && s.cors.Equal(o.cors)
}

// endpoint is one port that the configuration opens and closes.
type endpoint struct {
	key  string // key in the configuration
	want func(*agentconfig.Config) settings
	open func(settings) (receiver, error)

	wanted settings
	has    settings
	stop   context.CancelFunc // nil if closed
	ended  chan struct{}
}

// listeners opens and closes ports as configured.
type listeners struct {
	log        *slog.Logger
	exceptions *exceptions
	wanted     chan *agentconfig.Config // capacity 1: the latest configuration
	endpoints  []*endpoint
	bearers    *tokens.Set
	confined   bool           // to loopback, because nothing allows more
	failed     chan *endpoint // an endpoint whose receiver ended by itself

	mu      sync.Mutex
	closed  map[string]string   // why wanted ports are not open, by key
	pending *agentconfig.Config // the latest configuration until run has tried its ports
}

// newListeners reads the certificates and tokens of local once, so that a mistake shows at
// the start.
func newListeners(local Config, f *forwarder, reg prometheus.Registerer, log *slog.Logger, e *exceptions) (*listeners, error) {
	bind, confined := local.bind()
	address := func(port int) string { return net.JoinHostPort(bind, strconv.Itoa(port)) }
	bearers, err := tokens.Open(log, local.bearers())
	if err != nil {
		return nil, err
	}
	certificates, err := local.TLS.Acceptor("otlp.tls", log, "h2", "http/1.1")
	if err != nil {
		return nil, err
	}
	metrics := otlphttp.NewMetrics(reg)
	overHTTPPort := &endpoint{
		key: "inputs.integration.listen_port",
		want: func(c *agentconfig.Config) settings {
			web := cors.DefaultPolicy()
			web.AllowedOrigins, web.AllowedHeaders = c.Integration.CORSAllowedOrigins, c.Integration.CORSAllowedHeaders
			return settings{c.Integration.ListenPort, c.Integration.MaxRequestBytes, web}.unless(!c.Integration.Enabled)
		},
		open: func(s settings) (receiver, error) {
			cfg := otlphttp.DefaultConfig()
			cfg.Listen, cfg.MaxRequestBytes, cfg.CORS = address(s.port), s.maxRequestBytes, s.cors
			cfg.MaxBytesInFlight = max(cfg.MaxBytesInFlight, s.maxRequestBytes)
			opts := otlphttp.Options{Logger: log, Metrics: metrics, ShutdownGrace: listenerGrace, Bearer: bearers, BearerKey: bearerKey}
			if certificates != nil {
				opts.TLS, opts.Trusted = certificates.Config(), certificates.Trusted
			}
			return otlphttp.New(cfg, f, opts)
		},
	}
	overGRPCPort := &endpoint{
		key: "inputs.integration.grpc_port",
		want: func(c *agentconfig.Config) settings {
			return settings{port: c.Integration.GRPCPort, maxRequestBytes: c.Integration.MaxRequestBytes}.unless(!c.Integration.Enabled)
		},
		open: func(s settings) (receiver, error) {
			cfg := rpc.DefaultConfig()
			cfg.Listen, cfg.MaxRequestBytes, cfg.TLS = address(s.port), s.maxRequestBytes, local.TLS
			cfg.MaxBytesInFlight = max(agentBytesInFlight, s.maxRequestBytes)
			scoped := &removable{Registerer: reg}
			r, err := rpc.New(cfg, []rpc.Sink{{Signal: traces.Signal, Consumer: f}}, rpc.Options{
				Logger: log, Registerer: scoped.orNil(), ShutdownGrace: listenerGrace, Bearer: bearers, BearerKey: bearerKey,
			})
			if err != nil {
				scoped.remove()
				return nil, err
			}
			return &scopedReceiver{r, scoped}, nil
		},
	}
	return &listeners{
		log: log, exceptions: e, bearers: bearers, confined: confined,
		wanted: make(chan *agentconfig.Config, 1), failed: make(chan *endpoint), closed: map[string]string{},
		endpoints: []*endpoint{overHTTPPort, overGRPCPort},
	}, nil
}

// agentBytesInFlight bounds the OTLP/gRPC requests in flight in an agent, which
// shares its host with the programs that it observes.
const agentBytesInFlight = 64 << 20

func (s settings) unless(off bool) settings {
	if off || s.port == 0 {
		return settings{}
	}
	return s
}

// configure makes run open and close ports as cfg says. It does not block.
func (l *listeners) configure(cfg *agentconfig.Config) {
	l.mu.Lock()
	l.pending = cfg
	l.mu.Unlock()
	for {
		select {
		case l.wanted <- cfg:
			return
		default:
		}
		select {
		case <-l.wanted: // replaced by the newer one
		default:
		}
	}
}

// run keeps the ports as configured until ctx ends, then closes them.
func (l *listeners) run(ctx context.Context) error {
	following, stop := context.WithCancel(ctx)
	var files sync.WaitGroup
	defer files.Wait()
	defer stop()
	files.Go(func() { l.bearers.Run(following, nil) })
	retry := time.NewTicker(bindRetry)
	defer retry.Stop()
	var cfg *agentconfig.Config
	for {
		select {
		case cfg = <-l.wanted:
			for _, e := range l.endpoints {
				e.wanted = e.want(cfg)
			}
		case e := <-l.failed:
			e.close()
		case <-retry.C:
		case <-ctx.Done():
			for _, e := range l.endpoints {
				e.close()
			}
			return nil
		}
		for _, e := range l.endpoints {
			l.reconcile(ctx, e)
		}
		l.mu.Lock()
		if l.pending == cfg {
			l.pending = nil
		}
		l.mu.Unlock()
	}
}

// reconcile brings e to the wanted state, or sets an exception.
func (l *listeners) reconcile(ctx context.Context, e *endpoint) {
	if e.wanted.equal(e.has) {
		return
	}
	if e.stop != nil {
		e.close()
		l.log.InfoContext(ctx, "listener closed", slog.String("key", e.key), slog.Int("port", e.has.port))
		e.has = settings{}
	}
	if e.wanted.port == 0 {
		l.setClosed(e.key, "")
		l.exceptions.set(e.key, "")
		return
	}
	r, err := e.open(e.wanted)
	if err != nil {
		l.setClosed(e.key, err.Error())
		l.exceptions.set(e.key, err.Error())
		l.log.WarnContext(ctx, "cannot open listener, retrying", slog.String("key", e.key), slog.Any("error", err))
		return
	}
	l.setClosed(e.key, "")
	limits := l.limits(e.wanted.port)
	l.exceptions.set(e.key, limits)
	if limits != "" {
		l.log.WarnContext(ctx, "listener is open on loopback only", slog.String("key", e.key), slog.String("cause", limits))
	}
	l.log.InfoContext(ctx, "listener opened", slog.String("key", e.key), slog.String("address", r.Addr().String()))
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	e.stop, e.has, e.ended = stop, e.wanted, make(chan struct{})
	go func(ended chan struct{}) {
		defer close(ended)
		err := r.Run(running)
		if running.Err() != nil {
			return
		}
		l.setClosed(e.key, errText(err))
		l.exceptions.set(e.key, errText(err))
		select {
		case l.failed <- e:
		case <-running.Done():
		}
	}(e.ended)
}

// setClosed records why the wanted port of a key is not open; an empty cause, that it is or
// that none is wanted.
func (l *listeners) setClosed(key, cause string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if cause == "" {
		delete(l.closed, key)
		return
	}
	l.closed[key] = cause
}

// check returns an error that names each wanted port that is not open and why.
func (l *listeners) check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	if l.pending != nil {
		errs = append(errs, errors.New("the ports of the configuration are about to be opened"))
	}
	for _, key := range slices.Sorted(maps.Keys(l.closed)) {
		errs = append(errs, fmt.Errorf("%s: %s; it is tried again every %s", key, l.closed[key], bindRetry))
	}
	return errors.Join(errs...)
}

// limits says why other hosts do not reach a port, empty if they do.
func (l *listeners) limits(port int) string {
	if !l.confined {
		return ""
	}
	return fmt.Sprintf("port %d accepts only senders on this host, because plain text is not allowed: "+
		"set otlp.tls, or \"otlp.insecure: true\", or \"otlp.bind_address: 127.0.0.1\" if that is what you want", port)
}

func errText(err error) string {
	if err == nil {
		err = errors.New("listener ended")
	}
	return err.Error()
}

// close stops the endpoint and waits for its requests.
func (e *endpoint) close() {
	if e.stop == nil {
		return
	}
	e.stop()
	<-e.ended
	e.stop, e.has = nil, settings{}
}

// removable records the registered collectors, to unregister them with the
// listener that they describe.
type removable struct {
	prometheus.Registerer
	collectors []prometheus.Collector
}

func (r *removable) orNil() prometheus.Registerer {
	if r.Registerer == nil {
		return nil
	}
	return r
}

// Register implements prometheus.Registerer.
func (r *removable) Register(c prometheus.Collector) error {
	err := r.Registerer.Register(c)
	if err == nil {
		r.collectors = append(r.collectors, c)
	}
	return err
}

// MustRegister implements prometheus.Registerer.
func (r *removable) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		r.Registerer.MustRegister(c)
		r.collectors = append(r.collectors, c)
	}
}

func (r *removable) remove() {
	for _, c := range r.collectors {
		r.Unregister(c)
	}
}

// scopedReceiver unregisters its metrics when it ends.
type scopedReceiver struct {
	*rpc.Server
	scoped *removable
}

func (r *scopedReceiver) Run(ctx context.Context) error {
	defer r.scoped.remove()
	return r.Server.Run(ctx)
}
