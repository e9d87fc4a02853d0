package webstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// stopLimit bounds the requests in progress at a stop; all of them together
// take less than a second.
const stopLimit = 5 * time.Second

// rpcNames are the names of the gRPC services.
var rpcNames = map[string]string{
	adService:             "AdService",
	cartService:           "CartService",
	checkoutService:       "CheckoutService",
	currencyService:       "CurrencyService",
	paymentService:        "PaymentService",
	productCatalogService: "ProductCatalogService",
	recommendationService: "RecommendationService",
	shippingService:       "ShippingService",
}

func rpcName(service string) string { return packageName + rpcNames[service] }

// service is what all services share: an own address, from which it also calls,
// the SDK, a server, and clients for its edges of the graph.
type service struct {
	name      string
	ip        net.IP
	telemetry *telemetry
	tracer    trace.Tracer
	latency   latency
	trouble   atomic.Pointer[Trouble] // nil means none
	dice      *dice
	idleLimit time.Duration // idle limit of connections; 0 is the default of each protocol

	listener net.Listener // nil if no service calls it
	rpc      *grpc.Server
	site     *http.Server

	peers     map[string]*grpc.ClientConn // gRPC clients, by name
	sites     map[string]string           // HTTP addresses, by name
	web       *http.Client
	transport *http.Transport

	cleanup []func() error // closes what the handlers opened
	serving chan error     // receives the server's exit error
}

// place is a service's address and the endpoint of its spans.
type place struct {
	listen    netip.AddrPort // port 0 picks a free one
	endpoint  string
	idleLimit time.Duration
}

// newService opens the service's socket but does not serve yet.
func newService(ctx context.Context, k kind, at place, rng *rand.Rand) (*service, error) {
	ip := net.IP(at.listen.Addr().AsSlice())
	id := newIdentity(k.name, ip, rng)
	t, err := newTelemetry(ctx, at.endpoint, id)
	if err != nil {
		return nil, err
	}
	random := &dice{rng: rng}
	s := &service{
		name:      k.name,
		ip:        ip,
		telemetry: t,
		tracer:    t.provider.Tracer("github.com/metaflowys/metaflow-server/deploy/demo/webstore/" + k.name),
		latency:   latency{k.median, random},
		dice:      random,
		idleLimit: at.idleLimit,
		peers:     map[string]*grpc.ClientConn{},
		sites:     map[string]string{},
		serving:   make(chan error, 1),
	}
	s.web = s.newWebClient()
	if k.name == loadGenerator {
		return s, nil
	}
	s.listener, err = listen(ctx, at.listen)
	if err != nil {
		return nil, errors.Join(err, s.close(ctx))
	}
	return s, nil
}

// newIdentity invents the names that Kubernetes would assign.
func newIdentity(service string, ip net.IP, rng *rand.Rand) identity {
	hash := func(n int) string { return fmt.Sprintf("%0*x", n, rng.Uint64()>>(64-4*n)) }
	return identity{
		service: service,
		pod:     service + "-" + hash(9) + "-" + hash(5),
		uid:     hash(8) + "-" + hash(4) + "-4" + hash(3) + "-8" + hash(3) + "-" + hash(12),
		node:    fmt.Sprintf("demo-node-%d", 1+rng.IntN(3)),
		ip:      ip.String(),
	}
}

// connect creates the client for one edge.
func (s *service) connect(to, protocol, address string) error {
	switch protocol {
	case grpcProtocol:
		conn, err := s.dialRPC(address)
		if err != nil {
			return fmt.Errorf("connect %s to %s: %w", s.name, to, err)
		}
		s.peers[to] = conn
	default: // cartservice creates its cache client from the address
		s.sites[to] = address
	}
	return nil
}

// serve starts the server: gRPC if there are methods, else HTTP.
func (s *service) serve(a api) {
	s.cleanup = a.cleanup
	switch {
	case len(a.methods) > 0:
		s.rpc = s.newRPCServer(a.methods)
		go func() { s.serving <- s.rpc.Serve(s.listener) }()
	case len(a.routes) > 0:
		s.site = s.newWebServer(a.routes)
		go func() { s.serving <- s.site.Serve(s.listener) }()
	}
}

// stopServing waits for the handlers, whose spans end after their responses are
// sent.
func (s *service) stopServing(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	switch {
	case s.rpc != nil:
		unhook := context.AfterFunc(ctx, s.rpc.Stop)
		s.rpc.GracefulStop()
		unhook()
		return <-s.serving
	case s.site != nil:
		err := s.site.Shutdown(ctx)
		if err != nil {
			err = errors.Join(err, s.site.Close())
		}
		if end := <-s.serving; !errors.Is(end, http.ErrServerClosed) {
			err = errors.Join(err, end)
		}
		return err
	case s.listener != nil:
		return s.listener.Close()
	}
	return nil
}

// work is the first part of every handler: it takes the handler's own time, and
// causes trouble if it is configured.
func (s *service) work(ctx context.Context) error {
	if err := s.latency.wait(ctx); err != nil {
		return err
	}
	trouble := s.trouble.Load()
	if trouble == nil {
		return nil
	}
	if err := pause(ctx, trouble.Slow); err != nil {
		return err
	}
	if s.dice.intn(100) < trouble.FailPercent {
		return status.Errorf(codes.Internal, "%s fails as configured", s.name)
	}
	return nil
}

// hangUp closes the clients, so that the servers need not wait for them.
func (s *service) hangUp() error {
	s.transport.CloseIdleConnections()
	var errs []error
	for _, conn := range s.peers {
		errs = append(errs, conn.Close())
	}
	for _, clean := range s.cleanup {
		errs = append(errs, clean())
	}
	return errors.Join(errs...)
}

// close stops a service that is no longer called and exports its last spans.
func (s *service) close(ctx context.Context) error {
	err := errors.Join(s.hangUp(), s.stopServing(ctx), s.telemetry.shutdown(ctx))
	if err != nil {
		return fmt.Errorf("close %s: %w", s.name, err)
	}
	return nil
}

// dialer dials from the service's own address, so that a socket identifies the
// caller.
func (s *service) dialer() *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: s.ip}, Timeout: 5 * time.Second}
}

func listen(ctx context.Context, at netip.AddrPort) (net.Listener, error) {
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", at.String())
}
