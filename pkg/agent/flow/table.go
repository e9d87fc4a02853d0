package flow

import (
	"math"
	"net/netip"
	"time"
)

const (
	// missesUntilClosed is the number of consecutive dumps that must miss a
	// connection before it counts as ended. One is too few: a dump that runs
	// while sockets come and go may skip one, and the kernel sends a socket's
	// destroy notification a moment after the socket left its table.
	missesUntilClosed = 2
	// deadMemory is how long a connection whose end was reported waits for its
	// destroy notification.
	deadMemory = time.Hour
	// listenerMemory is how long a port counts as listening after the last dump
	// that showed its listener. It covers connections that outlive a restarted
	// server's socket.
	listenerMemory = 5 * time.Minute
	// maxUnresolved bounds the connections of one namespace that wait for the
	// next dump of listening ports. A busy node ends a few thousand connections
	// a second.
	maxUnresolved = 8192
)

// Stats holds totals since New.
type Stats struct {
	// Connections is the number remembered now, including dead ones.
	Connections int
	// Untracked counts observations of living connections that did not fit;
	// those are reported when they end.
	Untracked uint64
	// Dropped counts rows lost because MaxRows were waiting.
	Dropped uint64
	// Unclear counts destroy notifications that were not reported because their
	// connection may have been reported before.
	Unclear uint64
}

// Table tracks the connections of all network namespaces. Use New.
type Table struct {
	cfg    Config
	spaces map[uint64]*space
	rows   []Row
	size   int // connections in all spaces
	stats  Stats

	edges      map[edgeKey]*edge
	edgesSwept int64
}

// space is one network namespace.
type space struct {
	inode      uint64
	conns      map[uint64]*conn // by cookie
	listeners  map[netip.AddrPort]listenSocket
	unresolved []unresolved
	held       map[ends]held
	full       []Row // of full accept queues in the current dump

	generation     uint32 // number of the current or last dump
	dumpBegan      int64  // start of the current or last dump
	knownUntil     int64  // start of the last complete dump: a connection it missed is younger
	adopt          bool   // connections first shown by the next dump may be old
	overrun        bool   // notifications were lost since the last dump
	forgottenUntil int64  // latest report time of dead connections that were removed
	locals         [2]local
}

// ends are the addresses of a connection. The kernel gives a mini-socket a cookie
// of its own if nobody asked for that of the socket before.
type ends struct{ local, peer netip.AddrPort }

// held is the last row of a client's connection that ended orderly after the
// client had asked something. If the next dump shows that the peer still keeps
// its end open, the client gave up; otherwise the peer may have hung up.
type held struct {
	row        Row
	generation uint32 // number of the last dump at the time
}

// listenSocket is a listening socket: when a dump last showed it, and its
// inode.
type listenSocket struct {
	seen  int64
	inode uint32
}

// local is the address from which a namespace connects to others; mixed is set
// when there are several.
type local struct {
	addr  netip.Addr
	mixed bool
}

// conn is one connection.
type conn struct {
	cookie      uint64
	local, peer netip.AddrPort
	cgroup      uint64
	uid         uint32
	inode       uint32
	generation  uint32 // number of the last dump that showed it
	seen        int64
	reported    int64  // end of its last row, or its assumed beginning
	acked       uint64 // Info.BytesAcked
	counters    Counters
	base        Counters // totals already reported
	unread      uint64   // bytes unread at the last dump
	read        uint64   // bytes read by then
	rtt, minRTT uint32
	delivered   uint32 // Info.Delivered
	edge        *edge
	began       int64 // the latest time at which it did not exist, 0 if adopted
	period      period
	about       Description
	role        Role
	established bool
	counted     bool // in Row.Connections
	dead        bool // its end was reported, its destroy notification has not arrived
	failed      bool // its end was reported as EndConnectFailed
	peerClosed  bool // a dump showed that the peer had sent its FIN
	troubled    bool // the last dump showed trouble since the one before: report it now
	misses      uint8
	slowSteps   uint8 // consecutive dumps that showed trouble other than loss
}

// period holds what dumps showed since a connection's last row.
type period struct {
	minRTT, maxRTT, queue uint32 // microseconds, 0 if not measured
	unread, unsent        uint64
}

