package rpc

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/pkg/inflight"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
)

// Options are what code sets. The zero value is usable.
type Options struct {
	// ListenKey and TLSKey name Config.Listen and Config.TLS in errors. "" means
	// grpc.listen and grpc.tls.
	ListenKey, TLSKey string

	Logger     *slog.Logger          // nil logs nothing
	Registerer prometheus.Registerer // nil registers nothing
	// ShutdownGrace bounds the wait for running requests after Run's context
	// ended. Default 30 s.
	ShutdownGrace time.Duration
	// Auth is asked of every call that names an agent, and of every call of a service for agents, before
	// its message is read. Without it everybody may speak for every agent.
	Auth Auth
	// Bearer are the tokens of which an export needs one, unless it is an agent's that Auth
	// has checked: authorization: Bearer TOKEN. Nil asks for none. BearerKey names them in
	// refusals.
	Bearer    *tokens.Set
	BearerKey string
	// Callers are the tokens of which every call of Services needs one. Nil asks for none.
	// CallersKey names them in refusals.
	Callers    *tokens.Set
	CallersKey string
	// Services add services that share the port, the certificates and the
	// connection limits. The context of their streams ends when the server begins
	// to stop; unary calls may finish.
	Services []func(grpc.ServiceRegistrar)
	// Answers bounds the messages that the clients of Services have not taken. The connection of
	// a client that does not take one within ReadTime, by default a minute, is closed. Nil bounds
	// nothing.
	Answers  Answers
	ReadTime time.Duration
}

// Auth decides about callers by the context of their calls. pkg/rpc/agentauth has one.
type Auth interface {
	// Check returns nil when the caller may speak for an agent, else a status. It does not block.
	Check(ctx context.Context, agent string) error
	// Authenticated reports whether the caller belongs to the installation.
	Authenticated(ctx context.Context) bool
}

// Server receives the requests of signals, and serves agents. Make one with New.
type Server struct {
	cfg        Config
	tlsKey     string              // in errors
	services   map[string]*service // by method
	log        *slog.Logger
	registerer prometheus.Registerer
	grace      time.Duration
	portMetrics
	budget     *inflight.Budget // of exports
	others     *inflight.Budget // of all other calls
	buffers    inflight.Buffers
	copies     chan struct{}   // see largeCopy
	streaming  map[string]bool // methods whose clients may send many messages
	listener   *listener
	auth       Auth
	bearer     *tokens.Set
	bearerKey  string
	callers    *tokens.Set
	callersKey string
	answers    Answers
	readTime   time.Duration
	acceptor   *tlsconfig.Acceptor // nil when connections are plain text
	grpc       *grpc.Server
	health     *health.Server

	// streams ends when streams are to end; see guardStream.
	streams    context.Context //nolint:containedctx // the life of the server's streams, not of one call
	endStreams context.CancelFunc
}

