package flow

import (
	stdcmp "cmp"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const ns = 7

var t0 = time.Unix(1_700_000_000, 0)

func at(seconds int) time.Time { return t0.Add(time.Duration(seconds) * time.Second) }

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// living returns the established socket of a client after it sent some payload.
func living(cookie, sent uint64) Socket {
	return Socket{
		Cookie: cookie, State: StateEstablished, Local: ap("10.0.0.1:40000"), Peer: ap("10.0.0.2:80"),
		Info: Info{
			RTT: 100, MinRTT: 50, BytesSent: sent, SegmentsSent: uint32(sent / 100), BytesAcked: sent + 1,
			BytesReceived: sent / 2, SegmentsReceived: 1, Delivered: 1,
		},
	}
}

// closed returns the same socket after both ends closed.
func closed(s Socket) Socket {
	s.State = StateClose
	s.Info.BytesAcked++
	return s
}

// connecting returns a socket that waits for the peer's answer to its SYN.
func connecting(cookie uint64) Socket {
	return Socket{
		Cookie: cookie, State: StateSynSent, Local: ap("10.0.0.1:40001"), Peer: ap("10.0.0.9:80"), SendQueue: 1,
		Info: Info{MinRTT: UnknownRTT, Unanswered: 1, Retransmits: 1},
	}
}

// cleared returns the destroy notification of a socket whose blocking connect
// failed, or that was closed with SO_LINGER 0.
func cleared(s Socket) Socket {
	minRTT := s.Info.MinRTT
	unanswered := s.Info.Unanswered
	s.State = StateClose
	s.Local = netip.AddrPortFrom(netip.IPv4Unspecified(), s.Local.Port())
	s.Peer = netip.AddrPortFrom(s.Peer.Addr(), 0)
	s.Info = Info{MinRTT: minRTT, Unanswered: unanswered}
	s.SendQueue = 65538
	return s
}

// A row has the inode of its socket while a process holds it. For a server's
// connection that no dump showed, it has the inode of the listening socket.
func TestInodes(t *testing.T) {
	table := opened(Config{})
	port := listener("10.0.0.1:80")
	port.Inode = 9
	kept := living(2, 100)
	kept.Inode = 5
	dump(table, 1, port, kept)
	kept.Inode = 0 // its process closed it
	dump(table, 2, port, kept)
	table.Destroyed(at(3), ns, new(closed(kept)))
	short := closed(living(3, 100))
	short.Local = ap("10.0.0.1:80")
	short.Info.BytesAcked-- // no SYN of its own
	table.Destroyed(at(3), ns, &short)
	table.Destroyed(at(3), ns, new(closed(living(4, 100))))
	dump(table, 4, port)
	got := map[uint64]uint32{}
	for _, row := range table.Take(nil) {
		got[row.Cookie] = row.Inode
	}
	if diff := cmp.Diff(map[uint64]uint32{2: 5, 3: 9, 4: 0}, got); diff != "" {
		t.Error(diff)
	}
}

func listener(addr string) Socket {
	return Socket{Cookie: 1, State: StateListen, Local: ap(addr), Peer: netip.AddrPortFrom(netip.IPv6Unspecified(), 0)}
}

// opened returns a table that tracks a namespace which was empty at second 0.
func opened(cfg Config) *Table {
	if cfg.ReportInterval == 0 {
		cfg.ReportInterval = time.Minute
	}
	t := New(cfg)
	t.Open(at(0), ns, false)
	dump(t, 0)
	return t
}

func dump(t *Table, second int, sockets ...Socket) {
	t.BeginDump(at(second), ns)
	for i := range sockets {
		t.Observe(at(second), ns, &sockets[i])
	}
	t.EndDump(at(second), ns, true)
}

func destroy(t *Table, second int, s Socket) { t.Destroyed(at(second), ns, &s) }

// short holds the fields of a row that these tests compare.
type short struct {
	From, To                                 int
	Local, Peer                              string
	Role                                     Role
	Closed                                   bool
	Reason                                   End
	Connections, Failures, Resets, Timeouts_ uint32
	Sent, Received, Retransmits              uint64
}

func rows(t *Table) []short {
	var out []short
	for _, r := range t.Take(nil) {
		out = append(out, short{
			From: int((r.Start - t0.UnixNano()) / 1e9), To: int((r.End - t0.UnixNano()) / 1e9),
			Local: r.Local.String(), Peer: r.Peer.String(), Role: r.Role, Closed: r.Closed, Reason: r.Reason,
			Connections: r.Connections, Failures: r.ConnectFailures, Resets: r.Resets, Timeouts_: r.Timeouts,
			Sent: r.BytesSent, Received: r.BytesReceived, Retransmits: r.Retransmits,
		})
	}
	slices.SortStableFunc(out, func(a, b short) int { return stdcmp.Compare(a.Connections, b.Connections) })
	return out
}

func want(t *testing.T, tab *Table, wanted ...short) {
	t.Helper()
	if diff := cmp.Diff(wanted, rows(tab)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

const (
	cl = "10.0.0.1:40000"
	sv = "10.0.0.2:80"
)

func TestShortConnectionIsOneRow(t *testing.T) {
	tab := opened(Config{})
	dump(tab, 10)
	destroy(tab, 12, closed(living(5, 1000)))
	want(t, tab, short{From: 10, To: 12, Local: cl, Peer: sv, Role: RoleClient, Closed: true, Reason: EndOrderly, Connections: 1, Sent: 1000, Received: 500})
	destroy(tab, 13, Socket{Cookie: 6, State: StateClose, Local: ap("0.0.0.0:0"), Peer: ap("0.0.0.0:0"), Info: Info{MinRTT: UnknownRTT}})
	dump(tab, 20)
	dump(tab, 30)
	want(t, tab)
}

func TestLivingConnectionIsReportedEachInterval(t *testing.T) {
	tab := opened(Config{ReportInterval: 20 * time.Second})
	dump(tab, 10, living(5, 1000))
	want(t, tab)
	dump(tab, 20, living(5, 2000))
	want(t, tab, short{To: 20, Local: cl, Peer: sv, Role: RoleClient, Connections: 1, Sent: 2000, Received: 1000})
	dump(tab, 30, living(5, 3000))
	want(t, tab)
	dump(tab, 40, living(5, 4000))
	want(t, tab, short{From: 20, To: 40, Local: cl, Peer: sv, Role: RoleClient, Sent: 2000, Received: 1000})
	destroy(tab, 41, closed(living(5, 4100)))
	want(t, tab, short{From: 40, To: 41, Local: cl, Peer: sv, Role: RoleClient, Closed: true, Reason: EndOrderly, Sent: 100, Received: 50})
}

func TestActivityBeforeFirstDumpIsNotCounted(t *testing.T) {
	tab := New(Config{ReportInterval: 20 * time.Second})
	tab.Open(at(0), ns, true)
	destroy(tab, 0, closed(living(4, 9000))) // its beginning is unknown
	dump(tab, 1, living(5, 1000))
	dump(tab, 11, living(5, 1500), living(6, 300))
	dump(tab, 21, living(5, 2000), living(6, 300))
	want(t, tab,
		short{From: 1, To: 21, Local: cl, Peer: sv, Role: RoleClient, Sent: 1000, Received: 500},
		short{From: 1, To: 21, Local: cl, Peer: sv, Role: RoleClient, Connections: 1, Sent: 300, Received: 150})
	if got := tab.Stats().Unclear; got != 1 {
		t.Errorf("unclear = %d, want 1", got)
	}
}

func TestRoles(t *testing.T) {
	server := func(state State) Socket { // the kernel does not count its SYN-ACK as acknowledged
		s := living(5, 1000)
		s.Local, s.Peer = s.Peer, s.Local
		s.State, s.Info.BytesAcked = state, 1000
		return s
	}
	serverClosed := server(StateClose)
	serverClosed.Info.BytesAcked++
	clientReset := living(5, 1000)
	clientReset.State = StateClose
	mapped := serverClosed
	mapped.Local = netip.AddrPortFrom(netip.AddrFrom16(mapped.Local.Addr().As16()), 80)
	mapped.Peer = netip.AddrPortFrom(netip.AddrFrom16(mapped.Peer.Addr().As16()), 40000)

	for name, tc := range map[string]struct {
		listen []Socket
		last   Socket
		role   Role
		reason End
	}{
		"client, orderly":                           {nil, closed(living(5, 1000)), RoleClient, EndOrderly},
		"client, orderly, port now listened on":     {[]Socket{listener("0.0.0.0:40000")}, closed(living(5, 1000)), RoleClient, EndOrderly},
		"client, reset":                             {nil, clientReset, RoleClient, EndReset},
		"server, orderly":                           {[]Socket{listener("0.0.0.0:80")}, serverClosed, RoleServer, EndOrderly},
		"server, listening on its address":          {[]Socket{listener("10.0.0.2:80")}, serverClosed, RoleServer, EndOrderly},
		"server, listening on IPv6 for both":        {[]Socket{listener("[::]:80")}, mapped, RoleServer, EndOrderly},
		"server, reset, by its counters":            {nil, server(StateClose), RoleServer, EndReset},
		"the port is listened on elsewhere":         {[]Socket{listener("10.0.0.3:80")}, serverClosed, RoleClient, EndReset},
		"server, nothing sent, orderly":             {[]Socket{listener("[::]:80")}, Socket{Cookie: 5, State: StateClose, Local: ap(sv), Peer: ap(cl), Info: Info{MinRTT: 9, BytesAcked: 1, BytesReceived: 1, Delivered: 2}}, RoleServer, EndOrderly},
		"client, nothing sent, orderly":             {nil, Socket{Cookie: 5, State: StateClose, Local: ap(cl), Peer: ap(sv), Info: Info{MinRTT: 9, BytesAcked: 2, BytesReceived: 1, Delivered: 2}}, RoleClient, EndOrderly},
		"client, cut off with data unacknowledged":  {nil, Socket{Cookie: 5, State: StateClose, Local: ap(cl), Peer: ap(sv), SendQueue: 4, Info: Info{MinRTT: 9, BytesAcked: 10, BytesSent: 13, SegmentsSent: 2, Delivered: 2}}, RoleClient, EndReset},
		"client, retransmissions without an answer": {nil, Socket{Cookie: 5, State: StateClose, Local: ap(cl), Peer: ap(sv), SendQueue: 4, Info: Info{MinRTT: 9, BytesAcked: 10, BytesSent: 29, BytesRetransmitted: 16, SegmentsSent: 6, Unanswered: 3, Delivered: 2}}, RoleClient, EndTimedOut},
		"client, keepalives without an answer":      {nil, Socket{Cookie: 5, State: StateClose, Local: ap(cl), Peer: ap(sv), Info: Info{MinRTT: 9, BytesAcked: 1, Probes: 2, Delivered: 1}}, RoleClient, EndTimedOut},
	} {
		t.Run(name, func(t *testing.T) {
			tab := opened(Config{})
			destroy(tab, 5, tc.last)
			if tab.Unresolved(ns) {
				for i := range tc.listen { // it started listening after the last dump
					tab.Observe(at(6), ns, &tc.listen[i])
				}
				tab.ResolveRoles(ns)
			}
			got := rows(tab)
			if len(got) != 1 || got[0].Role != tc.role || got[0].Reason != tc.reason {
				t.Fatalf("got %+v, want one row of role %d and end %d", got, tc.role, tc.reason)
			}
			if got[0].Local[:3] == "[::" {
				t.Errorf("address %s is still mapped", got[0].Local)
			}
		})
	}
}

func TestFailedConnects(t *testing.T) {
	failed := func(local, peer string, from, to int, retransmits uint64) short {
		return short{From: from, To: to, Local: local, Peer: peer, Role: RoleClient, Closed: true, Reason: EndConnectFailed, Failures: 1, Retransmits: retransmits}
	}
	t.Run("known by its destroy notification only", func(t *testing.T) {
		tab := opened(Config{})
		s := connecting(5)
		s.State = StateClose
		destroy(tab, 5, s)
		want(t, tab, failed("10.0.0.1:40001", "10.0.0.9:80", 0, 5, 1))
	})
	t.Run("seen in a dump, then cleared", func(t *testing.T) {
		tab := opened(Config{})
		dump(tab, 10, connecting(5))
		s := connecting(5)
		s.Info.Unanswered = 6
		destroy(tab, 15, cleared(s))
		want(t, tab, failed("10.0.0.1:40001", "10.0.0.9:80", 0, 15, 6))
	})
	t.Run("never seen and cleared", func(t *testing.T) {
		tab := opened(Config{})
		dump(tab, 10, living(4, 100))
		destroy(tab, 15, cleared(connecting(5)))
		want(t, tab, failed("10.0.0.1:40001", "10.0.0.9:0", 10, 15, 1))
	})
	t.Run("cleared, where the namespace has several addresses", func(t *testing.T) {
		tab := opened(Config{})
		other := living(3, 100)
		other.Local = ap("10.1.0.1:40000")
		dump(tab, 10, living(4, 100), other)
		destroy(tab, 15, cleared(connecting(5)))
		want(t, tab, failed("0.0.0.0:40001", "10.0.0.9:0", 10, 15, 1))
	})
	t.Run("destroy notification lost", func(t *testing.T) {
		tab := opened(Config{})
		dump(tab, 10, connecting(5))
		tab.Overrun(ns)
		dump(tab, 20)
		want(t, tab, failed("10.0.0.1:40001", "10.0.0.9:80", 0, 20, 1))
		destroy(tab, 21, cleared(connecting(5))) // it was only late
		want(t, tab)
	})
	t.Run("same socket connected again", func(t *testing.T) {
		tab := opened(Config{})
		dump(tab, 10, connecting(5))
		s := living(5, 100)
		dump(tab, 20, s)
		want(t, tab, failed("10.0.0.1:40001", "10.0.0.9:80", 0, 20, 1))
		destroy(tab, 21, closed(s))
		want(t, tab, short{From: 10, To: 21, Local: cl, Peer: sv, Role: RoleClient, Closed: true, Reason: EndOrderly, Connections: 1, Sent: 100, Received: 50})
	})
}

// The client's own process aborted the connection: it gave up, which is no
// reset by the peer or the network.
func TestResetByLingerKeepsDumpedCounters(t *testing.T) {
	tab := opened(Config{})
	dump(tab, 10, living(5, 1000))
	destroy(tab, 12, cleared(living(5, 1000)))
	want(t, tab, short{To: 12, Local: cl, Peer: sv, Role: RoleClient, Closed: true, Reason: EndReset, Connections: 1, Sent: 1000, Received: 500})
	destroy(tab, 13, cleared(living(6, 1000)))
	tab.ResolveRoles(ns)
	want(t, tab, short{From: 10, To: 13, Local: cl, Peer: "10.0.0.2:0", Role: RoleClient, Closed: true, Reason: EndReset, Connections: 1})
}

func TestNextDumpClosesAfterLostNotification(t *testing.T) {
	tab := opened(Config{})
	dump(tab, 10, living(5, 1000), living(6, 500))
	tab.Overrun(ns)
	dump(tab, 20, living(6, 500))
	want(t, tab, short{To: 20, Local: cl, Peer: sv, Role: RoleClient, Closed: true, Connections: 1, Sent: 1000, Received: 500})
	dump(tab, 30, living(6, 500))
	dump(tab, 40, living(6, 500))
	want(t, tab)
}

// An application may hold the descriptor of a connection that ended: no dump
// shows it, and the destroy notification comes when the descriptor is closed.
func TestDescriptorHeldAfterTheEnd(t *testing.T) {
	tab := opened(Config{})
	dump(tab, 10, living(5, 1000))
	dump(tab, 20)
	want(t, tab)
	dump(tab, 30)
	want(t, tab, short{To: 30, Local: cl, Peer: sv, Role: RoleClient, Closed: true, Connections: 1, Sent: 1000, Received: 500})
	last := living(5, 1200)
	last.State = StateClose
	destroy(tab, 600, last)
	want(t, tab, short{From: 30, To: 30, Local: cl, Peer: sv, Role: RoleClient, Closed: true, Reason: EndReset, Resets: 1, Sent: 200, Received: 100})
	if got := tab.Stats().Connections; got != 0 {
		t.Errorf("%d connections remembered, want none", got)
	}
}

func TestLateNotificationOfForgottenConnection(t *testing.T) {
	tab := opened(Config{})
	dump(tab, 10, living(5, 1000))
	dump(tab, 20)
	dump(tab, 30)
	dump(tab, 3700)
	rows(tab)
	last := closed(living(5, 1000))
	last.Info.LastAck, last.Info.LastReceived, last.Info.LastSent = 3_690_000, 3_690_000, 3_690_000
	destroy(tab, 3705, last)
	want(t, tab)
	if got := tab.Stats(); got != (Stats{Unclear: 1}) {
		t.Errorf("stats = %+v", got)
	}
}

func TestExclusions(t *testing.T) {
	loop := living(5, 100)
	loop.Local, loop.Peer = ap("[::1]:40000"), ap("[::1]:80")
	for name, tc := range map[string]struct {
		cfg  Config
		s    Socket
		rows int
	}{
		"nothing":               {Config{}, living(5, 100), 1},
		"peer's network":        {Config{Exclude: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")}}, living(5, 100), 0},
		"own network":           {Config{Exclude: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}}, living(5, 100), 0},
		"network, v4-mapped":    {Config{Exclude: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}}, living(5, 100), 0},
		"another network":       {Config{Exclude: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}}, living(5, 100), 1},
		"port":                  {Config{ExcludePorts: []PortRange{{80, 80}}}, living(5, 100), 0},
		"ports around it":       {Config{ExcludePorts: []PortRange{{1, 79}, {81, 90}}}, living(5, 100), 1},
		"loopback not excluded": {Config{}, loop, 1},
		"loopback":              {Config{ExcludeLoopback: true}, loop, 0},
	} {
		t.Run(name, func(t *testing.T) {
			tab := opened(tc.cfg)
			dump(tab, 10, tc.s)
			destroy(tab, 11, closed(tc.s))
			s := tc.s
			s.Cookie++
			destroy(tab, 11, closed(s))
			tab.ResolveRoles(ns)
			if got := rows(tab); len(got) != 2*tc.rows {
				t.Errorf("got %+v, want %d rows", got, 2*tc.rows)
			}
		})
	}
}

// A cleared socket has lost its own address, which must be excluded all the
// same.
func TestExclusionOfForgottenAddress(t *testing.T) {
	tab := opened(Config{Exclude: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}, ReportInterval: time.Hour})
	other := living(5, 100)
	tab.Configure(Config{ReportInterval: time.Hour})
	dump(tab, 10, other)
	tab.Configure(Config{Exclude: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}, ReportInterval: time.Hour})
	dump(tab, 20, other)
	destroy(tab, 22, cleared(connecting(6)))
	want(t, tab)
}