// unresolved is a connection known only by a destroy notification that does not
// show its role.
type unresolved struct {
	socket Socket
	now    int64
	start  int64
}

// New returns an empty table.
func New(cfg Config) *Table {
	cfg.Exclude = unmapPrefixes(cfg.Exclude)
	return &Table{cfg: cfg, spaces: map[uint64]*space{}, edges: map[edgeKey]*edge{}}
}

// Configure changes the configuration. When the exclusions change, connections
// that are excluded now are forgotten without a row; connections that are no
// longer excluded are reported from the next dump on, without their earlier
// activity.
func (t *Table) Configure(cfg Config) {
	cfg.Exclude = unmapPrefixes(cfg.Exclude)
	same := t.cfg.sameExclusions(&cfg)
	t.cfg = cfg
	if same {
		return
	}
	for _, sp := range t.spaces {
		sp.adopt = true
		for cookie, c := range sp.conns {
			if t.cfg.Excludes(c.local, c.peer) {
				t.remove(sp, cookie)
			}
		}
	}
}

// Open starts tracking a network namespace. With adopt, the connections in its
// first dump may be old, and their earlier activity is not counted; without it,
// no connection is older than since.
func (t *Table) Open(since time.Time, namespace uint64, adopt bool) {
	t.spaces[namespace] = &space{
		inode:      namespace,
		conns:      map[uint64]*conn{},
		listeners:  map[netip.AddrPort]listenSocket{},
		held:       map[ends]held{},
		knownUntil: since.UnixNano(),
		adopt:      adopt,
	}
}

// Forget stops tracking a network namespace without reporting its connections,
// which continue.
func (t *Table) Forget(namespace uint64) {
	if sp := t.spaces[namespace]; sp != nil {
		t.release(sp, true)
		t.size -= len(sp.conns)
		delete(t.spaces, namespace)
	}
}

// Close stops tracking a network namespace that is gone, and reports the end of
// all its connections.
func (t *Table) Close(now time.Time, namespace uint64) {
	sp := t.spaces[namespace]
	if sp == nil {
		return
	}
	t.resolve(sp)
	for cookie, c := range sp.conns {
		if !c.dead {
			t.finish(sp, c, now.UnixNano(), guessEnd(c))
		}
		t.remove(sp, cookie)
	}
	t.release(sp, true)
	delete(t.spaces, namespace)
}

// BeginDump starts a dump; later calls to Observe belong to it.
func (t *Table) BeginDump(now time.Time, namespace uint64) {
	if sp := t.spaces[namespace]; sp != nil {
		sp.generation++
		sp.dumpBegan = now.UnixNano()
	}
}

