package capture

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/metaflowys/metaflow-server/pkg/agent/conntrack"
	"github.com/metaflowys/metaflow-server/pkg/agent/dns"
	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/agent/nat"
	"github.com/metaflowys/metaflow-server/pkg/agent/netns"
	"github.com/metaflowys/metaflow-server/pkg/agent/packet"
)

const (
	// packetBuffer holds the DNS packets of a tick of 5,000 questions a second,
	// trackedBuffer the reports of 4,000 translated connections. The kernel
	// allocates the memory only as they queue.
	packetBuffer  = 4 << 20
	trackedBuffer = 8 << 20
	// readPerTurn bounds the packets or reports read from one namespace before
	// the next has its turn.
	readPerTurn = 16384
	// rotateInterval is the least time that a translation is remembered; dumps
	// further apart extend it.
	rotateInterval = 15 * time.Second
	// overrunMemory is the least time between two dumps of connection tracking
	// that follow overruns.
	overrunMemory = time.Minute
	// addressInterval is the time between two rows of an address, and
	// addressCheck the longest time between two looks for new addresses. The
	// first looks are close together: a pod gets its address after its
	// namespace.
	addressInterval = time.Hour
	addressCheck    = 5 * time.Minute
	// unknownCheck is the least time between two looks for new addresses that
	// DNS packets of unknown addresses trigger.
	unknownCheck = 2 * time.Second
	// addressRow is the connection in rows of addresses: it is never 0, and the
	// address itself distinguishes the rows.
	addressRow = 1
)

// peers knows what sockets do not tell: the names of peers, from DNS packets,
// the translations of connections, from connection tracking, and the addresses
// of namespaces. The loop's goroutine alone uses it. One system call a tick
// finds the namespaces that have news.
type peers struct {
	c       *Capture
	table   *flow.Table // receives the rows
	names   *dns.Table
	nat     *nat.Table
	packets *packet.Buffer
	tracked *conntrack.Buffer
	packet  dns.Packet
	spaces  map[uint64]*vicinity

	dns, conntrack bool // enabled
	step           time.Duration
	exclude        []netip.Prefix
	rotated        time.Time
	polls          []unix.PollFd
	polled         []*vicinity // of polls, without a change of descriptors
	stale          bool        // polls is
	records        []dns.Record
	dnsStats       dns.Stats // at the last count
	natStats       nat.Stats
	saidAbsent     bool
}

// vicinity is what peers holds of one network namespace.
type vicinity struct {
	ns       netns.Namespace
	packets  *packet.Conn    // nil if DNS is not observed
	tracked  *conntrack.Conn // nil if connection tracking is not read
	retry    time.Time       // when to open what could not be opened
	problems []string        // exceptions for operators
	present  bool
	dumped   time.Time // connection tracking, the last time

	addresses []netip.Addr
	checked   time.Time     // the last look for addresses
	pause     time.Duration // until the next look
	reported  time.Time     // the last rows of all addresses
}

func newPeers(c *Capture) *peers {
	return &peers{
		c: c, nat: nat.New(), names: dns.New(dns.Config{}),
		packets: packet.NewBuffer(), tracked: conntrack.NewBuffer(),
		spaces: map[uint64]*vicinity{},
	}
}

// configure applies the loop's configuration.
func (p *peers) configure(l *loop) {
	cfg := &l.cfg
	p.dns, p.conntrack, p.step, p.exclude = cfg.DNSEnabled, cfg.ConntrackEnabled, cfg.DumpInterval, cfg.ExcludeCIDRs
	excluded := l.flowConfig()
	p.names.Configure(dns.Config{Interval: cfg.ReportInterval, Step: cfg.DumpInterval, Excluded: excluded.Excludes})
	for inode, v := range p.spaces {
		v.retry = time.Time{}
		if !p.dns {
			p.closePackets(inode, v)
		}
		if !p.conntrack {
			p.closeTracked(v)
		}
	}
}

