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

// SingleOptions configure one service in a process of its own.
type SingleOptions struct {
	// Service is a name in the graph, or that of the cache.
	Service string
	// Listen is the address to serve at; calls come from its host. The host may
	// get the address later. The load generator serves nothing and ignores the
	// port.
	Listen netip.AddrPort
	// Peers holds the host:port of each service that it calls, by name.
	Peers map[string]string
	// Endpoint is as in [Options]. The cache sends no spans.
	Endpoint string
	// Seed is as in [Options], the same for all services.
	Seed uint64
	// IdleLimit is the least time that a connection without calls is kept;
	// connections to the cache then serve one call each. 0 keeps connections as
	// the one-process shop does.
	IdleLimit time.Duration
}

// Trouble is what goes wrong in a service. The zero value is none.
type Trouble struct {
	// Slow is added to the time of each handler.
	Slow time.Duration
	// FailPercent is the percentage of handlers that fail.
	FailPercent int
	// Attachment is the number of bytes that the checkout service adds to its
	// letters. The email service accepts three quarters of a megabyte.
	Attachment int
}

// Single is one service of the shop. A whole shop is one Single of each
// service, each with its own address.
type Single struct {
	options  SingleOptions
	service  *service // nil if it is the cache
	cache    *miniredis.Miniredis
	visitors atomic.Uint64
}

// Names returns all services, including the cache, each after those that it
// calls.
func Names() []string {
	names := []string{cache}
	for _, k := range catalogue {
		names = append(names, k.name)
	}
	return names
}

// StartSingle starts one service. It waits for its address until ctx ends, but
// neither for its peers nor for the receiver.
func StartSingle(ctx context.Context, o SingleOptions) (*Single, error) {
	s := &Single{options: o}
	open := s.open
	if o.Service == cache {
		open = s.openCache
	} else if o.Endpoint == "" {
		return nil, fmt.Errorf("start %s: no endpoint for spans", o.Service)
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
		return fmt.Errorf("no such service; the services are %v", Names())
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
			return fmt.Errorf("no address of its peer %s", e.To)
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

// SetTrouble replaces the service's trouble. The cache ignores it.
func (s *Single) SetTrouble(t Trouble) {
	if s.service != nil {
		s.service.trouble.Store(&t)
	}
}

// Visit makes the given number of journeys, at most concurrency at once, and
// returns how many saw an error page that was not about the card. Only the load
// generator supports it.
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

// Close stops the service and exports its last spans, for as long as ctx lasts.
func (s *Single) Close(ctx context.Context) error {
	if s.cache != nil {
		s.cache.Close()
	}
	if s.service == nil {
		return nil
	}
	return s.service.close(ctx)
}