// Observe records a socket of a dump, listening sockets included. Sockets
// destroyed during the dump must be passed to Destroyed after the last Observe,
// never between. Observe does not keep s.
func (t *Table) Observe(now time.Time, namespace uint64, s *Socket) {
	sp := t.spaces[namespace]
	if sp == nil {
		return
	}
	at := now.UnixNano()
	local, peer := unmap(s.Local), unmap(s.Peer)
	if s.State == StateListen {
		sp.listeners[local] = listenSocket{at, s.Inode}
		t.observeQueue(sp, s, local, at)
		return
	}
	if s.Mini && s.State == StateFinWait2 && len(sp.held) > 0 {
		if h, ok := sp.held[ends{local, peer}]; ok {
			h.row.GaveUp = 1
			sp.held[ends{local, peer}] = h
		}
	}
	if s.Mini || peer.Port() == 0 || s.State == StateTimeWait || s.State == StateSynReceived || s.State == StateClose {
		return
	}
	c := sp.conns[s.Cookie]
	if c != nil && c.replacedBy(s, local, peer) {
		if !c.dead {
			t.finish(sp, c, at, guessEnd(c))
		}
		t.remove(sp, s.Cookie)
		c = nil
	}
	if c == nil {
		if t.cfg.Excludes(local, peer) {
			return
		}
		if t.size >= t.cfg.maxConnections() {
			t.stats.Untracked++
			return
		}
		c = &conn{cookie: s.Cookie, local: local, peer: peer, reported: sp.knownUntil, began: sp.knownUntil, minRTT: UnknownRTT}
		if sp.adopt {
			c.base, c.reported, c.began = countersOf(s), at, 0
			c.counted = s.established()
			c.counters = c.base
		}
		t.describe(sp, c)
		sp.conns[s.Cookie] = c
		t.size++
		sp.remember(local, peer)
	}
	if c.role == RoleUnknown {
		c.role = s.role()
	}
	if c.edge == nil && s.Info.MinRTT != UnknownRTT {
		c.edge = t.edgeOf(sp, sp.roleOf(c.role, c.local), local, peer, at)
		if c.edge != nil {
			c.edge.begin(s.Info.MinRTT)
		}
		c.sample(s.Info.MinRTT, at)
	}
	counters := c.next(s)
	unread, rtt := c.unreadSince(s), c.certainRTT(s)
	if c.troubledSince(counters, unread, rtt) {
		t.reportBefore(sp, c)
		c.troubled = true
	}
	c.generation, c.misses, c.dead, c.seen = sp.generation, 0, false, at
	c.cgroup, c.uid = s.Cgroup, s.UID
	c.peerClosed = c.peerClosed || s.peerClosed()
	if s.Inode != 0 { // a socket that closes slowly belongs to no process any more
		c.inode = s.Inode
	}
	c.measure(s, rtt)
	c.period.unread = max(c.period.unread, unread)
	c.unread, c.read = s.unread(), s.Info.BytesReceived-uint64(s.ReceiveQueue)
	c.update(s, counters)
}

// observeQueue reports a listening socket whose accept queue is full. For such a
// socket ReceiveQueue is the number of connections that wait for accept, and
// SendQueue the limit, which the kernel lets one more exceed.
func (t *Table) observeQueue(sp *space, s *Socket, local netip.AddrPort, at int64) {
	if s.ReceiveQueue <= s.SendQueue || s.SendQueue == 0 || t.cfg.Excludes(local, local) {
		return
	}
	sp.full = append(sp.full, Row{
		Start: min(sp.knownUntil, at), End: at, Namespace: sp.inode, Cookie: s.Cookie, Cgroup: s.Cgroup, UID: s.UID, Inode: s.Inode,
		Local: local, Peer: netip.AddrPortFrom(netip.IPv6Unspecified(), 0), Role: RoleServer, AcceptQueueFull: 1,
	})
}

// reportQueues appends the rows of full accept queues. A socket that listens at
// any address gets that of a connection in its queue, by which clients know it.
func (t *Table) reportQueues(sp *space) {
	for _, row := range sp.full {
		if row.Local.Addr().IsUnspecified() {
			for _, c := range sp.conns {
				if c.local.Port() == row.Local.Port() && c.generation == sp.generation {
					row.Local = c.local
					break
				}
			}
		}
		t.Add(row)
	}
	sp.full = sp.full[:0]
}

// EndDump ends a dump. Every socket destroyed before the dump began must have
// been passed to Destroyed by now. EndDump reports the living connections that
// are due, and closes those that this dump and the one before it missed. An
// incomplete dump proves nothing about connections that it did not show.
func (t *Table) EndDump(now time.Time, namespace uint64, complete bool) {
	sp := t.spaces[namespace]
	if sp == nil {
		return
	}
	at := now.UnixNano()
	memory := int64(deadMemory)
	if t.size > t.cfg.maxConnections()*3/4 {
		memory = 0 // make room for living connections
	}
	t.resolve(sp)
	t.release(sp, false)
	t.reportQueues(sp)
	for cookie, c := range sp.conns {
		switch {
		case c.generation == sp.generation:
			due := c.troubled || at-c.reported >= int64(t.cfg.ReportInterval)
			if due && len(t.rows) < t.cfg.maxRows() {
				t.report(sp, c, at)
				c.troubled = false
			}
		case c.dead:
			if complete && at-c.reported >= memory {
				sp.forgottenUntil = max(sp.forgottenUntil, c.reported)
				t.remove(sp, cookie)
			}
		case complete:
			c.misses++
			if c.misses >= missesUntilClosed || sp.overrun {
				t.finish(sp, c, at, guessEnd(c))
				c.dead = true
			}
		}
	}
	for l, socket := range sp.listeners {
		if at-socket.seen > int64(listenerMemory) {
			delete(sp.listeners, l)
		}
	}
	if complete {
		sp.knownUntil, sp.adopt, sp.overrun = sp.dumpBegan, false, false
	}
}

