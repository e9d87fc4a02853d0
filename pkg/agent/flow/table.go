package flow

import (
	"net/netip"
	"time"
)

const (
	// missesUntilClosed is how many dumps in a row must miss a connection before it counts as
	// ended. One is too few: a dump that goes on while sockets come and go may pass one over, and the
	// last words of a socket come a moment after it left the kernel's table.
	missesUntilClosed = 2
	// deadMemory is how long a connection whose end was reported waits for its last words.
	deadMemory = time.Hour
	// listenerMemory is how long a port counts as listening after somebody was last seen listening
	// there. It covers connections that outlive a restarted server's socket.
	listenerMemory = 5 * time.Minute
	// maxUndecided bounds the connections of one namespace that wait for the next look at the
	// listening ports; a busy node ends a few thousand connections a second.
	maxUndecided = 8192
)

// Stats are totals since the table was made.
type Stats struct {
	// Connections are remembered now, those of them included that are dead.
	Connections int
	// Untracked were living connections that did not fit; they are reported when they end.
	Untracked uint64
	// Dropped are rows that were lost because nobody took them.
	Dropped uint64
	// Unclear are last words that were not reported because they might be of a connection that already was.
	Unclear uint64
}

// Table knows the connections of all network namespaces. Use New.
type Table struct {
	cfg    Config
	spaces map[uint64]*space
	rows   []Row
	size   int // connections in all spaces
	stats  Stats
}

// space is one network namespace.
type space struct {
	inode     uint64
	conns     map[uint64]*conn // by cookie
	listeners map[netip.AddrPort]openPort
	undecided []undecided

	generation uint32 // of the current dump, or of the last
	began      int64  // when the current dump began, or the last
	known      int64  // until when everything that lives was seen: connections not seen by then are younger
	adopt      bool   // connections that the next dump shows for the first time are not young
	overrun    bool   // last words were lost since the last dump
	forgot     int64  // until when what was given up, and is forgotten, may have lived
	locals     [2]local
}

// openPort is a listening socket: when it was seen last, and its inode.
type openPort struct {
	seen  int64
	inode uint32
}

// local is the address from which a namespace connects to others, if there is but one.
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
	generation  uint32 // of the dump that saw it last
	seen        int64
	reported    int64  // end of its last row, or its beginning
	acked       uint64 // Info.BytesAcked
	counters    Counters
	base        Counters // what was reported
	rtt, minRTT uint32
	role        Role
	established bool
	counted     bool // as a connection
	dead        bool // its end was reported, its last words were not heard
	failed      bool // its end was reported as a failed connect
	misses      uint8
}

// undecided is a connection that was seen in its last words only, which do not say its role.
type undecided struct {
	socket Socket
	now    int64
	start  int64
}

// New returns an empty table.
func New(cfg Config) *Table {
	cfg.Exclude = unmapPrefixes(cfg.Exclude)
	return &Table{cfg: cfg, spaces: map[uint64]*space{}}
}

// Configure changes the configuration. When it changes what is left out, the connections that are left out
// from now on are forgotten without a row, and those that are not any more are reported from the
// next dump on, without what was before.
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

// Open begins to follow a network namespace. With adopt, the connections that its first dump
// shows may be old, and what they did before is not counted; without, none is older than since.
func (t *Table) Open(since time.Time, namespace uint64, adopt bool) {
	t.spaces[namespace] = &space{
		inode:     namespace,
		conns:     map[uint64]*conn{},
		listeners: map[netip.AddrPort]openPort{},
		known:     since.UnixNano(),
		adopt:     adopt,
	}
}

// Forget stops following a network namespace, without a word about its connections: they go on.
func (t *Table) Forget(namespace uint64) {
	if sp := t.spaces[namespace]; sp != nil {
		t.size -= len(sp.conns)
		delete(t.spaces, namespace)
	}
}