// open starts watching the namespaces of a scan. It comes before the sockets of
// the scan are read, so that their connections are known.
func (p *peers) open(ctx context.Context, found []netns.Namespace, now time.Time) {
	for _, v := range p.spaces {
		v.present = false
	}
	for _, ns := range found {
		v := p.spaces[ns.Inode]
		if v == nil {
			v = &vicinity{}
			p.spaces[ns.Inode] = v
		}
		v.ns, v.present = ns, true
		if !now.Before(v.retry) && (p.dns && v.packets == nil || p.conntrack && v.tracked == nil) {
			p.openSpace(ctx, v, now)
		}
		if now.Sub(v.checked) >= v.pause {
			p.checkAddresses(v, now)
			v.pause = min(max(2*v.pause, scanInterval), addressCheck)
		}
	}
}

// openSpace opens what is not open yet.
func (p *peers) openSpace(ctx context.Context, v *vicinity, now time.Time) {
	v.problems, v.retry = nil, now.Add(retryInterval)
	var packetErr, trackedErr error
	first := v.packets == nil
	err := netns.Do(v.ns, func() error {
		if p.dns && first {
			v.packets, packetErr = packet.Open(packetBuffer)
		}
		if p.conntrack && v.tracked == nil {
			v.tracked, trackedErr = conntrack.Open(trackedBuffer)
		}
		return nil
	})
	p.stale = true
	if err != nil {
		return // the loop reports it for the sockets
	}
	switch {
	case packetErr == nil:
		if p.dns && first {
			p.names.Open(v.ns.Inode)
		}
	case errors.Is(packetErr, packet.ErrPermission):
		v.problems = append(v.problems, dnsException)
	default:
		v.problems = append(v.problems, "Flow data lacks DNS and the names of peers: "+packetErr.Error()+".")
	}
	if trackedErr == nil && v.tracked != nil {
		trackedErr = p.dumpTracked(v, now)
	}
	switch {
	case trackedErr == nil:
		if v.tracked != nil && !v.tracked.Reports() {
			v.problems = append(v.problems, "Flow data lacks translated addresses of new connections: net.netfilter.nf_conntrack_events is 0.")
		}
	case errors.Is(trackedErr, conntrack.ErrAbsent):
		if !p.saidAbsent {
			p.saidAbsent = true
			p.c.log.InfoContext(ctx, "no translated addresses", slog.Any("reason", trackedErr))
		}
	case errors.Is(trackedErr, conntrack.ErrPermission):
		v.problems = append(v.problems, trackedException)
	default:
		v.problems = append(v.problems, "Flow data lacks translated addresses (services, masqueraded connections): "+trackedErr.Error()+".")
	}
}

// dumpTracked reads the translated connections that exist.
func (p *peers) dumpTracked(v *vicinity, now time.Time) error {
	v.dumped = now
	err := v.tracked.Dump(p.tracked, func(c *nat.Connection) { p.nat.Add(v.ns.Inode, c) })
	if err != nil {
		p.closeTracked(v)
	}
	return err
}

func (p *peers) closePackets(inode uint64, v *vicinity) {
	if v.packets != nil {
		p.c.metrics.dnsDropped.Add(float64(v.packets.Dropped()))
		v.packets.Close()
		v.packets, p.stale = nil, true
	}
	p.names.Forget(inode)
}

func (p *peers) closeTracked(v *vicinity) {
	if v.tracked != nil {
		v.tracked.Close()
		v.tracked, p.stale = nil, true
	}
}

// prune stops watching the namespaces that the last scan did not find. It comes
// after the last rows of their sockets.
func (p *peers) prune() {
	for inode, v := range p.spaces {
		if !v.present {
			p.close(inode, v)
		}
	}
}

func (p *peers) close(inode uint64, v *vicinity) {
	p.closePackets(inode, v)
	p.closeTracked(v)
	delete(p.spaces, inode)
}

// stop reports what is known of DNS and closes everything.
func (p *peers) stop(now time.Time) {
	p.read(now)
	for inode, v := range p.spaces {
		p.close(inode, v)
	}
	p.report()
}