// Unresolved reports whether connections of the namespace wait for a dump of
// its listening ports: the caller should make one and then call ResolveRoles.
func (t *Table) Unresolved(namespace uint64) bool {
	sp := t.spaces[namespace]
	return sp != nil && len(sp.unresolved) > 0
}

// ResolveRoles reports the unresolved connections of the namespace, after
// Observe was called for all its listening sockets.
func (t *Table) ResolveRoles(namespace uint64) {
	if sp := t.spaces[namespace]; sp != nil {
		t.resolve(sp)
	}
}

// Overrun records that destroy notifications were lost: the connections that
// the next complete dump misses have ended.
func (t *Table) Overrun(namespace uint64) {
	if sp := t.spaces[namespace]; sp != nil {
		sp.overrun = true
	}
}

// Destroyed records the final state of a socket. It does not keep s.
func (t *Table) Destroyed(now time.Time, namespace uint64, s *Socket) {
	sp := t.spaces[namespace]
	if sp == nil {
		return
	}
	at := now.UnixNano()
	local, peer := unmap(s.Local), unmap(s.Peer)
	c := sp.conns[s.Cookie]
	if c != nil && !s.disconnected() && c.replacedBy(s, local, peer) {
		// The socket was connected again, and that connection ended before a
		// dump showed it.
		if !c.dead {
			t.finish(sp, c, at, guessEnd(c))
		}
		t.remove(sp, s.Cookie)
		t.destroyedUnknown(sp, s, local, peer, c.seen, max(at, c.reported+1))
		return
	}
	if c == nil {
		t.destroyedUnknown(sp, s, local, peer, sp.knownUntil, at)
		return
	}
	if s.disconnected() {
		c.established = c.established || s.established()
		c.counters.Retransmits = max(c.counters.Retransmits, countersOf(s).Retransmits)
	} else {
		c.measure(s, c.certainRTT(s))
		c.update(s, c.next(s))
		if r := s.role(); r != RoleUnknown && c.role == RoleUnknown {
			c.role = r
		}
	}
	role := sp.roleOf(c.role, c.local)
	last := outcome{end: EndConnectFailed, refused: s.refused()}
	if c.established {
		last = s.outcome(role)
		if last.end == EndConnectFailed { // the kernel cleared the socket's counters
			last = aborted(role)
		}
		if c.peerClosed {
			last.gaveUp, last.asked = false, false
			if last.end == EndReset {
				last.end = EndOrderly // the peer had already sent its FIN
			}
		}
	}
	t.finish(sp, c, at, last)
	t.remove(sp, s.Cookie)
}

// destroyedUnknown records the end of a connection that no dump showed.
func (t *Table) destroyedUnknown(sp *space, s *Socket, local, peer netip.AddrPort, start, at int64) {
	if peer.Port() == 0 && (peer.Addr().IsUnspecified() || !peer.IsValid()) {
		return // a listening or unused socket
	}
	if local.Addr().IsUnspecified() {
		local = netip.AddrPortFrom(sp.localFor(peer.Addr()), local.Port())
	}
	if t.cfg.Excludes(local, peer) {
		return
	}
	if sp.adopt {
		// It may have begun long ago, and no dump came in time to record its
		// counters by then.
		t.stats.Unclear++
		return
	}
	if sp.forgottenUntil != 0 && s.established() && at-int64(s.idle()) <= sp.forgottenUntil {
		t.stats.Unclear++
		return
	}
	if _, open := sp.listener(local); s.established() && s.role() == RoleUnknown && !open {
		if len(sp.unresolved) >= maxUnresolved {
			t.resolve(sp)
		}
		sp.unresolved = append(sp.unresolved, unresolved{socket: *s, now: at, start: start})
		return
	}
	t.reportWhole(sp, s, start, at)
}