// Close ends a network namespace: all its connections are over.
func (t *Table) Close(now time.Time, namespace uint64) {
	sp := t.spaces[namespace]
	if sp == nil {
		return
	}
	t.decide(sp)
	for cookie, c := range sp.conns {
		if !c.dead {
			t.finish(sp, c, now.UnixNano(), guessEnd(c))
		}
		t.remove(sp, cookie)
	}
	delete(t.spaces, namespace)
}

// BeginDump says that what Observe is given from now on is of a dump that began at this moment.
func (t *Table) BeginDump(now time.Time, namespace uint64) {
	if sp := t.spaces[namespace]; sp != nil {
		sp.generation++
		sp.began = now.UnixNano()
	}
}

// Observe takes a socket of a dump, a listening one too. What was destroyed while the dump went on
// is given to Destroyed after the last Observe, never between. It does not keep s.
func (t *Table) Observe(now time.Time, namespace uint64, s *Socket) {
	sp := t.spaces[namespace]
	if sp == nil {
		return
	}
	at := now.UnixNano()
	local, peer := unmap(s.Local), unmap(s.Peer)
	if s.State == StateListen {
		sp.listeners[local] = openPort{at, s.Inode}
		return
	}
	if peer.Port() == 0 || s.State == StateTimeWait || s.State == StateSynReceived || s.State == StateClose {
		return
	}
	c := sp.conns[s.Cookie]
	if c != nil && c.other(s, local, peer) {
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
		c = &conn{cookie: s.Cookie, local: local, peer: peer, reported: sp.known, minRTT: UnknownRTT}
		if sp.adopt {
			c.base, c.reported = countersOf(s), at
			c.counted = s.established()
			c.counters = c.base
		}
		sp.conns[s.Cookie] = c
		t.size++
		sp.remember(local, peer)
	}
	c.generation, c.misses, c.dead, c.seen = sp.generation, 0, false, at
	c.cgroup, c.uid = s.Cgroup, s.UID
	if s.Inode != 0 { // while it is closed slowly it is no process's any more
		c.inode = s.Inode
	}
	c.take(s)
	if c.role == RoleUnknown {
		c.role = s.role()
	}
}