func TestConfigureExclusions(t *testing.T) {
	tab := opened(Config{})
	dump(tab, 10, living(5, 1000))
	tab.Configure(Config{ReportInterval: time.Minute, ExcludePorts: []PortRange{{80, 80}}})
	dump(tab, 20, living(5, 2000))
	tab.Configure(Config{ReportInterval: time.Minute})
	destroy(tab, 21, closed(living(6, 700)))
	dump(tab, 30, living(5, 3000))
	destroy(tab, 31, closed(living(5, 3100)))
	want(t, tab, short{From: 30, To: 31, Local: cl, Peer: sv, Role: RoleClient, Closed: true, Reason: EndOrderly, Sent: 100, Received: 50})
}

func TestBounds(t *testing.T) {
	tab := opened(Config{MaxConnections: 2, MaxRows: 2})
	dump(tab, 10, living(5, 100), living(6, 100), living(7, 100))
	for cookie := uint64(5); cookie <= 7; cookie++ {
		destroy(tab, 11, closed(living(cookie, 100)))
	}
	if got := rows(tab); len(got) != 2 {
		t.Errorf("%d rows, want 2", len(got))
	}
	if got := tab.Stats(); got != (Stats{Untracked: 1, Dropped: 1}) {
		t.Errorf("stats = %+v", got)
	}
}