// resolve reports the unresolved connections, with the roles that the known
// listening ports imply.
func (t *Table) resolve(sp *space) {
	for i := range sp.unresolved {
		u := &sp.unresolved[i]
		t.reportWhole(sp, &u.socket, u.start, u.now)
	}
	sp.unresolved = sp.unresolved[:0]
	if cap(sp.unresolved) > maxUnresolved/4 {
		sp.unresolved = nil
	}
}

// reportWhole reports a connection in one row, from its destroy notification.
func (t *Table) reportWhole(sp *space, s *Socket, start, at int64) {
	c := conn{
		cookie: s.Cookie, local: unmap(s.Local), peer: unmap(s.Peer), cgroup: s.Cgroup, uid: s.UID,
		reported: start, began: start, minRTT: UnknownRTT, role: s.role(),
	}
	if c.local.Addr().IsUnspecified() {
		c.local = netip.AddrPortFrom(sp.localFor(c.peer.Addr()), c.local.Port())
	}
	role := sp.roleOf(c.role, c.local)
	if s.Info.MinRTT != UnknownRTT && !s.disconnected() {
		if c.edge = t.edgeOf(sp, role, c.local, c.peer, at); c.edge != nil {
			c.edge.begin(s.Info.MinRTT)
		}
		c.measure(s, c.certainRTT(s))
	}
	c.update(s, c.next(s))
	t.finish(sp, &c, at, s.outcome(role))
}

// Flush reports every living connection of the namespace that was active since
// its last row, as the last dump showed it. Call it before capture stops; a
// restart adopts the connections again.
func (t *Table) Flush(now time.Time, namespace uint64) {
	sp := t.spaces[namespace]
	if sp == nil {
		return
	}
	t.resolve(sp)
	t.release(sp, true)
	for _, c := range sp.conns {
		if c.dead || c.counters == c.base && (c.counted || !c.established) {
			continue
		}
		if len(t.rows) >= t.cfg.maxRows() {
			t.stats.Dropped++
			continue
		}
		t.report(sp, c, min(now.UnixNano(), max(c.seen, c.reported)))
	}
}

// ClockStepped tells the table that the clock behind the times it is given was
// set forward by the duration, or back when it is negative.
func (t *Table) ClockStepped(by time.Duration) {
	for _, sp := range t.spaces {
		sp.dumpBegan += int64(by)
		sp.knownUntil += int64(by)
		if sp.forgottenUntil != 0 {
			sp.forgottenUntil += int64(by)
		}
		for _, c := range sp.conns {
			c.seen += int64(by)
			c.reported += int64(by)
			if c.began != 0 {
				c.began += int64(by)
			}
		}
		for l, socket := range sp.listeners {
			socket.seen += int64(by)
			sp.listeners[l] = socket
		}
		for i := range sp.unresolved {
			sp.unresolved[i].now += int64(by)
			sp.unresolved[i].start += int64(by)
		}
	}
}

// Add appends a row of another source, about addresses or DNS queries. At the
// bound of waiting rows it drops and counts the row.
func (t *Table) Add(row Row) {
	if len(t.rows) >= t.cfg.maxRows() {
		t.stats.Dropped++
		return
	}
	t.rows = append(t.rows, row)
}

// Take appends the finished rows to dst and removes them from the table.
func (t *Table) Take(dst []Row) []Row {
	dst = append(dst, t.rows...)
	if cap(t.rows) > defaultMaxRows/4 {
		t.rows = nil
	}
	t.rows = t.rows[:0]
	return dst
}

// Pending returns the number of rows that Take would append.
func (t *Table) Pending() int { return len(t.rows) }

// Stats returns the current totals.
func (t *Table) Stats() Stats {
	s := t.stats
	s.Connections = t.size
	return s
}

func (t *Table) remove(sp *space, cookie uint64) {
	delete(sp.conns, cookie)
	t.size--
}

// maxSteps is the number of consecutive dumps with trouble other than loss that
// are reported each in a row of its own. Later ones join the rows of the report
// interval: what lasts is no burst, and a row for each dump tells nothing more.
const maxSteps = 12

