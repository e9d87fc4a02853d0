package webstore

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"golang.org/x/sync/errgroup"
)

// SingleOptions describe one service in a process of its own.
type SingleOptions struct {
	// Service is its name in the graph, that of the cache included.
	Service string
	// Listen is where it serves; from this address it also calls. It may be an address that the host
	// gets only later. The load generator serves nothing, and its port is of no meaning.
	Listen netip.AddrPort
	// Peers are host:port of the services that it calls, by name.
	Peers map[string]string
	// Endpoint is as in [Options]. The cache sends nothing there.
	Endpoint string
	// Seed is as in [Options], the same for all services.
	Seed uint64
	// IdleLimit is how long a connection without calls is kept, at least; those to the cache are
	// of one call each then. 0 keeps them as the shop in one process does.
	IdleLimit time.Duration
}

// Trouble is what a service may be told to have. The zero value is none.
type Trouble struct {
	// Slow is what each of its handlers takes longer.
	Slow time.Duration
	// FailPercent of its handlers fail.
	FailPercent int
	// Attachment is how many bytes the checkout service adds to its letters. The email
	// service takes three quarters of a megabyte.
	Attachment int
}

// Single is one service of the shop. The whole shop is one of each, each with
// an address of its own.
type Single struct {
	options  SingleOptions
	service  *service // nil for the cache
	cache    *miniredis.Miniredis
	visitors atomic.Uint64
}

// Names returns all services, the cache included, each after those that it calls.
func Names() []string {
	names := []string{cache}
	for _, k := range catalogue {
		names = append(names, k.name)
	}
	return names
}

// StartSingle opens one service. It waits for its address until ctx ends, but not for
// its peers, nor for the receiver.
func StartSingle(ctx context.Context, o SingleOptions) (*Single, error) {
	s := &Single{options: o}
	open := s.open
	if o.Service == cache {
		open = s.openCache
	} else if o.Endpoint == "" {
		return nil, fmt.Errorf("start %s: no endpoint to send spans to", o.Service)
	}
	for {
		err := open(ctx)
		if err == nil {
			return s, nil
		}
		err = errors.Join(fmt.Errorf("start %s: %w", o.Service, err), s.Close(context.WithoutCancel(ctx)))
		if !errors.Is(err, syscall.EADDRNOTAVAIL) || pause(ctx, 20*time.Millisecond) != nil {
			return nil, err
		}
	}
}

func (s *Single) openCache(context.Context) error {
	s.cache = miniredis.NewMiniRedis()
	return s.cache.StartAddr(s.options.Listen.String())
}

func (s *Single) open(ctx context.Context) error {
	i := slices.IndexFunc(catalogue, func(k kind) bool { return k.name == s.options.Service })
	if i < 0 {
		return fmt.Errorf("the shop has no such service, but %v", Names())
	}
	at := place{listen: s.options.Listen, endpoint: s.options.Endpoint, idleLimit: s.options.IdleLimit}
	service, err := newService(ctx, catalogue[i], at, newRand(s.options.Seed, ^uint64(i)))
	if err != nil {
		return err
	}
	s.service = service
	for _, e := range graph {
		if e.From != service.name {
			continue
		}
		address, ok := s.options.Peers[e.To]
		if !ok {
			return fmt.Errorf("no address of its peer %s is given", e.To)
		}
		if err := service.connect(e.To, e.Protocol, address); err != nil {
			return err
		}
	}
	a, err := catalogue[i].build(service)
	if err != nil {
		return err
	}
	service.serve(a)
	return nil
}

// Have gives the service this trouble instead of what it had. The cache has none.
func (s *Single) Have(t Trouble) {
	if s.service != nil {
		s.service.trouble.Store(&t)
	}
}

// Visit lets so many visitors make their journeys, as many at once as concurrency says, and returns how
// many of them saw an error page that was not about their card. It is for the load generator.
func (s *Single) Visit(ctx context.Context, journeys, concurrency int) (failed int, err error) {
	if s.options.Service != loadGenerator {
		return 0, fmt.Errorf("visit: %s is not %s", s.options.Service, loadGenerator)
	}
	var failures atomic.Int64
	var g errgroup.Group
	g.SetLimit(concurrency)
	for range journeys {
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if _, err := newVisit(s.service, s.options.Seed, s.visitors.Add(1)-1).run(ctx); err != nil {
				failures.Add(1)
			}
			return nil
		})
	}
	err = g.Wait()
	return int(failures.Load()), err
}

// Close ends the service and exports its last spans, for as long as ctx lasts.
func (s *Single) Close(ctx context.Context) error {
	if s.cache != nil {
		s.cache.Close()
	}
	if s.service == nil {
		return nil
	}
	return s.service.close(ctx)
}