// exceptions appends the problems that sentences lacks.
func (p *peers) exceptions(sentences []string) []string {
	for _, v := range p.spaces {
		for _, s := range v.problems {
			if !slices.Contains(sentences, s) {
				sentences = append(sentences, s)
			}
		}
	}
	return sentences
}

// turn reads what is new in all namespaces. It comes before the sockets are
// read.
func (p *peers) turn(now time.Time) {
	if now.Sub(p.rotated) >= max(rotateInterval, p.step*3/2) {
		p.nat.Rotate()
		p.rotated = now
	}
	p.read(now)
	p.names.Advance(now)
	p.report()
	p.count()
}

// read reads the packets and reports that the kernel has queued.
func (p *peers) read(now time.Time) {
	if p.stale {
		p.polls, p.polled, p.stale = p.polls[:0], p.polled[:0], false
		for _, v := range p.spaces {
			if v.tracked != nil {
				p.polls, p.polled = append(p.polls, unix.PollFd{Fd: int32(v.tracked.FD()), Events: unix.POLLIN}), append(p.polled, v)
			}
		}
		// Connection tracking comes first: it tells which DNS packets are
		// forwarded ones.
		for _, v := range p.spaces {
			if v.packets != nil {
				p.polls, p.polled = append(p.polls, unix.PollFd{Fd: int32(v.packets.FD()), Events: unix.POLLIN}), append(p.polled, v)
			}
		}
	}
	if n, err := unix.Poll(p.polls, 0); n <= 0 || err != nil {
		return
	}
	for i, v := range p.polled {
		if p.polls[i].Revents == 0 {
			continue
		}
		if v.packets != nil && int(p.polls[i].Fd) == v.packets.FD() {
			p.readPackets(v, now)
		} else if v.tracked != nil && int(p.polls[i].Fd) == v.tracked.FD() {
			p.readTracked(v, now)
		}
	}
}

func (p *peers) readTracked(v *vicinity, now time.Time) {
	_, _, err := v.tracked.Read(p.tracked, readPerTurn, func(c *nat.Connection) { p.nat.Add(v.ns.Inode, c) })
	switch {
	case err == nil:
	case errors.Is(err, conntrack.ErrOverrun), errors.Is(err, conntrack.ErrMalformed):
		p.c.metrics.trackedOverruns.Inc()
		if now.Sub(v.dumped) >= overrunMemory {
			_ = p.dumpTracked(v, now) // an error closes it, and it is opened again
		}
	default:
		p.c.log.Warn("cannot read connection tracking", slog.Uint64("namespace", v.ns.Inode), slog.Any("error", err))
		p.closeTracked(v)
	}
}

func (p *peers) readPackets(v *vicinity, now time.Time) {
	_, err := v.packets.Read(p.packets, readPerTurn, func(raw *packet.Packet) {
		p.packet.Time, p.packet.Outgoing, p.packet.Interface = raw.Time, raw.Outgoing, raw.Interface
		if raw.Time == 0 {
			p.packet.Time = now.UnixNano()
		}
		switch {
		case !p.packet.Decode(raw.Data):
			p.c.metrics.dnsMalformed.Inc()
		case !p.own(v, now):
			p.c.metrics.dnsForwarded.Inc()
		default:
			p.names.Observe(v.ns.Inode, &p.packet)
		}
	})
	if dropped := v.packets.Dropped(); dropped > 0 {
		p.c.metrics.dnsDropped.Add(float64(dropped))
	}
	if err != nil {
		p.c.log.Warn("cannot read DNS packets", slog.Uint64("namespace", v.ns.Inode), slog.Any("error", err))
		p.closePackets(v.ns.Inode, v)
	}
}

// own reports whether the client of the current packet is the namespace itself,
// not a host that it forwards for.
func (p *peers) own(v *vicinity, now time.Time) bool {
	client, resolver := p.packet.From, p.packet.To
	if !p.packet.Outgoing {
		client, resolver = resolver, client
	}
	if !p.hasAddress(v, client.Addr(), now) {
		return false
	}
	asker, replaced := p.nat.Asker(v.ns.Inode, client, resolver)
	return !replaced || p.hasAddress(v, asker, now)
}