// troubledSince reports whether the connection was in trouble since the dump
// that showed it last, when its counters are now: segments were retransmitted,
// the receiver's window held the sender back for a tenth of the time, the
// process left bytes unread, or the certain round trip time is above its usual.
func (c *conn) troubledSince(now Counters, unread uint64, rtt uint32) bool {
	if c.seen == 0 || c.dead {
		return false
	}
	limited := now.ReceiveWindowLimited - c.counters.ReceiveWindowLimited
	if now.Retransmits != c.counters.Retransmits {
		return true
	}
	if limited != 0 && limited >= (now.Busy-c.counters.Busy)/10 || unread > 0 || c.edge.slow(rtt) {
		c.slowSteps = min(c.slowSteps+1, maxSteps+1)
		return c.slowSteps <= maxSteps
	}
	c.slowSteps = 0
	return false
}

// unreadSince returns the bytes that the process left unread since the last
// dump, though they waited then already. At a client's end they count only if
// more than what servers send unasked: TLS session tickets, pings, farewells.
func (c *conn) unreadSince(s *Socket) uint64 {
	if c.seen == 0 || c.unread == 0 || s.Info.BytesReceived-uint64(s.ReceiveQueue) != c.read {
		return 0
	}
	n := min(c.unread, s.unread())
	if c.role != RoleServer && (n <= unaskedBytes || c.peerClosed || s.peerClosed()) {
		return 0
	}
	return n
}

// unaskedBytes is the most that a server is expected to send to a client that
// asked nothing.
const unaskedBytes = 4096

// certainRTT returns a round trip time that the network surely needed since the
// last dump, or 0 if nothing was measured. It does not look closer at one that
// is not slow. A single measurement may be long because a host was busy: a
// connection needs several, or the connections of the edge must agree.
//
// The kernel's minimum of five minutes is certain. So is the smoothed round trip
// time, without what it still holds of times before the last dump, without what
// the peer may have added by delaying acknowledgements, and without twice the mean
// deviation: a longer way delays every segment, a host without CPU some of them.
func (c *conn) certainRTT(s *Socket) uint32 {
	i := &s.Info
	if c.seen != 0 && i.BytesAcked <= c.acked {
		return 0
	}
	if !c.edge.slow(i.RTT) {
		return i.RTT
	}
	if i.Delivered < enoughDelivered && c.edge.run < enoughSamples {
		return c.edge.usual
	}
	rtt := float64(i.RTT)
	if c.seen != 0 && c.rtt > i.RTT {
		// Each measurement counts for an eighth; about every second segment
		// brings one.
		before := math.Pow(7./8, float64(max(1, (i.Delivered-c.delivered)/2)))
		rtt = (rtt - before*float64(c.rtt)) / (1 - before)
	}
	certain := uint32(max(0, rtt-max(delayedACK, 2*float64(i.RTTDeviation))))
	if i.MinRTT != UnknownRTT {
		certain = max(certain, i.MinRTT)
	}
	return certain
}

// enoughDelivered is the number of delivered segments from which the round trip
// times of one connection count by themselves.
const enoughDelivered = 8

// measure adds the socket's round trip times and queues to the period.
func (c *conn) measure(s *Socket, certain uint32) {
	i, p := &s.Info, &c.period
	p.unsent = max(p.unsent, uint64(i.Unsent))
	if i.RTT == 0 || certain == 0 {
		return
	}
	if i.MinRTT != UnknownRTT && (i.MinRTT != c.minRTT || c.began == c.reported) {
		p.minRTT = least(p.minRTT, i.MinRTT) // measured in this period
	}
	p.minRTT = least(p.minRTT, i.RTT)
	rtt, slow := i.RTT, c.edge.slow(certain)
	if !slow && c.edge.slow(rtt) {
		rtt = max(certain, c.edge.usual) // only earlier times, or delayed acknowledgements, make it more
	}
	if rtt <= p.maxRTT {
		return
	}
	p.maxRTT, p.queue = rtt, 0
	if slow && (i.Unsent > 0 || i.InFlight > initialWindow) && !c.edge.slow(i.MinRTT) {
		p.queue = rtt - c.edge.usual
	}
}

