package capture

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/agent/netns"
	"github.com/metaflowys/metaflow-server/pkg/agent/sockdiag"
	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
)

// space is a network namespace of the last scans, watched or not.
type space struct {
	ns       netns.Namespace
	conn     *sockdiag.Conn // nil if it could not be opened
	retry    time.Time      // when to open it again
	problem  string         // exception for operators, empty if there is none
	present  bool           // in the last scan
	nextDump time.Time
	dumped   time.Time
	listened time.Time // start of the last dump that included listeners
}

// loop is the state of Run's goroutine, which alone uses it.
type loop struct {
	c      *Capture
	cfg    agentconfig.Flow
	out    chan<- []flow.Row
	back   <-chan []flow.Row
	buffer []flow.Row // memory for the next batch
	lent   bool       // the consumer holds a batch

	scanner *netns.Scanner
	table   *flow.Table
	peers   *peers
	netlink *sockdiag.Buffer
	spaces  map[uint64]*space
	clock   time.Time // the last reading
	scanned time.Time // zero before the first scan
	// scanPause is the time from one scan to the next.
	scanPause time.Duration
	batched   time.Time
	stats     flow.Stats // the totals at the last count
}

func newLoop(c *Capture, out chan<- []flow.Row, back <-chan []flow.Row) *loop {
	l := &loop{
		c: c, out: out, back: back,
		scanner: netns.NewScanner(c.opts.Namespaces),
		netlink: sockdiag.NewBuffer(),
		spaces:  map[uint64]*space{},
		clock:   time.Now(),
		peers:   newPeers(c),
	}
	l.configure()
	l.table = flow.New(l.flowConfig())
	l.peers.table = l.table
	l.peers.configure(l)
	return l
}

func (l *loop) configure() {
	cfg, defaults := l.c.config(), agentconfig.Default().Flow
	if cfg.DumpInterval <= 0 {
		cfg.DumpInterval = defaults.DumpInterval
	}
	if cfg.ReportInterval <= 0 {
		cfg.ReportInterval = defaults.ReportInterval
	}
	l.cfg = cfg
}

func (l *loop) flowConfig() flow.Config {
	cfg := flow.Config{
		ReportInterval:  l.cfg.ReportInterval,
		Exclude:         l.cfg.ExcludeCIDRs,
		ExcludeLoopback: l.c.opts.ExcludeLoopback,
		MaxConnections:  l.c.opts.MaxConnections,
		Describe: func(namespace uint64, local, peer netip.AddrPort) flow.Description {
			return l.peers.describe(namespace, local, peer, l.clock)
		},
	}
	for _, r := range l.cfg.ExcludePorts {
		cfg.ExcludePorts = append(cfg.ExcludePorts, flow.PortRange(r))
	}
	return cfg
}

func (l *loop) run(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		now := l.now()
		if l.cfg.Enabled {
			l.turn(ctx, now)
		}
		l.send(now)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-l.c.changed:
			l.reconfigure(ctx)
		case rows := <-l.back:
			l.buffer, l.lent = rows[:0], false
		}
	}
}

func (l *loop) reconfigure(ctx context.Context) {
	was := l.cfg.Enabled
	l.configure()
	l.table.Configure(l.flowConfig())
	l.peers.configure(l)
	if was && !l.cfg.Enabled {
		l.stop(ctx)
		return
	}
	for _, s := range l.spaces {
		s.nextDump = time.Time{} // the next dump adopts connections that are no longer excluded
	}
}

// stop reports pending activity and closes all namespaces.
func (l *loop) stop(ctx context.Context) {
	now := l.now()
	for inode, s := range l.spaces {
		if s.conn != nil {
			l.readDestroyed(ctx, s)
			l.table.Flush(now, inode)
		}
		l.close(s)
		l.table.Forget(inode)
	}
	l.peers.stop(now)
	clear(l.spaces)
	l.scanned = time.Time{}
	l.c.setExceptions(nil)
	l.count()
}