func TestClosedNamespaceEndsItsConnections(t *testing.T) {
	tab := opened(Config{})
	dump(tab, 10, living(5, 1000))
	tab.Close(at(12), ns)
	want(t, tab, short{To: 12, Local: cl, Peer: sv, Role: RoleClient, Closed: true, Connections: 1, Sent: 1000, Received: 500})
	destroy(tab, 13, closed(living(6, 1000)))
	dump(tab, 13, living(7, 1000))
	tab.Close(at(14), ns)
	want(t, tab)
}

// The kernel counts segments in 32 bits.
func TestCountersBeyond32Bits(t *testing.T) {
	tab := opened(Config{ReportInterval: time.Second})
	s := living(5, 1000)
	s.Info.SegmentsSent, s.Info.Retransmits = ^uint32(0)-9, 3
	dump(tab, 10, s)
	s.Info.SegmentsSent, s.Info.Retransmits = 10, 5
	dump(tab, 20, s)
	got := tab.Take(nil)
	if len(got) != 2 || got[1].SegmentsSent != 20 || got[1].Retransmits != 2 {
		t.Errorf("rows %+v", got)
	}
}

// A retransmitted segment that the peer already had is not a loss, whenever the
// peer reports it.
func TestDuplicateSegmentIsNotALoss(t *testing.T) {
	tab := opened(Config{ReportInterval: time.Second})
	s := living(5, 1000)
	var got []uint64
	for i, now := range []Info{{Retransmits: 3, Duplicates: 3}, {Retransmits: 5, Duplicates: 3}, {Retransmits: 5, Duplicates: 4}, {Retransmits: 6, Duplicates: 4}, {Retransmits: 7, Duplicates: 4}} {
		s.Info.Retransmits, s.Info.Duplicates = now.Retransmits, now.Duplicates
		s.Info.SegmentsSent += 10
		dump(tab, 10*(i+1), s)
		for _, r := range tab.Take(nil) {
			got = append(got, r.Retransmits)
		}
	}
	if diff := cmp.Diff([]uint64{0, 2, 0, 0, 1}, got); diff != "" {
		t.Errorf("retransmits of each row (-want +got):\n%s", diff)
	}
}