// initialWindow is the number of segments that every connection may have under
// way (RFC 6928). More of them can fill the queue before a bottleneck.
const initialWindow = 10

func least(a, b uint32) uint32 {
	if a == 0 {
		return b
	}
	return min(a, b)
}

// sample adds a measured minimum to the history of the edge.
func (c *conn) sample(rtt uint32, at int64) {
	if c.edge != nil && rtt != UnknownRTT {
		c.edge.add(rtt, at)
	}
}

// reportBefore appends a row up to the last dump, so that the row of the
// trouble since then covers only the trouble. Without activity until then there
// is nothing to report.
func (t *Table) reportBefore(sp *space, c *conn) {
	switch {
	case c.seen <= c.reported:
	case c.counters == c.base && (c.counted || !c.established):
		c.reported = c.seen
	case len(t.rows) < t.cfg.maxRows():
		t.report(sp, c, c.seen)
	}
}

// report appends a row of a living connection.
func (t *Table) report(sp *space, c *conn, at int64) {
	t.describe(sp, c)
	t.rows = append(t.rows, c.row(sp, at))
}

// outcome is how a connection ended.
type outcome struct {
	end End
	// gaveUp: the own process closed it while it waited for an answer. asked:
	// it did if it closed before the peer.
	gaveUp, asked bool
	refused       bool // the peer answered the failed connect
}

// maxHeld bounds the rows that wait for the next dump, in each namespace.
const maxHeld = 1024

// finish appends the last row of a connection. After an earlier last row it
// appends another only when something changed.
func (t *Table) finish(sp *space, c *conn, at int64, last outcome) {
	again := c.dead
	if again {
		if last.end == EndConnectFailed {
			return // already reported
		}
		at = c.reported
	}
	if c.failed {
		last = outcome{} // already counted as a failed connect
	}
	t.describe(sp, c)
	row := c.row(sp, at)
	row.Closed, row.Reason = true, last.end
	switch last.end {
	case EndConnectFailed:
		row.ConnectFailures = 1
		if last.refused {
			row.Refused = 1
		}
		c.failed, c.counted = true, true
	case EndReset:
		if !last.gaveUp {
			row.Resets = 1
		}
	case EndTimedOut:
		row.Timeouts = 1
	case EndUnknown, EndOrderly:
		if again && row.Counters == (Counters{}) && row.Connections == 0 {
			return
		}
	}
	if last.gaveUp {
		row.GaveUp = 1
	}
	key := ends{c.local, c.peer}
	if _, taken := sp.held[key]; last.asked && !again && !taken && len(sp.held) < maxHeld {
		sp.held[key] = held{row, sp.generation}
		return
	}
	t.Add(row)
}

// release appends the held rows that a whole dump has followed, or all.
func (t *Table) release(sp *space, all bool) {
	for key, h := range sp.held {
		if all || h.generation != sp.generation {
			t.Add(h.row)
			delete(sp.held, key)
		}
	}
}

// describe adds what is known of the connection's ends. What was known first
// stays: the peer may have got another name since.
func (t *Table) describe(sp *space, c *conn) {
	named, translated := c.about.PeerName != "", c.about.Translated.IsValid() || c.about.TranslatedPeer.IsValid()
	if t.cfg.Describe == nil || named && translated {
		return
	}
	about := t.cfg.Describe(sp.inode, c.local, c.peer)
	if !named {
		c.about.PeerName = about.PeerName
	}
	if !translated {
		c.about.Translated, c.about.TranslatedPeer = about.Translated, about.TranslatedPeer
	}
}

