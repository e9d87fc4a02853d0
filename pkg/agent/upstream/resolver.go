package upstream

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/resolver"
)

// scheme is of targets that stand for all configured addresses.
const scheme = "metaflow"

const (
	lookupTimeout = 5 * time.Second
	// leastLookupInterval bounds lookups while connections are lost again and
	// again, and is the pause after one that failed.
	leastLookupInterval = 2 * time.Second
)

// replicas tells gRPC the addresses of all servers.
type replicas struct {
	cfg        Config
	lookupHost func(ctx context.Context, host string) ([]string, error)
	log        *slog.Logger
	metrics    *metrics
}

// Scheme belongs to resolver.Builder.
func (*replicas) Scheme() string { return scheme }

// OverrideAuthority names the first address in requests, which is what a proxy
// in between would look at; certificates are checked against each address's own host.
func (r *replicas) OverrideAuthority(resolver.Target) string { return r.cfg.Addresses[0] }

// Build starts to look up. gRPC calls it when the channel is first used.
func (r *replicas) Build(_ resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	ctx, stop := context.WithCancel(context.Background())
	l := &lookups{
		replicas: r,
		cc:       cc,
		known:    make([][]string, len(r.cfg.Addresses)),
		failing:  make([]bool, len(r.cfg.Addresses)),
		hurry:    make(chan struct{}, 1),
		stop:     stop,
	}
	l.done.Go(func() { l.run(ctx) })
	return l, nil
}

// lookups keeps the addresses current. All but hurry and stop belong to run.
type lookups struct {
	*replicas
	cc      resolver.ClientConn
	known   [][]string // host:port with an IP address, by configured address
	failing []bool     // by configured address
	told    []string   // addresses that gRPC has

	hurry chan struct{}
	stop  context.CancelFunc
	done  sync.WaitGroup
}

// ResolveNow is called by gRPC, often, while connections are lost.
func (l *lookups) ResolveNow(resolver.ResolveNowOptions) {
	select {
	case l.hurry <- struct{}{}:
	default:
	}
}

// Close belongs to resolver.Resolver.
func (l *lookups) Close() {
	l.stop()
	l.done.Wait()
}

func (l *lookups) run(ctx context.Context) {
	for {
		ok := l.lookup(ctx)
		if ctx.Err() != nil || !l.names() {
			return
		}
		wait := leastLookupInterval
		if ok {
			// Spread out, so that the agents of a cluster do not ask all at once.
			interval := l.cfg.ResolveInterval
			wait = interval - interval/4 + rand.N(interval/2+1) //nolint:gosec // spreads load, guards nothing
		}
		if !l.wait(ctx, wait) {
			return
		}
	}
}

// wait returns false when ctx has ended.
func (l *lookups) wait(ctx context.Context, d time.Duration) bool {
	least := time.NewTimer(leastLookupInterval)
	defer least.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-least.C:
	}
	rest := time.NewTimer(d - leastLookupInterval)
	defer rest.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-rest.C:
	case <-l.hurry:
	}
	return true
}

// names tells whether anything has to be looked up.
func (l *lookups) names() bool {
	return slices.ContainsFunc(l.cfg.Addresses, func(addr string) bool {
		host, _, _ := net.SplitHostPort(addr)
		_, err := netip.ParseAddr(host)
		return err != nil
	})
}

// lookup looks all addresses up and tells gRPC what has changed. It returns
// whether every one succeeded.
func (l *lookups) lookup(ctx context.Context) bool {
	errs := make([]error, len(l.cfg.Addresses))
	found := make([][]string, len(l.cfg.Addresses))
	var all sync.WaitGroup
	for i, addr := range l.cfg.Addresses {
		all.Go(func() { found[i], errs[i] = l.one(ctx, addr) })
	}
	all.Wait()
	if ctx.Err() != nil {
		return false
	}
	var cause error
	for i, err := range errs {
		if err == nil {
			l.known[i], l.failing[i] = found[i], false
			continue
		}
		cause = err
		l.metrics.lookupErrors.Inc()
		if !l.failing[i] {
			l.failing[i] = true
			l.log.WarnContext(ctx, "server name cannot be looked up, its last addresses stay in use",
				slog.String("address", l.cfg.Addresses[i]), slog.Any("last", l.known[i]), slog.Any("error", err))
		}
	}
	l.tell(ctx, cause)
	return cause == nil
}

// one returns the addresses of addr, sorted.
func (l *lookups) one(ctx context.Context, addr string) ([]string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return []string{addr}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	ips, err := l.lookupHost(ctx, host)
	if err != nil {
		return nil, err
	}
	if len(ips) == 0 {
		return nil, &net.DNSError{Err: "no addresses", Name: host, IsNotFound: true}
	}
	addrs := make([]string, len(ips))
	for i, ip := range ips {
		addrs[i] = net.JoinHostPort(ip, port)
	}
	slices.Sort(addrs)
	return slices.Compact(addrs), nil
}

func (l *lookups) tell(ctx context.Context, cause error) {
	var addrs []string
	var endpoints []resolver.Endpoint
	for i, known := range l.known {
		for _, addr := range known {
			if slices.Contains(addrs, addr) {
				continue // one server, although two names lead to it
			}
			addrs = append(addrs, addr)
			endpoints = append(endpoints, resolver.Endpoint{Addresses: []resolver.Address{{
				Addr:       addr,
				ServerName: l.cfg.Addresses[i], // what certificates are checked against, without its port
			}}})
		}
	}
	l.metrics.addresses.Set(float64(len(addrs)))
	if len(addrs) == 0 {
		l.cc.ReportError(cause)
		return
	}
	if slices.Equal(addrs, l.told) {
		return
	}
	if err := l.cc.UpdateState(resolver.State{Endpoints: endpoints}); err != nil {
		l.log.WarnContext(ctx, "server addresses were not taken", slog.Any("addresses", addrs), slog.Any("error", err))
		return
	}
	l.told = addrs
	l.log.InfoContext(ctx, "servers found", slog.Any("addresses", addrs))
}