// New checks cfg and binds its address, so that a port in use is reported before
// anything runs. It starts nothing: clients that connect early wait for Run. A
// Server that never runs must be closed. Without a sink for it the service of a
// signal is left out: its callers are told UNIMPLEMENTED.
func New(cfg Config, sinks []Sink, opts Options) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("grpc config: %w", err)
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.ShutdownGrace <= 0 {
		opts.ShutdownGrace = 30 * time.Second
	}
	if opts.ReadTime <= 0 {
		opts.ReadTime = time.Minute
	}
	opts.ListenKey, opts.TLSKey = cmp.Or(opts.ListenKey, "grpc.listen"), cmp.Or(opts.TLSKey, "grpc.tls")
	s := &Server{
		cfg:        cfg,
		tlsKey:     opts.TLSKey,
		services:   make(map[string]*service),
		log:        opts.Logger,
		registerer: opts.Registerer,
		auth:       opts.Auth,
		bearer:     opts.Bearer,
		bearerKey:  opts.BearerKey,
		callers:    opts.Callers,
		callersKey: opts.CallersKey,
		answers:    opts.Answers,
		readTime:   opts.ReadTime,
		grace:      opts.ShutdownGrace,
		budget:     inflight.New(cfg.Limits()),
		others:     inflight.New(cfg.otherLimits()),
		copies:     make(chan struct{}, runtime.GOMAXPROCS(0)),
		streaming:  make(map[string]bool),
		health:     health.NewServer(),
	}
	s.listener = &listener{server: s, byPeer: make(map[netip.Prefix]int)}
	s.streams, s.endStreams = context.WithCancel(context.Background())
	if err := s.prepare(sinks); err != nil {
		return nil, fmt.Errorf("register grpc metrics: %w", err)
	}
	serverOptions, err := s.serverOptions()
	if err != nil {
		return nil, err
	}
	if s.listener.Listener, err = net.Listen("tcp", cfg.Listen); err != nil {
		return nil, fmt.Errorf("%s: %w", opts.ListenKey, err)
	}
	s.grpc = grpc.NewServer(serverOptions...)
	for _, sig := range s.services {
		s.grpc.RegisterService(&sig.desc, sig)
	}
	others := registrar{s.grpc}
	healthpb.RegisterHealthServer(others, s.health)
	for _, register := range opts.Services {
		register(others)
	}
	if cfg.Reflection {
		reflection.Register(others)
	}
	for service, info := range s.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			s.streaming["/"+service+"/"+m.Name] = m.IsClientStream
		}
	}
	s.SetServing(true)
	return s, nil
}

// prepare makes the services of the signals, and the metrics.
func (s *Server) prepare(sinks []Sink) (err error) {
	if s.portMetrics, err = newPortMetrics(s.registerer, s); err != nil {
		return err
	}
	for _, sink := range sinks {
		service, err := s.newService(sink)
		if err != nil {
			return err
		}
		s.services[service.method] = service
	}
	return nil
}

func (s *Server) serverOptions() ([]grpc.ServerOption, error) {
	opts := []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.InTapHandle(s.admit),
		grpc.MaxRecvMsgSize(int(s.cfg.MaxRequestBytes)),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.ReadBufferSize(0), // conn has one
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.MaxConcurrentStreams(uint32(s.cfg.MaxConcurrentStreams)),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle:     s.cfg.ConnectionIdle,
			MaxConnectionAge:      s.cfg.ConnectionAge,
			MaxConnectionAgeGrace: s.cfg.ConnectionAgeGrace,
			Time:                  s.cfg.Keepalive.Time,
			Timeout:               s.cfg.Keepalive.Timeout,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime:             s.cfg.Keepalive.MinClientInterval,
			PermitWithoutStream: true,
		}),
		grpc.WaitForHandlers(true),
		grpc.ChainUnaryInterceptor(s.guardUnary),
		grpc.ChainStreamInterceptor(s.guardStream),
	}
	if s.answers != nil {
		opts = append(opts, grpc.StatsHandler(answerStats{}))
	}
	var err error
	if s.acceptor, err = s.cfg.TLS.Acceptor(s.tlsKey, s.log); err != nil {
		return nil, err
	}
	secured := insecure.NewCredentials()
	if s.acceptor != nil {
		secured = credentials.NewTLS(s.acceptor.Config())
	}
	return append(opts, grpc.Creds(guarded{secured, s})), nil
}

const (
	// maxHeaderBytes is the usual limit of HTTP/2 servers; agents and SDKs send some hundred bytes.
	maxHeaderBytes = 16 << 10
	// handshakeTimeout is for TLS and the first bytes of HTTP/2.
	handshakeTimeout = 10 * time.Second
	// streamWindow is what a client may send of a message before a handler asks for the rest, and
	// of what follows a message.
	streamWindow = 256 << 10
	// connectionWindow lets a distant client fill its line; it holds no memory.
	connectionWindow = 4 << 20
)

// Addr is where the server listens, with the port that was picked.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Budget bounds the requests in flight. Others that receive for the same consumer may be bounded
// by it too, so that the bounds are of all of them together.
func (s *Server) Budget() *inflight.Budget { return s.budget }

