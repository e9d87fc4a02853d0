package webstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicebob/miniredis/v2"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

const (
	// Namespace is the service.namespace of all services, and the Kubernetes
	// namespace in their resources.
	Namespace = "webstore"
	cluster   = "demo"
)

// DefaultConcurrency is the number of concurrent visitors: enough to keep two
// cores busy, few enough that the services' own latency dominates.
const DefaultConcurrency = 6

// Options configure a Store. Endpoint is required.
type Options struct {
	// Endpoint is the host:port of an OTLP/gRPC receiver without TLS, or the
	// URL of an OTLP/HTTP receiver.
	Endpoint string
	// Seed determines the visitors and the latencies.
	Seed uint64
	// Concurrency bounds the concurrent journeys. 0 means DefaultConcurrency.
	Concurrency int
}

// Report counts what a store has done so far.
type Report struct {
	// Journeys counts finished journeys, Orders those that placed an order, and
	// Declined those that ended with a refused card.
	Journeys, Orders, Declined int64
	// Total is the sum of Services, which holds the counts by service.name.
	Total    Counts
	Services map[string]Counts
	// LastError is the error of the last failed export, or nil. A later attempt
	// may have succeeded.
	LastError error
}

// kind defines a service.
type kind struct {
	name   string
	median time.Duration // median of a handler's own time
	build  func(*service) (api, error)
}

// api is what a service serves, over gRPC or HTTP.
type api struct {
	methods []grpc.MethodDesc
	routes  routes
	cleanup []func() error // closes what the handlers opened
}

// catalogue lists every service, each after those that it calls.
var catalogue = []kind{
	{adService, 700 * time.Microsecond, ads},
	{currencyService, 200 * time.Microsecond, currencies},
	{emailService, 2 * time.Millisecond, emails},
	{paymentService, 3 * time.Millisecond, payments},
	{productCatalogService, 400 * time.Microsecond, productCatalog},
	{shippingService, 800 * time.Microsecond, shipping},
	{cartService, 300 * time.Microsecond, carts},
	{recommendationService, 1500 * time.Microsecond, recommendations},
	{checkoutService, time.Millisecond, checkout},
	{frontend, 800 * time.Microsecond, pages},
	{loadGenerator, 0, func(*service) (api, error) { return api{}, nil }},
}

// Store is the running shop.
type Store struct {
	options  Options
	services map[string]*service
	cache    *miniredis.Miniredis

	visitors, journeys, orders, declined atomic.Int64
}

// Start starts the shop: when it returns, every service listens. ctx bounds
// only the start. The receiver need not listen yet.
func Start(ctx context.Context, o Options) (*Store, error) {
	if o.Endpoint == "" {
		return nil, errors.New("start webstore: no endpoint for spans")
	}
	if o.Concurrency <= 0 {
		o.Concurrency = DefaultConcurrency
	}
	s := &Store{options: o, services: map[string]*service{}}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start webstore: %w", err), s.Close(context.WithoutCancel(ctx)))
	}
	return s, nil
}

// open opens the sockets of all services, then connects them along the graph.
func (s *Store) open(ctx context.Context) error {
	addressOf := newAddresses(ctx)
	s.cache = miniredis.NewMiniRedis()
	if err := s.cache.StartAddr(addressOf(len(catalogue)).String()); err != nil {
		return fmt.Errorf("start cache: %w", err)
	}
	for i, k := range catalogue {
		service, err := newService(ctx, k, place{listen: addressOf(i), endpoint: s.options.Endpoint}, newRand(s.options.Seed, ^uint64(i)))
		if err != nil {
			return fmt.Errorf("open %s: %w", k.name, err)
		}
		s.services[k.name] = service
	}
	for _, e := range graph {
		if err := s.services[e.From].connect(e.To, e.Protocol, s.address(e.To)); err != nil {
			return err
		}
	}
	for _, k := range catalogue {
		service := s.services[k.name]
		a, err := k.build(service)
		if err != nil {
			return fmt.Errorf("build %s: %w", k.name, err)
		}
		service.serve(a)
	}
	return nil
}

func (s *Store) address(name string) string {
	if name == cache {
		return s.cache.Addr()
	}
	return s.services[name].listener.Addr().String()
}

// newAddresses returns the loopback address of each service: 127.0.1.11 and up.
// Where the system has only 127.0.0.1 (macOS), all share it.
func newAddresses(ctx context.Context) func(i int) netip.AddrPort {
	own := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(11 + i)}), 0)
	}
	shared := func(int) netip.AddrPort { return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0) }
	if l, err := listen(ctx, own(0)); err != nil {
		return shared
	} else if err := l.Close(); err != nil {
		return shared
	}
	return own
}

// newRand returns the random numbers of one stream of a seed.
func newRand(seed, stream uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, stream)) //nolint:gosec // must be repeatable
}

// Run makes the given number of journeys and returns when all have ended or ctx
// ended. An error page that is not about the visitor's card ends the run.
func (s *Store) Run(ctx context.Context, journeys int) error {
	first := s.visitors.Add(int64(journeys)) - int64(journeys)
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(s.options.Concurrency, journeys) {
		g.Go(func() error {
			for ctx.Err() == nil {
				n := next.Add(1) - 1
				if n >= int64(journeys) {
					return nil
				}
				if err := s.visit(ctx, first+n); err != nil {
					return fmt.Errorf("make journey %d: %w", first+n, err)
				}
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

func (s *Store) visit(ctx context.Context, number int64) error {
	end, err := newVisit(s.services[loadGenerator], s.options.Seed, uint64(number)).run(ctx)
	if err != nil {
		return err
	}
	s.journeys.Add(1)
	switch end {
	case ordered:
		s.orders.Add(1)
	case declined:
		s.declined.Add(1)
	case left:
	}
	return nil
}

// Report may be called at any time, and is final after Close.
func (s *Store) Report() Report {
	r := Report{
		Journeys: s.journeys.Load(),
		Orders:   s.orders.Load(),
		Declined: s.declined.Load(),
		Services: map[string]Counts{},
	}
	for name, service := range s.services {
		c := service.telemetry.ledger.counts()
		r.Services[name] = c
		r.Total.Ended += c.Ended
		r.Total.Acknowledged += c.Acknowledged
		r.Total.Rejected += c.Rejected
		if err := service.telemetry.ledger.lastError(); err != nil {
			r.LastError = fmt.Errorf("export of %s: %w", name, err)
		}
	}
	return r
}

// Close stops the shop and exports the last spans, for as long as ctx lasts. It
// stops first the clients, then the servers with their handlers, then the
// telemetry, so that no span ends after its exporter.
func (s *Store) Close(ctx context.Context) error {
	all := slices.Collect(maps.Values(s.services))
	err := errors.Join(
		forAll(all, (*service).hangUp),
		forAll(all, func(one *service) error { return one.stopServing(ctx) }),
		forAll(all, func(one *service) error { return one.telemetry.shutdown(ctx) }),
	)
	if s.cache != nil {
		s.cache.Close()
	}
	return err
}

// forAll calls do for all services concurrently and joins their errors.
func forAll(all []*service, do func(*service) error) error {
	errs := make([]error, len(all))
	var wait sync.WaitGroup
	for i, one := range all {
		wait.Go(func() {
			if err := do(one); err != nil {
				errs[i] = fmt.Errorf("close %s: %w", one.name, err)
			}
		})
	}
	wait.Wait()
	return errors.Join(errs...)
}
