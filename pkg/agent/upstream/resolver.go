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

	"github.com/metaflowys/metaflow-server/pkg/retry"
)

// scheme is the scheme of targets that stand for all configured addresses.
const scheme = "metaflow"

const (
	lookupTimeout = 5 * time.Second
	// leastLookupInterval bounds the rate of lookups while connections are lost
	// repeatedly, and is the pause after a failed lookup.
	leastLookupInterval = 2 * time.Second
)

// replicas builds resolvers that give gRPC the addresses of all servers.
type replicas struct {
	cfg        Config
	lookupHost func(ctx context.Context, host string) ([]string, error)
	log        *slog.Logger
	metrics    *metrics
}

// Scheme implements resolver.Builder.
func (*replicas) Scheme() string { return scheme }

// OverrideAuthority returns the first address, for proxies that route by
// authority. Certificates are checked against each address's own host.
func (r *replicas) OverrideAuthority(resolver.Target) string { return r.cfg.Addresses[0] }

// Build starts lookups. gRPC calls it when the channel is first used.
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

// lookups keeps the addresses current. Only hurry and stop are used outside
// run.
type lookups struct {
	*replicas
	cc      resolver.ClientConn
	known   [][]string // host:port with an IP address, by index of the configured address
	failing []bool     // by index of the configured address
	current []string   // the addresses that gRPC has

	hurry chan struct{}
	stop  context.CancelFunc
	done  sync.WaitGroup
}

// ResolveNow requests a lookup. gRPC calls it often while connections are lost.
func (l *lookups) ResolveNow(resolver.ResolveNowOptions) {
	select {
	case l.hurry <- struct{}{}:
	default:
	}
}

// Close implements resolver.Resolver. It waits until run has ended.
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
			// Jitter, so that the agents of a cluster do not look up at the
			// same time.
			interval := l.cfg.ResolveInterval
			wait = interval - interval/4 + rand.N(interval/2+1) //nolint:gosec // jitter, not security
		}
		if !l.wait(ctx, wait) {
			return
		}
	}
}

// wait blocks for d, or until a lookup is requested, but for at least
// leastLookupInterval. It returns false once ctx has ended.
func (l *lookups) wait(ctx context.Context, d time.Duration) bool {
	if retry.Sleep(ctx, leastLookupInterval) != nil {
		return false
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

// names reports whether any address needs a lookup.
func (l *lookups) names() bool {
	return slices.ContainsFunc(l.cfg.Addresses, func(addr string) bool {
		host, _, _ := net.SplitHostPort(addr)
		_, err := netip.ParseAddr(host)
		return err != nil
	})
}

// lookup resolves all addresses and passes changes to gRPC. It reports whether
// every lookup succeeded.
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
			l.log.WarnContext(ctx, "cannot look up server name, keeping its last addresses",
				slog.String("address", l.cfg.Addresses[i]), slog.Any("last", l.known[i]), slog.Any("error", err))
		}
	}
	l.update(ctx, cause)
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

func (l *lookups) update(ctx context.Context, cause error) {
	var addrs []string
	var endpoints []resolver.Endpoint
	for i, known := range l.known {
		for _, addr := range known {
			if slices.Contains(addrs, addr) {
				continue // one server behind two names
			}
			addrs = append(addrs, addr)
			endpoints = append(endpoints, resolver.Endpoint{Addresses: []resolver.Address{{
				Addr:       addr,
				ServerName: l.cfg.Addresses[i], // the host that certificates are checked against
			}}})
		}
	}
	l.metrics.addresses.Set(float64(len(addrs)))
	if len(addrs) == 0 {
		l.cc.ReportError(cause)
		return
	}
	if slices.Equal(addrs, l.current) {
		return
	}
	if err := l.cc.UpdateState(resolver.State{Endpoints: endpoints}); err != nil {
		l.log.WarnContext(ctx, "gRPC rejected the server addresses", slog.Any("addresses", addrs), slog.Any("error", err))
		return
	}
	l.current = addrs
	l.log.InfoContext(ctx, "trying servers", slog.Any("addresses", addrs))
}