func TestFlushReportsPendingActivity(t *testing.T) {
	tab := opened(Config{})
	dump(tab, 10, living(5, 1000))
	tab.Flush(at(12), ns)
	want(t, tab, short{To: 10, Local: cl, Peer: sv, Role: RoleClient, Connections: 1, Sent: 1000, Received: 500})
	tab.Flush(at(13), ns)
	want(t, tab)
}

func TestClockSteppedBack(t *testing.T) {
	tab := opened(Config{ReportInterval: 20 * time.Second})
	dump(tab, 3610, living(5, 1000))
	rows(tab)
	tab.ClockStepped(-time.Hour)
	dump(tab, 20, living(5, 1500))
	want(t, tab)
	dump(tab, 30, living(5, 2000))
	want(t, tab, short{From: 10, To: 30, Local: cl, Peer: sv, Role: RoleClient, Sent: 1000, Received: 500})
}

// The listening socket of this server's connection was closed, and every dump
// but one finds unacknowledged bytes. The role guessed earlier must not
// override what the counters show then, and the orderly end must not count as a
// reset.
func TestGuessedRoleIsNotKept(t *testing.T) {
	tab := opened(Config{ReportInterval: 10 * time.Second})
	s := living(5, 1000)
	s.Local, s.Peer = s.Peer, s.Local
	s.Info.BytesAcked, s.SendQueue = 900, 100
	dump(tab, 10, s)
	want(t, tab, short{To: 10, Local: sv, Peer: cl, Role: RoleClient, Connections: 1, Sent: 1000, Received: 500})
	s.Info.BytesAcked, s.SendQueue = 1000, 0
	dump(tab, 20, s)
	want(t, tab, short{From: 10, To: 20, Local: sv, Peer: cl, Role: RoleServer})
	s.State, s.Info.BytesAcked = StateClose, 1001
	destroy(tab, 25, s)
	want(t, tab, short{From: 20, To: 25, Local: sv, Peer: cl, Role: RoleServer, Closed: true, Reason: EndOrderly})
}