func (l *loop) close(s *space) {
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

// now reads the clock, and tells the table when the clock was stepped.
func (l *loop) now() time.Time {
	now := time.Now()
	passed := now.Sub(l.clock) // monotonic
	if by := now.Round(0).Sub(l.clock.Round(0)) - passed; by > clockJump || by < -clockJump {
		l.table.ClockStepped(by)
		l.peers.names.ClockStepped(by)
	}
	l.clock = now
	return now
}

// turn scans for namespaces and reads each of them, as far as that is due.
func (l *loop) turn(ctx context.Context, now time.Time) {
	if now.Sub(l.scanned) >= l.scanPause {
		l.scan(ctx, now)
		l.scanPause = min(max(scanInterval, scanCost*time.Since(now)), maxScanInterval)
	}
	l.peers.turn(now)
	for inode, s := range l.spaces {
		if s.conn == nil || ctx.Err() != nil {
			continue
		}
		l.readDestroyed(ctx, s)
		switch {
		case s.conn == nil:
		case !now.Before(s.nextDump):
			l.dump(ctx, s)
		case l.table.Unresolved(inode) && now.Sub(s.listened) >= listenInterval:
			l.listeners(ctx, s, now)
		}
	}
	l.count()
}

// send passes a batch to the consumer if it is idle.
func (l *loop) send(now time.Time) {
	n := l.table.Pending()
	if l.lent || n == 0 || n < batchRows && now.Sub(l.batched) < batchInterval {
		return
	}
	l.out <- l.table.Take(l.buffer) // never blocks: the consumer returned the previous batch
	l.buffer, l.lent, l.batched = nil, true, now
}

// scan finds the namespaces that came and went.
func (l *loop) scan(ctx context.Context, now time.Time) {
	before, first := l.scanned, l.scanned.IsZero()
	l.scanned = now
	found, missing, err := l.scanner.Scan()
	if err != nil {
		l.reportExceptions(ctx, []string{"Flow data lacks all connections: " + err.Error() + "."})
		return
	}
	if first {
		before = now
	}
	before = asOf(now, before)
	l.c.watch(found, now)
	for _, s := range l.spaces {
		s.present = false
	}
	sentences := make([]string, 0, len(missing))
	for _, m := range missing {
		sentences = append(sentences, m.Hint())
	}
	if l.c.procs.refused.Load() {
		sentences = append(sentences, processesException)
	}
	l.peers.open(ctx, found, now)
	sentences = l.peers.exceptions(sentences)
	for _, ns := range found {
		s := l.spaces[ns.Inode]
		adopt := first || s != nil
		if s == nil {
			s = &space{}
			l.spaces[ns.Inode] = s
		}
		s.ns, s.present = ns, true
		if s.conn == nil && !now.Before(s.retry) {
			l.open(ctx, s, before, adopt)
		}
		if s.problem != "" && !slices.Contains(sentences, s.problem) {
			sentences = append(sentences, s.problem)
		}
	}
	for inode, s := range l.spaces {
		if s.present {
			continue
		}
		if s.conn != nil {
			l.readDestroyed(ctx, s)
			l.table.Close(now, inode)
			l.close(s)
			l.c.log.DebugContext(ctx, "network namespace gone", slog.Uint64("inode", inode))
		}
		delete(l.spaces, inode)
	}
	l.peers.prune()
	l.reportExceptions(ctx, sentences)
}

// asOf returns an earlier moment by the current clock, which may have been
// stepped since that moment was read.
func asOf(now, earlier time.Time) time.Time { return now.Add(earlier.Sub(now)) }

func (l *loop) reportExceptions(ctx context.Context, sentences []string) {
	for _, s := range l.c.setExceptions(sentences) {
		l.c.log.WarnContext(ctx, "flow data is incomplete", slog.String("reason", s))
	}
}

// open starts watching a namespace. It subscribes first and dumps afterwards,
// so that no connection is missed in between. With adopt, the connections of
// the first dump may be older than since.
func (l *loop) open(ctx context.Context, s *space, since time.Time, adopt bool) {
	s.problem = ""
	var granted int
	err := netns.Do(s.ns, func() error {
		conn, err := sockdiag.Open()
		if err != nil {
			return err
		}
		granted, err = conn.Subscribe(l.c.opts.ReceiveBuffer)
		if err != nil {
			conn.Close()
			return err
		}
		s.conn = conn
		return nil
	})
	var missing *netns.MissingError
	switch {
	case err == nil:
	case errors.Is(err, netns.ErrGone):
		s.retry = time.Time{} // the next scan removes it
		return
	case errors.As(err, &missing):
		s.problem = missing.Hint()
	case errors.Is(err, sockdiag.ErrUnsupported):
		s.problem = "Flow data lacks all connections: this kernel cannot list TCP sockets (modules inet_diag and tcp_diag, Linux 4.9 or later)."
	default:
		s.problem = "Flow data lacks the connections of a network namespace: " + err.Error() + "."
	}
	if err != nil {
		s.retry = l.clock.Add(retryInterval)
		return
	}
	if granted < l.c.opts.ReceiveBuffer/2 {
		s.problem = "Flow data may lack short connections during bursts: a receive buffer beyond net.core.rmem_max needs the capability CAP_NET_ADMIN."
	}
	l.c.log.DebugContext(ctx, "watching network namespace", slog.Uint64("inode", s.ns.Inode), slog.String("name", s.ns.Name), slog.Any("pids", s.ns.PIDs), slog.String("pod_uid", s.ns.Owner.PodUID))
	l.table.Open(since, s.ns.Inode, adopt)
	l.dump(ctx, s)
	// Spread the dumps of namespaces that were found together.
	s.nextDump = l.clock.Add(l.cfg.DumpInterval * time.Duration(s.ns.Inode%16+1) / 16)
}

// fail closes a namespace after an unexpected kernel error; a later scan opens
// it again.
func (l *loop) fail(ctx context.Context, s *space, err error) {
	l.c.log.WarnContext(ctx, "cannot watch network namespace", slog.Uint64("inode", s.ns.Inode), slog.Any("error", err))
	l.close(s)
	l.table.Flush(l.clock, s.ns.Inode)
	l.table.Forget(s.ns.Inode)
	s.problem = "Flow data lacks the connections of a network namespace: " + err.Error() + "."
	s.retry = l.clock.Add(retryInterval)
}

// readDestroyed passes the destroy notifications of a namespace to the table.
func (l *loop) readDestroyed(ctx context.Context, s *space) {
	inode := s.ns.Inode
	now := l.now()
	for left := destroyedPerTurn; left > 0; {
		current := false
		n, more, err := s.conn.ReadDestroyed(l.netlink, left, func(sock *flow.Socket) {
			if !current { // a connection may have begun, and its name been asked for, since the turn began
				l.peers.read(now)
				current = true
			}
			l.table.Destroyed(now, inode, sock)
		})
		l.c.metrics.destroyed.Add(float64(n))
		left -= max(n, 1)
		switch {
		case errors.Is(err, sockdiag.ErrOverrun), errors.Is(err, sockdiag.ErrMalformed):
			l.c.metrics.overruns.Inc()
			l.c.log.WarnContext(ctx, "destroy notifications were lost", slog.Uint64("namespace", inode), slog.Any("error", err))
			l.table.Overrun(inode)
			if next := s.dumped.Add(overrunPause); next.Before(s.nextDump) {
				s.nextDump = next
			}
		case err != nil:
			l.fail(ctx, s, err)
			return
		case !more:
			return
		}
	}
}

// dump passes all living sockets to the table. It reads the notifications of
// sockets destroyed meanwhile before the table concludes anything from sockets
// that the dump did not show.
func (l *loop) dump(ctx context.Context, s *space) {
	inode, began := s.ns.Inode, l.now()
	l.table.BeginDump(began, inode)
	known, unnamed := l.c.procs.seen.Load(), false
	err := s.conn.Dump(l.netlink, sockdiag.Connections, func(sock *flow.Socket) {
		l.table.Observe(began, inode, sock)
		if !unnamed && sock.Inode != 0 {
			_, ok := known.now[sock.Inode]
			unnamed = !ok
		}
	})
	if unnamed {
		l.c.procs.requestScan()
	}
	l.c.metrics.dumps.Observe(time.Since(began).Seconds())
	s.dumped, s.listened = began, began
	s.nextDump = began.Add(l.cfg.DumpInterval)
	if err != nil {
		l.fail(ctx, s, err)
		return
	}
	if l.readDestroyed(ctx, s); s.conn != nil {
		l.peers.read(began) // of connections that the dump is the first to show
		l.table.EndDump(l.now(), inode, true)
	}
}

// listeners passes the listening sockets to the table, so that it can tell
// roles.
func (l *loop) listeners(ctx context.Context, s *space, now time.Time) {
	s.listened = now
	err := s.conn.Dump(l.netlink, sockdiag.Listening, func(sock *flow.Socket) { l.table.Observe(now, s.ns.Inode, sock) })
	if err != nil {
		l.fail(ctx, s, err)
		return
	}
	l.table.ResolveRoles(s.ns.Inode)
}

// count brings the metrics up to the table's totals.
func (l *loop) count() {
	now, m := l.table.Stats(), l.c.metrics
	m.connections.Set(float64(now.Connections))
	m.namespaces.Set(float64(len(l.spaces)))
	m.untracked.Add(float64(now.Untracked - l.stats.Untracked))
	m.lost.Add(float64(now.Dropped - l.stats.Dropped))
	m.unclear.Add(float64(now.Unclear - l.stats.Unclear))
	l.stats = now
}