// EndDump says that the dump is over. Everything that was destroyed before the dump began must have
// been given to Destroyed by now. Living connections are reported that are due; those that the dump and the one
// before it missed have ended. A dump that is not complete says nothing of what
// it did not show.
func (t *Table) EndDump(now time.Time, namespace uint64, complete bool) {
	sp := t.spaces[namespace]
	if sp == nil {
		return
	}
	at := now.UnixNano()
	memory := int64(deadMemory)
	if t.size > t.cfg.maxConnections()*3/4 {
		memory = 0 // the living need the room
	}
	t.decide(sp)
	for cookie, c := range sp.conns {
		switch {
		case c.generation == sp.generation:
			if at-c.reported >= int64(t.cfg.ReportInterval) && len(t.rows) < t.cfg.maxRows() {
				t.report(sp, c, at)
			}
		case c.dead:
			if complete && at-c.reported >= memory {
				sp.forgot = max(sp.forgot, c.reported)
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
		sp.known, sp.adopt, sp.overrun = sp.began, false, false
	}
}

// Undecided reports whether connections of the namespace wait for a look at its
// listening ports: a dump of these alone is due, followed by Decide.
func (t *Table) Undecided(namespace uint64) bool {
	sp := t.spaces[namespace]
	return sp != nil && len(sp.undecided) > 0
}

// Decide says that Observe was given all listening sockets of the namespace.
func (t *Table) Decide(namespace uint64) {
	if sp := t.spaces[namespace]; sp != nil {
		t.decide(sp)
	}
}

// Overrun says that last words were lost. What the next dump misses has ended.
func (t *Table) Overrun(namespace uint64) {
	if sp := t.spaces[namespace]; sp != nil {
		sp.overrun = true
	}
}

// Destroyed takes the last words of a socket. It does not keep s.
func (t *Table) Destroyed(now time.Time, namespace uint64, s *Socket) {
	sp := t.spaces[namespace]
	if sp == nil {
		return
	}
	at := now.UnixNano()
	local, peer := unmap(s.Local), unmap(s.Peer)
	c := sp.conns[s.Cookie]
	if c != nil && !s.disconnected() && c.other(s, local, peer) {
		// The socket was connected anew since, and ended before a dump showed it.
		if !c.dead {
			t.finish(sp, c, at, guessEnd(c))
		}
		t.remove(sp, s.Cookie)
		t.destroyedUnknown(sp, s, local, peer, c.seen, max(at, c.reported+1))
		return
	}
	if c == nil {
		t.destroyedUnknown(sp, s, local, peer, sp.known, at)
		return
	}
	if s.disconnected() {
		c.established = c.established || s.established()
		c.counters.Retransmits = max(c.counters.Retransmits, countersOf(s).Retransmits)
	} else {
		c.take(s)
		if r := s.role(); r != RoleUnknown && c.role == RoleUnknown {
			c.role = r
		}
	}
	end := EndConnectFailed
	if c.established {
		end = s.end(sp.roleOf(c.role, c.local))
		if end == EndConnectFailed {
			end = EndReset // the socket was cleared of what it knew
		}
	}
	t.finish(sp, c, at, end)
	t.remove(sp, s.Cookie)
}

// destroyedUnknown takes the last words of a connection that no dump has shown.
func (t *Table) destroyedUnknown(sp *space, s *Socket, local, peer netip.AddrPort, start, at int64) {
	if peer.Port() == 0 && (peer.Addr().IsUnspecified() || !peer.IsValid()) {
		return // it listened, or was never used
	}
	if local.Addr().IsUnspecified() {
		local = netip.AddrPortFrom(sp.localFor(peer.Addr()), local.Port())
	}
	if t.cfg.excludes(local, peer) {
		return
	}
	if sp.adopt {
		// It may have begun long ago; the dump that would have shown its counters by
		// then did not come in time.
		t.stats.Unclear++
		return
	}
	if sp.forgot != 0 && s.established() && at-int64(s.idle()) <= sp.forgot {
		t.stats.Unclear++
		return
	}
	if _, open := sp.listener(local); s.established() && s.role() == RoleUnknown && !open {
		if len(sp.undecided) >= maxUndecided {
			t.decide(sp)
		}
		sp.undecided = append(sp.undecided, undecided{socket: *s, now: at, start: start})
		return
	}
	t.whole(sp, s, start, at)
}

// decide reports the undecided connections by the listening ports as they are known now.
func (t *Table) decide(sp *space) {
	for i := range sp.undecided {
		u := &sp.undecided[i]
		t.whole(sp, &u.socket, u.start, u.now)
	}
	sp.undecided = sp.undecided[:0]
	if cap(sp.undecided) > maxUndecided/4 {
		sp.undecided = nil
	}
}

// whole reports a connection in one row, from its last words.
func (t *Table) whole(sp *space, s *Socket, start, at int64) {
	c := conn{
		cookie: s.Cookie, local: unmap(s.Local), peer: unmap(s.Peer), cgroup: s.Cgroup, uid: s.UID,
		reported: start, minRTT: UnknownRTT, role: s.role(),
	}
	if c.local.Addr().IsUnspecified() {
		c.local = netip.AddrPortFrom(sp.localFor(c.peer.Addr()), c.local.Port())
	}
	c.take(s)
	t.finish(sp, &c, at, s.end(sp.roleOf(c.role, c.local)))
}

// Flush reports all living connections of the namespace that did anything since they were reported last, as the last
// dump showed them. It is for who stops looking: who looks again adopts them.
func (t *Table) Flush(now time.Time, namespace uint64) {
	sp := t.spaces[namespace]
	if sp == nil {
		return
	}
	t.decide(sp)
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

// ClockSet says that the clock behind the times that are passed was set forward by this much, or back.
func (t *Table) ClockSet(by time.Duration) {
	for _, sp := range t.spaces {
		sp.began += int64(by)
		sp.known += int64(by)
		if sp.forgot != 0 {
			sp.forgot += int64(by)
		}
		for _, c := range sp.conns {
			c.seen += int64(by)
			c.reported += int64(by)
		}
		for l, socket := range sp.listeners {
			socket.seen += int64(by)
			sp.listeners[l] = socket
		}
		for i := range sp.undecided {
			sp.undecided[i].now += int64(by)
			sp.undecided[i].start += int64(by)
		}
	}
}

// Take appends the rows that are ready to dst and forgets them.
func (t *Table) Take(dst []Row) []Row {
	dst = append(dst, t.rows...)
	if cap(t.rows) > defaultMaxRows/4 {
		t.rows = nil
	}
	t.rows = t.rows[:0]
	return dst
}

// Waiting is how many rows Take would give.
func (t *Table) Waiting() int { return len(t.rows) }

// Stats returns what became of things that are not in rows.
func (t *Table) Stats() Stats {
	s := t.stats
	s.Connections = t.size
	return s
}

func (t *Table) remove(sp *space, cookie uint64) {
	delete(sp.conns, cookie)
	t.size--
}

// report gives a row of a living connection.
func (t *Table) report(sp *space, c *conn, at int64) {
	t.rows = append(t.rows, c.row(sp, at))
}

// finish gives the last row of a connection; when one was given before and nothing happened since, none.
func (t *Table) finish(sp *space, c *conn, at int64, end End) {
	again := c.dead
	if again {
		if end == EndConnectFailed {
			return // as was reported
		}
		at = c.reported
	}
	if c.failed {
		end = EndUnknown // it was counted
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

// row is what the connection did since its last row.
func (c *conn) row(sp *space, at int64) Row {
	row := Row{
		// No two rows of a socket end at the same moment: by it they are told from copies of each other.
		Start: c.reported, End: max(at, c.reported+1),
		Namespace: sp.inode, Cookie: c.cookie, Cgroup: c.cgroup, UID: c.uid, Inode: c.inode,
		// What is guessed here is not kept: the next dump may know it.
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

// take has the numbers of the connection follow those of its socket.
func (c *conn) take(s *Socket) {
	c.counters = c.counters.advance(countersOf(s))
	c.acked = max(c.acked, s.Info.BytesAcked)
	c.established = c.established || s.established()
	if s.Info.RTT != 0 {
		c.rtt = s.Info.RTT
	}
	if s.Info.MinRTT != UnknownRTT {
		c.minRTT = s.Info.MinRTT
	}
}

// other reports whether s, of the same cookie, is another connection than c: the application
// has connected the socket anew.
func (c *conn) other(s *Socket, local, peer netip.AddrPort) bool {
	if peer != c.peer || local.Port() != c.local.Port() {
		return true
	}
	if c.established && !s.established() {
		return true
	}
	return s.Info.BytesReceived < c.counters.BytesReceived || s.Info.BytesAcked < c.acked
}

// guessEnd is the end of a connection whose last words were not heard.
func guessEnd(c *conn) End {
	if !c.established {
		return EndConnectFailed
	}
	return EndUnknown
}

// idle is how long ago, in nanoseconds, the connection showed life for the last time.
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

// roleOf is the role that is known, or else the one that the listening ports say.
func (sp *space) roleOf(role Role, local netip.AddrPort) Role {
	if role != RoleUnknown {
		return role
	}
	if _, ok := sp.listener(local); ok {
		return RoleServer
	}
	return RoleClient
}

// listener returns who listens, or did lately, where local is.
func (sp *space) listener(local netip.AddrPort) (socket openPort, ok bool) {
	port := local.Port()
	for _, l := range [...]netip.AddrPort{local, netip.AddrPortFrom(netip.IPv6Unspecified(), port), netip.AddrPortFrom(netip.IPv4Unspecified(), port)} {
		if socket, ok = sp.listeners[l]; ok {
			return socket, true
		}
	}
	return openPort{}, false
}

// remember keeps the address from which the namespace speaks to others.
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

// localFor is the address from which the namespace speaks to peer, unspecified when that is not certain.
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