// End distinguishes the rows of a socket. The row of a late destroy
// notification must therefore end at another moment than the row that closed
// the connection, and so must the rows of two connections made with one socket.
func TestNoTwoRowsOfASocketEndTogether(t *testing.T) {
	ends := func(t *testing.T, tab *Table) {
		t.Helper()
		seen := map[int64]bool{}
		n := 0
		for _, r := range tab.Take(nil) {
			seen[r.End] = true
			n++
		}
		if n != 2 || len(seen) != 2 {
			t.Errorf("%d rows with %d ends", n, len(seen))
		}
	}
	t.Run("closed before its destroy notification", func(t *testing.T) {
		tab := opened(Config{})
		dump(tab, 10, living(5, 1000))
		dump(tab, 20)
		dump(tab, 30)
		destroy(tab, 600, closed(living(5, 1200)))
		ends(t, tab)
	})
	t.Run("connected again", func(t *testing.T) {
		tab := opened(Config{})
		dump(tab, 10, living(5, 1000))
		again := closed(living(5, 300))
		again.Local = ap("10.0.0.1:40009")
		destroy(tab, 15, again)
		ends(t, tab)
	})
	t.Run("the clock stood still", func(t *testing.T) {
		tab := opened(Config{ReportInterval: time.Second})
		dump(tab, 10, living(5, 1000))
		destroy(tab, 10, closed(living(5, 1200)))
		ends(t, tab)
	})
}

