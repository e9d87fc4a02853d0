package otlphttp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/inflight"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
)

// maxHeaderBytes is far more than exporters send, including tokens and baggage, and
// little compared with the cost of a connection.
const maxHeaderBytes = 32 << 10

// maxStreams bounds the concurrent requests on one HTTP/2 connection; further ones wait
// in the client. It equals the bound for OTLP/gRPC.
const maxStreams = 128

// connKey is the context key of a request's *connection.
type connKey struct{}

// Options are set by code. The zero value is usable.
type Options struct {
	Logger *slog.Logger // nil discards
	// Metrics are the metrics of the port, shared by the Servers that serve it one after
	// another. Nil counts into unregistered metrics.
	Metrics *Metrics
	// ShutdownGrace bounds the wait for running requests after Run's context ended.
	// Default 30 s.
	ShutdownGrace time.Duration
	// TLS encrypts the port if set. It should offer the protocols h2 and http/1.1.
	TLS *tls.Config
	// Trusted is called for every request over TLS and returns an error if the
	// connection's client would no longer be accepted: its authority may have been
	// removed since the handshake. Nil trusts all.
	Trusted func(tls.ConnectionState) error
	// Bearer are the tokens of which a request needs one: Authorization: Bearer TOKEN. Nil
	// asks for none. BearerKey names them in refusals.
	Bearer    *tokens.Set
	BearerKey string
	// Budget bounds the bytes and requests in flight, possibly shared with other servers.
	// Its limits should match the Config. Nil creates one from the Config.
	Budget *inflight.Budget
}

// Server receives OTLP traces. Create it with New.
type Server struct {
	cfg         Config
	consumer    Consumer
	log         *slog.Logger
	grace       time.Duration
	trusted     func(tls.ConnectionState) error
	bearer      *tokens.Set
	bearerKey   string
	metrics     *Metrics
	budget      *inflight.Budget
	buffers     inflight.Buffers
	decoders    *decoders
	connections *connections
	listener    net.Listener

	allowedHeaders string // of browsers
	http           *http.Server
	running        requests
}

// New validates cfg and binds its address, so that a port in use is reported before
// anything runs. It starts nothing: early clients wait for Run. A Server that never runs
// must be closed.
func New(cfg Config, consumer Consumer, opts Options) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("otlp http config: %w", err)
	}
	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for otlp http: %w", err)
	}
	return newServer(cfg, consumer, opts, listener), nil
}

func newServer(cfg Config, consumer Consumer, opts Options, listener net.Listener) *Server {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Metrics == nil {
		opts.Metrics = NewMetrics(nil)
	}
	if opts.ShutdownGrace <= 0 {
		opts.ShutdownGrace = 30 * time.Second
	}
	if opts.Budget == nil {
		opts.Budget = inflight.New(inflight.Limits{
			RequestBytes: cfg.MaxRequestBytes, Bytes: cfg.MaxBytesInFlight, Requests: cfg.MaxRequestsInFlight, PeerShare: cfg.PeerShare,
		})
	}
	s := &Server{
		cfg:            cfg,
		consumer:       consumer,
		log:            opts.Logger,
		grace:          opts.ShutdownGrace,
		trusted:        opts.Trusted,
		bearer:         opts.Bearer,
		bearerKey:      opts.BearerKey,
		metrics:        opts.Metrics,
		budget:         opts.Budget,
		decoders:       newDecoders(runtime.GOMAXPROCS(0)),
		connections:    newConnections(cfg.MaxConnections, cfg.MaxConnectionsPerPeer),
		listener:       listener,
		allowedHeaders: allowedHeaders(&cfg),
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{
		Handler:                      s,
		Protocols:                    protocols,
		TLSConfig:                    opts.TLS,
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: maxStreams, WriteByteTimeout: writeTimeout},
		ConnContext:                  s.connected,
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            cfg.HeaderTimeout,
		IdleTimeout:                  cfg.IdleTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		ConnState:                    s.connectionChanged,
		ErrorLog:                     slog.NewLogLogger(opts.Logger.Handler(), slog.LevelDebug), // client errors
	}
	s.metrics.current.Store(s)
	return s
}

// Addr returns the listen address with the actual port.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until ctx ends, then lets running requests finish within the grace period
// and aborts the rest. A requested stop returns nil. When Run returns, the port is free
// and no request is being served. Call it once.
func (s *Server) Run(ctx context.Context) error {
	defer s.metrics.current.CompareAndSwap(s, nil)
	requests, endRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer endRequests()
	s.http.BaseContext = func(net.Listener) context.Context { return requests }

	served := make(chan error, 1)
	go func() { served <- s.serve() }()
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
		s.drain(requests)
		err = <-served
	}
	endRequests()
	s.http.Close()
	s.running.wait()
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve otlp http on %s: %w", s.Addr(), err)
}

func (s *Server) serve() error {
	if s.http.TLSConfig != nil {
		return s.http.ServeTLS(s.listener, "", "")
	}
	return s.http.Serve(s.listener)
}

// drain stops listening and waits for running requests, for the grace period at most.
func (s *Server) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.grace)
	defer cancel()
	s.connections.drain() // http.Server.Shutdown would wait some seconds for new connections
	if err := s.http.Shutdown(ctx); errors.Is(err, context.DeadlineExceeded) {
		_, requests := s.budget.InFlight()
		s.log.Warn("aborted requests at shutdown", slog.Int("requests", requests), slog.Duration("grace", s.grace))
	}
}

// Close releases the port of a Server that does not run. After Run it does nothing.
func (s *Server) Close() error {
	s.metrics.current.CompareAndSwap(s, nil)
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close otlp http listener: %w", err)
	}
	return nil
}

// connected implements http.Server.ConnContext, which net/http calls before it reports a
// connection as new.
func (s *Server) connected(ctx context.Context, conn net.Conn) context.Context {
	address := peerOf(conn.RemoteAddr().String()).Addr()
	return context.WithValue(ctx, connKey{}, s.connections.add(conn, inflight.Network(address), s.budget.Peer(address)))
}

func (s *Server) connectionChanged(conn net.Conn, state http.ConnState) {
	if evict, over := s.connections.changed(conn, state); evict != nil {
		s.metrics.evicted.WithLabelValues(over).Inc()
		closeNow(evict)
	}
}

// requests counts handlers, so that Run can wait for the last of them. A request that
// arrives after Run has begun to wait is refused.
type requests struct {
	mu     sync.Mutex
	closed bool
	count  sync.WaitGroup
}

func (r *requests) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.count.Add(1)
	return true
}

func (r *requests) leave() { r.count.Done() }

func (r *requests) wait() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.count.Wait()
}
