package opshttp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof" // also registers on http.DefaultServeMux, which nothing serves
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
	"github.com/metaflowys/metaflow-server/pkg/values"
)

// Config is what an operator may set. Start from DefaultConfig.
type Config struct {
	// Listen: host:port of /healthz, /ready and /metrics; port 0 picks a
	// free one.
	Listen string           `mapstructure:"listen" doc:"host:port of /healthz, /ready and /metrics; port 0 picks a free one"`
	TLS    tlsconfig.Server `mapstructure:"tls"`
	// Insecure: serve plain text on an address that other hosts reach;
	// without this or tls, the program does not start on one.
	Insecure bool `mapstructure:"insecure" doc:"serve plain text on an address that other hosts reach; without this or tls, the program does not start on one"`
	// Pprof: serve profiles under /debug/pprof/ to everybody who reaches
	// the port.
	Pprof bool `mapstructure:"pprof" doc:"serve profiles under /debug/pprof/ to everybody who reaches the port"`
}

// DefaultConfig returns the configuration of a server on its documented port.
func DefaultConfig() Config {
	return Config{Listen: "127.0.0.1:20417"}
}

// Validate reports every problem at once, each by its key.
func (c Config) Validate() error {
	err := c.TLS.Validate("tls")
	if wrong := values.CheckListen(c.Listen); wrong != nil {
		err = errors.Join(fmt.Errorf("listen: %q %w", c.Listen, wrong), err)
	}
	return err
}

// Options are set by code. The zero value is usable.
type Options struct {
	Key      string              // of the section of Config, in errors; "" means http
	Listen   string              // key of Config.Listen, in errors; "" means listen in that section
	Logger   *slog.Logger        // nil discards
	Gatherer prometheus.Gatherer // nil disables /metrics
	Checks   []Check             // none means always ready
	Notices  []string            // for operators, shown by /ready
	News     func() []string     // further notices, as of now; nil means none
}

const (
	// readHeaderTimeout disconnects a client that sends nothing.
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 2 * time.Minute
	// readTimeout bounds a request with its body. Handlers that accept larger bodies set
	// their own.
	readTimeout = 10 * time.Second
	// writeTimeout allows the largest response over a slow line. Profiles add their
	// duration.
	writeTimeout   = 60 * time.Second
	maxHeaderBytes = 32 << 10
	// maxConnections is far more than probes, scrapers and operators need.
	maxConnections       = 512
	maxConnectionsOfPeer = 64
	// scrapesAtOnce allows a pair of scrapers and a person.
	scrapesAtOnce = 4
	// stopTimeout bounds the wait for responses when Run's context ends.
	stopTimeout = 5 * time.Second
)

// Server serves HTTP. Create it with New.
type Server struct {
	mux      *http.ServeMux
	http     *http.Server
	listener net.Listener
}

// New validates cfg and binds its address, so that a port in use is reported before
// anything runs. It starts nothing: early clients wait for Run. A Server that never runs
// must be closed.
func New(cfg Config, opts Options) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("http config: %w", err)
	}
	if opts.Key == "" {
		opts.Key = "http"
	}
	opts.Listen = cmp.Or(opts.Listen, opts.Key+".listen")
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	acceptor, err := cfg.TLS.Acceptor(opts.Key+".tls", opts.Logger)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", opts.Listen, err)
	}
	s := &Server{mux: http.NewServeMux(), listener: bound(listener)}
	s.http = &http.Server{
		Handler:           unhurried(s.mux),
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(opts.Logger.Handler(), slog.LevelWarn),
	}
	if acceptor != nil {
		s.http.TLSConfig = acceptor.Config()
		s.http.Handler = stillTrusted(acceptor, s.http.Handler)
	}
	s.Handle("GET /healthz", http.HandlerFunc(alive))
	s.Handle("GET /ready", &readiness{checks: opts.Checks, notices: opts.Notices, news: opts.News})
	if opts.Gatherer != nil {
		s.Handle("GET /metrics", promhttp.HandlerFor(opts.Gatherer, promhttp.HandlerOpts{
			ErrorLog:            s.http.ErrorLog,
			ErrorHandling:       promhttp.ContinueOnError, // one broken collector must not hide the others
			MaxRequestsInFlight: scrapesAtOnce,
		}))
	}
	if cfg.Pprof {
		s.handleProfiles()
	}
	return s, nil
}

// unhurried clears the read deadline if there is no body: net/http keeps reading to
// detect a client that disconnects, and would treat an expired deadline as a disconnect.
func unhurried(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body == nil || r.Body == http.NoBody {
			_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // tests use a writer without deadlines
		}
		next.ServeHTTP(w, r)
	})
}

// stillTrusted refuses requests on connections whose client certificate is no longer
// trusted.
func stillTrusted(acceptor *tlsconfig.Acceptor, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := acceptor.Trusted(*r.TLS); err != nil {
			w.Header().Set("Connection", "close")
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func alive(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "ok\n") // fails only if the client has disconnected
}

func (s *Server) handleProfiles() {
	s.Handle("/debug/pprof/", http.HandlerFunc(pprof.Index))
	s.Handle("/debug/pprof/cmdline", http.HandlerFunc(pprof.Cmdline))
	s.Handle("/debug/pprof/profile", http.HandlerFunc(pprof.Profile))
	s.Handle("/debug/pprof/symbol", http.HandlerFunc(pprof.Symbol))
	s.Handle("/debug/pprof/trace", http.HandlerFunc(pprof.Trace))
}

// Handle adds a handler for a pattern of http.ServeMux, at any time. It panics if the
// pattern is taken or malformed.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// Addr returns the listen address with the actual port.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until ctx ends, then waits a few seconds for responses in progress. A
// requested stop returns nil. Call it once.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() {
		if s.http.TLSConfig != nil {
			served <- s.http.ServeTLS(s.listener, "", "")
			return
		}
		served <- s.http.Serve(s.listener)
	}()
	select {
	case err := <-served:
		return fmt.Errorf("serve http on %s: %w", s.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	err := s.http.Shutdown(stop)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.http.Close() // a client reads too slowly, or a profile is being taken
	}
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	if err != nil {
		return fmt.Errorf("stop http on %s: %w", s.Addr(), err)
	}
	return nil
}

// Close releases the port of a Server that does not run. After Run it does nothing.
func (s *Server) Close() error {
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close http listener: %w", err)
	}
	return nil
}