// A connection pool keeps its end open after the peer closed. The kernel then
// lists the peer's end as FIN-WAIT-2 without tcp_info, under the cookie of the
// socket that it destroyed. It is not a new connection.
func TestMiniSocketIsNoConnection(t *testing.T) {
	tab := opened(Config{})
	s := living(5, 1000)
	dump(tab, 10, s)
	destroy(tab, 15, closed(s))
	mini := Socket{Cookie: 5, State: StateFinWait2, Local: s.Local, Peer: s.Peer, Mini: true, Info: Info{MinRTT: UnknownRTT}}
	unknown := mini
	unknown.Cookie = 6
	for second := 20; second < 80; second += 10 {
		dump(tab, second, mini, unknown)
	}
	dump(tab, 80)
	dump(tab, 90)
	want(t, tab, short{To: 15, Local: cl, Peer: sv, Role: RoleClient, Closed: true, Reason: EndOrderly, Connections: 1, Sent: 1000, Received: 500})
}

// A server closes an idle connection, and the client's pool closes its end a
// minute later. The peer answers with a reset, for which nobody waits.
func TestResetAfterThePeersFIN(t *testing.T) {
	for name, tc := range map[string]struct {
		state State
		want  End
	}{
		"the peer had closed": {StateCloseWait, EndOrderly},
		"both were closing":   {StateLastAck, EndOrderly},
		"at the same time":    {StateClosing, EndOrderly},
		"the peer had not":    {StateFinWait1, EndReset},
	} {
		t.Run(name, func(t *testing.T) {
			tab := opened(Config{})
			s := living(5, 1000)
			dump(tab, 10, s)
			s.State = tc.state
			dump(tab, 20, s)
			s.State, s.SendQueue = StateClose, 1 // the FIN was not acknowledged
			destroy(tab, 70, s)
			resets := uint32(0)
			if tc.want == EndReset {
				resets = 1
			}
			want(t, tab, short{To: 70, Local: cl, Peer: sv, Role: RoleClient, Closed: true, Reason: tc.want, Connections: 1, Resets: resets, Sent: 1000, Received: 500})
		})
	}
}