// Trusted reports whether the server would now accept a client of a TLS connection under its certificates: nil, or
// why not. Others that share the certificates may ask it for every request. In plain text it is nil.
func (s *Server) Trusted(state tls.ConnectionState) error {
	if s.acceptor == nil {
		return nil
	}
	return s.acceptor.Trusted(state)
}

// SetServing sets the status that the gRPC health service reports for the whole server and for
// the services that take data. A new Server is serving. After Run's context ended it says
// not serving, whatever is set.
func (s *Server) SetServing(serving bool) {
	state := healthpb.HealthCheckResponse_NOT_SERVING
	if serving {
		state = healthpb.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus("", state)
	for _, sig := range s.services {
		s.health.SetServingStatus(sig.desc.ServiceName, state)
	}
}

// Run serves until ctx ends, then lets running requests finish within the grace
// period and cuts off the rest. A stop that was asked for returns nil. When Run
// returns, no request is being served. Run is called once.
func (s *Server) Run(ctx context.Context) error {
	if s.acceptor != nil {
		looking, stop := context.WithCancel(ctx)
		var looks sync.WaitGroup
		looks.Go(func() { s.acceptor.Run(looking) })
		defer looks.Wait()
		defer stop()
	}
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(s.listener) }()

	select {
	case err := <-served:
		s.endStreams()
		s.grpc.Stop()
		return fmt.Errorf("serve grpc on %s: %w", s.Addr(), err)
	case <-ctx.Done():
	}
	s.health.Shutdown()
	s.endStreams()
	s.drain()
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve grpc on %s: %w", s.Addr(), err)
	}
	return nil
}

// drain refuses new calls and waits for running ones, at most for the grace
// period.
func (s *Server) drain() {
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		s.grpc.GracefulStop()
	}()
	timer := time.NewTimer(s.grace)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
		_, requests := s.budget.InFlight()
		s.log.Warn("requests cut off at shutdown", slog.Int("requests", requests), slog.Duration("grace", s.grace))
		s.grpc.Stop()
		<-drained
	}
}

// Close releases the port of a Server that does not run. After Run it does
// nothing.
func (s *Server) Close() error {
	s.endStreams()
	s.grpc.Stop()
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close grpc listener: %w", err)
	}
	return nil
}

// guardUnary keeps a panic in another service's call from ending the process.
func (s *Server) guardUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			resp, err = nil, s.panicked(ctx, cause)
		}
	}()
	return next(ctx, req)
}

// guardStream does the same for streams, and ends their context when the server
// stops: streams such as a health watch never end by themselves, and would hold
// every shutdown for the whole grace period.
func (s *Server) guardStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(s.streams, cancel)()
	defer func() {
		if cause := recover(); cause != nil {
			err = s.panicked(ctx, cause)
		}
	}()
	call := callOf(ctx)
	if err := call.hold(ctx); err != nil {
		return err
	}
	defer call.release()
	return call.cause(next(srv, stoppableStream{stream, ctx, call}))
}

// stoppableStream is a stream whose context ends with the server. Its messages are bounded before
// they are decoded.
type stoppableStream struct {
	grpc.ServerStream
	ctx  context.Context //nolint:containedctx // a grpc.ServerStream carries its context
	call *call
}

func (s stoppableStream) RecvMsg(m any) error {
	return s.call.receiveBounded(s.ServerStream.RecvMsg, m)
}

func (s stoppableStream) SendMsg(m any) error {
	a, err := s.call.conn.answer(s.ctx, m)
	if err != nil {
		return err
	}
	return s.ServerStream.SendMsg(a)
}

func (s stoppableStream) Context() context.Context { return s.ctx }

func (s *Server) panicked(ctx context.Context, cause any) error {
	s.panics.Inc()
	method, _ := grpc.Method(ctx)
	s.log.ErrorContext(ctx, "panic while serving a request",
		slog.String("method", method), slog.Any("panic", cause), slog.String("stack", string(debug.Stack())))
	return status.Error(codes.Internal, "internal error")
}