// hasAddress reports whether an address is the namespace's.
func (p *peers) hasAddress(v *vicinity, a netip.Addr, now time.Time) bool {
	if a.IsLoopback() || a.IsLinkLocalUnicast() || slices.Contains(v.addresses, a) {
		return true
	}
	if now.Sub(v.checked) < unknownCheck {
		return false
	}
	p.checkAddresses(v, now)
	return slices.Contains(v.addresses, a)
}

// checkAddresses lists the addresses of a namespace, and adds rows for new ones
// and, once an hour, for all.
func (p *peers) checkAddresses(v *vicinity, now time.Time) {
	v.checked = now
	addresses, err := netns.Addresses(v.ns)
	if err != nil {
		return // gone, or not permitted, which the loop reports for the sockets
	}
	all := now.Sub(v.reported) >= addressInterval
	if all {
		v.reported = now
	}
	for _, a := range addresses {
		if !all && slices.Contains(v.addresses, a) || slices.ContainsFunc(p.exclude, func(n netip.Prefix) bool { return n.Contains(a) }) {
			continue
		}
		p.table.Add(flow.Row{
			Start: now.UnixNano(), End: now.UnixNano(), Namespace: v.ns.Inode, Cookie: addressRow,
			Local: netip.AddrPortFrom(a, 0), Peer: netip.AddrPortFrom(netip.IPv6Unspecified(), 0),
		})
	}
	v.addresses = addresses
}

// describe implements flow.Config.Describe.
func (p *peers) describe(namespace uint64, local, peer netip.AddrPort, now time.Time) (d flow.Description) {
	d.PeerName = p.names.Name(now, namespace, peer.Addr())
	d.Translated, d.TranslatedPeer = p.nat.Translate(namespace, local, peer)
	return d
}

// report adds the rows of finished DNS records.
func (p *peers) report() {
	p.records = p.names.Take(p.records[:0])
	for i := range p.records {
		r := &p.records[i]
		p.table.Add(flow.Row{
			Protocol: flow.ProtocolDNS, Role: flow.RoleClient,
			Start: r.Start, End: r.End, Namespace: r.Namespace, Cookie: r.Key,
			Local: r.Client, Peer: r.Resolver, PeerName: r.Name,
			Queries: flow.Queries{Asked: r.Queries, Failed: r.Failures, Unanswered: r.Unanswered, Time: r.Time, MaxTime: r.MaxTime, Code: r.Code},
		})
	}
}

// count brings the metrics up to the totals.
func (p *peers) count() {
	m, names, translations := p.c.metrics, p.names.Stats(), p.nat.Stats()
	m.dnsQuestions.Add(float64(names.Asked - p.dnsStats.Asked))
	m.dnsAnswers.Add(float64(names.Answered - p.dnsStats.Answered))
	m.dnsUnmatched.Add(float64(names.Unmatched - p.dnsStats.Unmatched))
	m.dnsUntracked.Add(float64(names.Untracked - p.dnsStats.Untracked))
	m.lost.Add(float64(names.Dropped - p.dnsStats.Dropped))
	m.dnsNames.Set(float64(names.Names))
	m.translations.Add(float64(translations.Added - p.natStats.Added))
	m.translationsUntracked.Add(float64(translations.Untracked - p.natStats.Untracked))
	p.dnsStats, p.natStats = names, translations
	var dnsSpaces, trackedSpaces, addresses int
	for _, v := range p.spaces {
		addresses += len(v.addresses)
		if v.packets != nil {
			dnsSpaces++
		}
		if v.tracked != nil {
			trackedSpaces++
		}
	}
	m.dnsSpaces.Set(float64(dnsSpaces))
	m.trackedSpaces.Set(float64(trackedSpaces))
	m.addresses.Set(float64(addresses))
}