// row returns the connection's activity since its last row, and marks it
// reported.
func (c *conn) row(sp *space, at int64) Row {
	row := Row{
		// No two rows of a socket end at the same moment: End distinguishes a
		// row from a copy of another.
		Start: c.reported, End: max(at, c.reported+1),
		Namespace: sp.inode, Cookie: c.cookie, Cgroup: c.cgroup, UID: c.uid, Inode: c.inode,
		// A guessed role is not kept: the next dump may show the real one.
		Local: c.local, Peer: c.peer, Role: sp.roleOf(c.role, c.local),
		Counters: c.counters.sub(c.base),
		RTT:      c.rtt, MinRTT: c.period.minRTT, MaxRTT: c.period.maxRTT, Queue: c.period.queue,
		UnreadBytes: c.period.unread, UnsentBytes: c.period.unsent,
		PeerName: c.about.PeerName, Translated: c.about.Translated, TranslatedPeer: c.about.TranslatedPeer,
	}
	if row.MinRTT == 0 && c.minRTT != UnknownRTT {
		row.MinRTT = c.minRTT
	}
	if c.edge != nil {
		row.UsualRTT = c.edge.usual
		c.sample(c.minRTT, row.End)
	}
	c.period = period{}
	if row.Inode == 0 && row.Role == RoleServer {
		socket, _ := sp.listener(c.local)
		row.Inode = socket.inode
	}
	if c.established && !c.counted {
		row.Connections = 1
		c.counted = true
	}
	c.base, c.reported = c.counters, row.End
	return row
}

// next returns the connection's counters raised to those of its socket.
func (c *conn) next(s *Socket) Counters { return c.counters.advance(countersOf(s)) }

// update takes over the state of the socket, and its counters from next.
func (c *conn) update(s *Socket, counters Counters) {
	c.counters = counters
	c.acked = max(c.acked, s.Info.BytesAcked)
	c.delivered = s.Info.Delivered
	c.established = c.established || s.established()
	if s.Info.RTT != 0 {
		c.rtt = s.Info.RTT
	}
	if s.Info.MinRTT != UnknownRTT {
		c.minRTT = s.Info.MinRTT
	}
}

// replacedBy reports whether s, which has the same cookie, is a different
// connection: the application connected the socket again.
func (c *conn) replacedBy(s *Socket, local, peer netip.AddrPort) bool {
	if peer != c.peer || local.Port() != c.local.Port() {
		return true
	}
	if c.established && !s.established() {
		return true
	}
	return s.Info.BytesReceived < c.counters.BytesReceived || s.Info.BytesAcked < c.acked
}

// guessEnd returns the end of a connection whose destroy notification was not
// seen.
func guessEnd(c *conn) outcome {
	if !c.established {
		return outcome{end: EndConnectFailed}
	}
	return outcome{}
}

// idle returns the time since the connection last showed activity.
func (s *Socket) idle() time.Duration {
	ms := s.Info.LastAck
	if s.Info.SegmentsReceived > 0 {
		ms = min(ms, s.Info.LastReceived)
	}
	if s.Info.SegmentsSent > 0 {
		ms = min(ms, s.Info.LastSent)
	}
	return time.Duration(ms) * time.Millisecond
}

// roleOf returns role if it is known, and otherwise the role that the listening
// ports imply.
func (sp *space) roleOf(role Role, local netip.AddrPort) Role {
	if role != RoleUnknown {
		return role
	}
	if _, ok := sp.listener(local); ok {
		return RoleServer
	}
	return RoleClient
}

// listener returns the socket that listens, or recently did, at local.
func (sp *space) listener(local netip.AddrPort) (socket listenSocket, ok bool) {
	port := local.Port()
	for _, l := range [...]netip.AddrPort{local, netip.AddrPortFrom(netip.IPv6Unspecified(), port), netip.AddrPortFrom(netip.IPv4Unspecified(), port)} {
		if socket, ok = sp.listeners[l]; ok {
			return socket, true
		}
	}
	return listenSocket{}, false
}

// remember records the address from which the namespace connects to others.
func (sp *space) remember(own, peer netip.AddrPort) {
	if peer.Addr().IsLoopback() {
		return
	}
	l := &sp.locals[family(own.Addr())]
	switch {
	case !l.addr.IsValid():
		l.addr = own.Addr()
	case l.addr != own.Addr():
		l.mixed = true
	}
}

// localFor returns the address from which the namespace connects to peer, or
// the unspecified address when that is uncertain.
func (sp *space) localFor(peer netip.Addr) netip.Addr {
	if peer.IsLoopback() {
		return peer
	}
	if l := sp.locals[family(peer)]; l.addr.IsValid() && !l.mixed {
		return l.addr
	}
	if peer.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func unmap(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is4In6() {
		return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	return a
}