// A queue of the host dropped segments. The kernel counts them as sent and does
// not count their repetition.
func TestLocalDrops(t *testing.T) {
	tab := opened(Config{})
	s := living(5, 1000)
	s.Info.BytesSent, s.Info.BytesAcked, s.SendQueue = 248_328, 100_001, 60_000
	dump(tab, 10, s)
	s.Info.BytesSent, s.Info.BytesAcked, s.SendQueue, s.State = 248_328, 160_002, 0, StateClose
	destroy(tab, 20, s)
	want(t, tab, short{To: 20, Local: cl, Peer: sv, Role: RoleClient, Closed: true, Connections: 1, Sent: 160_002, Received: 500})
}

// Trouble on a living connection is reported by the dump that shows it, in a
// row of its own: the times before and after are clean.
func TestTroubleIsReportedAtOnce(t *testing.T) {
	lost := func(sent uint64, retransmits uint32) Socket {
		s := living(5, sent)
		s.Info.Retransmits = retransmits
		return s
	}
	row := func(from, to int, sent, retransmits uint64) short {
		return short{From: from, To: to, Local: cl, Peer: sv, Role: RoleClient, Sent: sent, Received: sent / 2, Retransmits: retransmits}
	}
	tab := opened(Config{})
	dump(tab, 10, lost(1000, 0))
	dump(tab, 20, lost(2000, 0))
	want(t, tab)
	dump(tab, 30, lost(3000, 4))
	clean := row(0, 20, 2000, 0)
	clean.Connections = 1
	want(t, tab, row(20, 30, 1000, 4), clean)
	dump(tab, 40, lost(4000, 4))
	dump(tab, 50, lost(5000, 4))
	want(t, tab)
	dump(tab, 60, lost(6000, 5))
	dump(tab, 70, lost(7000, 5))
	want(t, tab, row(30, 50, 2000, 0), row(50, 60, 1000, 1))

	limited := lost(8000, 5)
	limited.Info.Busy, limited.Info.ReceiveWindowLimited = 1_000_000, 900_000
	dump(tab, 80, limited)
	want(t, tab, row(60, 70, 1000, 0), row(70, 80, 1000, 0))
}
