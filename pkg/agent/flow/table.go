package flow

import (
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
}

// space is one network namespace.
type space struct {
	inode      uint64
	conns      map[uint64]*conn // by cookie
	listeners  map[netip.AddrPort]listenSocket
	unresolved []unresolved

	generation     uint32 // number of the current or last dump
	dumpBegan      int64  // start of the current or last dump
	knownUntil     int64  // start of the last complete dump: a connection it missed is younger
	adopt          bool   // connections first shown by the next dump may be old
	overrun        bool   // notifications were lost since the last dump
	forgottenUntil int64  // latest report time of dead connections that were removed
	locals         [2]local
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
	rtt, minRTT uint32
	role        Role
	established bool
	counted     bool // in Row.Connections
	dead        bool // its end was reported, its destroy notification has not arrived
	failed      bool // its end was reported as EndConnectFailed
	peerClosed  bool // a dump showed that the peer had sent its FIN
	troubled    bool // the last dump showed trouble since the one before: report it now
	misses      uint8
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
	return &Table{cfg: cfg, spaces: map[uint64]*space{}}
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
			if t.cfg.excludes(c.local, c.peer) {
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
		knownUntil: since.UnixNano(),
		adopt:      adopt,
	}
}

// Forget stops tracking a network namespace without reporting its connections,
// which continue.
func (t *Table) Forget(namespace uint64) {
	if sp := t.spaces[namespace]; sp != nil {
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
		return
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
		if t.cfg.excludes(local, peer) {
			return
		}
		if t.size >= t.cfg.maxConnections() {
			t.stats.Untracked++
			return
		}
		c = &conn{cookie: s.Cookie, local: local, peer: peer, reported: sp.knownUntil, minRTT: UnknownRTT}
		if sp.adopt {
			c.base, c.reported = countersOf(s), at
			c.counted = s.established()
			c.counters = c.base
		}
		sp.conns[s.Cookie] = c
		t.size++
		sp.remember(local, peer)
	}
	counters := c.next(s)
	if c.troubledSince(counters) {
		t.reportBefore(sp, c)
		c.troubled = true
	}
	c.generation, c.misses, c.dead, c.seen = sp.generation, 0, false, at
	c.cgroup, c.uid = s.Cgroup, s.UID
	c.peerClosed = c.peerClosed || s.peerClosed()
	if s.Inode != 0 { // a socket that closes slowly belongs to no process any more
		c.inode = s.Inode
	}
	c.update(s, counters)
	if c.role == RoleUnknown {
		c.role = s.role()
	}
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
		c.update(s, c.next(s))
		if r := s.role(); r != RoleUnknown && c.role == RoleUnknown {
			c.role = r
		}
	}
	end := EndConnectFailed
	if c.established {
		end = s.end(sp.roleOf(c.role, c.local))
		if end == EndConnectFailed {
			end = EndReset // the kernel cleared the socket's counters
		}
		if end == EndReset && c.peerClosed {
			end = EndOrderly // the peer had already sent its FIN
		}
	}
	t.finish(sp, c, at, end)
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
	if t.cfg.excludes(local, peer) {
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
		reported: start, minRTT: UnknownRTT, role: s.role(),
	}
	if c.local.Addr().IsUnspecified() {
		c.local = netip.AddrPortFrom(sp.localFor(c.peer.Addr()), c.local.Port())
	}
	c.update(s, c.next(s))
	t.finish(sp, &c, at, s.end(sp.roleOf(c.role, c.local)))
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

// troubledSince reports whether the connection was in trouble since the dump
// that showed it last, when its counters are now: segments were retransmitted,
// or the receiver's window held the sender back for a tenth of the time.
func (c *conn) troubledSince(now Counters) bool {
	if c.seen == 0 || c.dead {
		return false
	}
	limited := now.ReceiveWindowLimited - c.counters.ReceiveWindowLimited
	return now.Retransmits != c.counters.Retransmits ||
		limited != 0 && limited >= (now.Busy-c.counters.Busy)/10
}

// reportBefore appends a row up to the last dump, so that the row of the
// trouble since then covers only the trouble.
func (t *Table) reportBefore(sp *space, c *conn) {
	if c.seen > c.reported && c.counters != c.base && len(t.rows) < t.cfg.maxRows() {
		t.report(sp, c, c.seen)
	}
}

// report appends a row of a living connection.
func (t *Table) report(sp *space, c *conn, at int64) {
	t.rows = append(t.rows, c.row(sp, at))
}

// finish appends the last row of a connection. After an earlier last row it
// appends another only when something changed.
func (t *Table) finish(sp *space, c *conn, at int64, end End) {
	again := c.dead
	if again {
		if end == EndConnectFailed {
			return // already reported
		}
		at = c.reported
	}
	if c.failed {
		end = EndUnknown // already counted as a failed connect
	}
	row := c.row(sp, at)
	row.Closed, row.Reason = true, end
	switch end {
	case EndConnectFailed:
		row.ConnectFailures = 1
		c.failed, c.counted = true, true
	case EndReset:
		row.Resets = 1
	case EndTimedOut:
		row.Timeouts = 1
	case EndUnknown, EndOrderly:
		if again && row.Counters == (Counters{}) && row.Connections == 0 {
			return
		}
	}
	if len(t.rows) >= t.cfg.maxRows() {
		t.stats.Dropped++
		return
	}
	t.rows = append(t.rows, row)
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
		RTT:      c.rtt,
	}
	if c.minRTT != UnknownRTT {
		row.MinRTT = c.minRTT
	}
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
func guessEnd(c *conn) End {
	if !c.established {
		return EndConnectFailed
	}
	return EndUnknown
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
