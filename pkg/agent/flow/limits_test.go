package flow

import (
	"testing"
	"time"
)

// cutOff is the destroyed socket of a connection that ended while bytes waited
// for an acknowledgement.
func cutOff(unanswered, probes uint8) *Socket {
	s := living(1, 100)
	s.State, s.SendQueue = StateClose, 10
	s.Info.Unanswered, s.Info.Probes = unanswered, probes
	return &s
}

// One unanswered retransmission or probe may be the one that a reset answered;
// two in a row mean that the peer is gone.
func TestTimedOutAfterTwoUnanswered(t *testing.T) {
	for _, tc := range []struct {
		unanswered, probes uint8
		want               End
	}{
		{0, 0, EndReset},
		{1, 0, EndReset},
		{0, 1, EndReset},
		{1, 1, EndReset},
		{2, 0, EndTimedOut},
		{0, 2, EndTimedOut},
		{2, 2, EndTimedOut},
		{3, 0, EndTimedOut},
	} {
		if got := cutOff(tc.unanswered, tc.probes).outcome(RoleClient).end; got != tc.want {
			t.Errorf("%d unanswered, %d probes: end %d, want %d", tc.unanswered, tc.probes, got, tc.want)
		}
	}
}

// Each of the signs alone, at its smallest, shows that the handshake completed.
func TestSmallestSignsOfAnEstablishedConnection(t *testing.T) {
	for name, info := range map[string]Info{
		"segment delivered":   {MinRTT: UnknownRTT, Delivered: 1},
		"byte acknowledged":   {MinRTT: UnknownRTT, BytesAcked: 1},
		"byte received":       {MinRTT: UnknownRTT, BytesReceived: 1},
		"round trip measured": {MinRTT: UnknownRTT, RTT: 1},
		"minimum measured":    {MinRTT: 0},
	} {
		if s := (Socket{Info: info}); !s.established() {
			t.Errorf("%s: not established", name)
		}
	}
	if s := (Socket{Info: Info{MinRTT: UnknownRTT}}); s.established() {
		t.Error("established without a sign")
	}
}

// The kernel's counters of 32 bits may grow by less than half their range
// between two dumps; a larger step is a step back.
func TestExtendBounds(t *testing.T) {
	const half = 1 << 31
	for _, tc := range []struct{ counter, now, want uint64 }{
		{0, half + 5, half + 5},
		{10, 10, 10},
		{10, 10 + half - 1, 10 + half - 1},
		{10, 10 + half, 10},
		{10, 9, 10},
		{1<<32 - 1, 0, 1 << 32},
	} {
		if got := extend(tc.counter, tc.now); got != tc.want {
			t.Errorf("extend(%d, %d) = %d, want %d", tc.counter, tc.now, got, tc.want)
		}
	}
}

// The idle time counts payload only once there was some.
func TestIdle(t *testing.T) {
	for _, tc := range []struct {
		sent, received uint32
		want           int64 // milliseconds
	}{{0, 0, 30}, {1, 0, 20}, {0, 1, 10}, {1, 1, 10}} {
		s := Socket{Info: Info{SegmentsSent: tc.sent, SegmentsReceived: tc.received, LastAck: 30, LastSent: 20, LastReceived: 10}}
		if got := s.idle(); got.Milliseconds() != tc.want {
			t.Errorf("%d segments sent, %d received: idle for %s, want %dms", tc.sent, tc.received, got, tc.want)
		}
	}
}

// After the last dump that showed a listener, it implies the role for another
// listenerMemory.
func TestListenerMemory(t *testing.T) {
	role := func(after time.Duration) Role {
		table := opened(Config{})
		port := listener("10.0.0.1:80")
		dump(table, 1, port)
		table.BeginDump(at(1).Add(after), ns)
		table.EndDump(at(1).Add(after), ns, true)
		return table.spaces[ns].roleOf(RoleUnknown, ap("10.0.0.1:80"))
	}
	if got := role(listenerMemory); got != RoleServer {
		t.Errorf("at the end of its memory: role %d", got)
	}
	if got := role(listenerMemory + 1); got != RoleClient {
		t.Errorf("after it: role %d", got)
	}
	if listenerMemory != 5*time.Minute || deadMemory != time.Hour {
		t.Errorf("listeners are remembered for %s, dead connections for %s", listenerMemory, deadMemory)
	}
}

// A dead connection is forgotten deadMemory after its last row.
func TestDeadMemory(t *testing.T) {
	remembered := func(after time.Duration) int {
		table := opened(Config{})
		dump(table, 1, living(5, 100))
		dump(table, 2)
		dump(table, 3)
		c := table.spaces[ns].conns[5]
		if c == nil || !c.dead {
			t.Fatal("the connection is not dead after two dumps without it")
		}
		now := time.Unix(0, c.reported).Add(after)
		table.BeginDump(now, ns)
		table.EndDump(now, ns, true)
		return table.Stats().Connections
	}
	if n := remembered(deadMemory - 1); n != 1 {
		t.Errorf("before the end of its memory: %d connections", n)
	}
	if n := remembered(deadMemory); n != 0 {
		t.Errorf("at the end of it: %d connections", n)
	}
}

// Above three quarters of its bound the table forgets dead connections at once.
func TestDeadConnectionsMakeRoom(t *testing.T) {
	remembered := func(n int) int {
		table := opened(Config{MaxConnections: 8})
		all := []Socket{living(99, 100)}
		for i := range n {
			all = append(all, living(uint64(i+1), 100))
		}
		dump(table, 1, all...)
		for second := 2; second < 5; second++ { // missed twice, then checked as dead
			dump(table, second, all[1:]...)
		}
		return table.Stats().Connections
	}
	if n := remembered(5); n != 6 { // 8, including the dead one
		t.Errorf("at three quarters: %d connections, want 6", n)
	}
	if n := remembered(6); n != 6 { // without the dead one
		t.Errorf("above three quarters: %d connections, want 6", n)
	}
}

// At most maxUnresolved connections wait for the listening ports; beyond that,
// the known ports decide.
func TestUnresolvedAreBounded(t *testing.T) {
	table := opened(Config{MaxRows: 4 * maxUnresolved})
	for i := range maxUnresolved {
		s := living(uint64(i+1), 100)
		s.State, s.SendQueue = StateClose, 1
		destroy(table, 1, s)
	}
	if n := table.Pending(); n != 0 {
		t.Fatalf("%d rows before the bound", n)
	}
	s := living(maxUnresolved+1, 100)
	s.State, s.SendQueue = StateClose, 1
	destroy(table, 1, s)
	if n := table.Pending(); n != maxUnresolved {
		t.Errorf("%d rows at the bound, want %d", n, maxUnresolved)
	}
	if maxUnresolved != 8192 {
		t.Errorf("the bound is %d", maxUnresolved)
	}
}

// A tenth of the busy time is trouble; less is not.
func TestTroubledByTheReceiversWindow(t *testing.T) {
	for limited, want := range map[uint64]bool{0: false, 99: false, 100: true, 101: true} {
		c := conn{seen: 1}
		s := Socket{Info: Info{Busy: 1000, ReceiveWindowLimited: limited}}
		if got := c.troubledSince(c.next(&s), 0, 0); got != want {
			t.Errorf("limited for %d of 1000 us: troubled %t", limited, got)
		}
	}
}

// At the bound, rows of living connections are delayed, and not counted as
// lost.
func TestRowsOfLivingConnectionsWaitForRoom(t *testing.T) {
	table := opened(Config{MaxRows: 2, ReportInterval: time.Second})
	dump(table, 5, living(1, 100), living(2, 100), living(3, 100))
	if n, lost := table.Pending(), table.Stats().Dropped; n != 2 || lost != 0 {
		t.Errorf("%d rows, %d lost", n, lost)
	}
	table.Take(nil)
	dump(table, 6, living(1, 100), living(2, 100), living(3, 100))
	if n := table.Pending(); n == 0 {
		t.Error("the third is not reported later")
	}
}

// Rows for which Flush has no room are lost and counted.
func TestFlushIsBounded(t *testing.T) {
	table := opened(Config{MaxRows: 2, ReportInterval: time.Hour})
	dump(table, 5, living(1, 100), living(2, 100), living(3, 100))
	table.Flush(at(6), ns)
	if n, lost := table.Pending(), table.Stats().Dropped; n != 2 || lost != 1 {
		t.Errorf("%d rows, %d lost; want 2 and 1", n, lost)
	}
}

// Rows of a socket end at least a nanosecond apart, and no later than
// necessary.
func TestRowEndsAfterTheOneBefore(t *testing.T) {
	c := conn{reported: 100, minRTT: UnknownRTT}
	sp := &space{}
	if row := c.row(sp, 100); row.Start != 100 || row.End != 101 {
		t.Errorf("row from %d to %d, want 100 to 101", row.Start, row.End)
	}
	if row := c.row(sp, 200); row.Start != 101 || row.End != 200 {
		t.Errorf("row from %d to %d, want 101 to 200", row.Start, row.End)
	}
}

// Either counter going back shows that the socket was connected again.
func TestCountersThatGoBackAreAnotherConnection(t *testing.T) {
	c := conn{local: ap(cl), peer: ap(sv), acked: 10, minRTT: UnknownRTT}
	c.counters.BytesReceived = 10
	for _, tc := range []struct {
		acked, received uint64
		want            bool
	}{{10, 10, false}, {11, 11, false}, {9, 10, true}, {10, 9, true}} {
		s := Socket{Info: Info{BytesAcked: tc.acked, BytesReceived: tc.received}}
		if got := c.replacedBy(&s, ap(cl), ap(sv)); got != tc.want {
			t.Errorf("%d acknowledged, %d received: replaced %t", tc.acked, tc.received, got)
		}
	}
}

// On a kernel that does not count sent bytes, those acknowledged count from the
// first segment on.
func TestSentOnOldKernels(t *testing.T) {
	for segments, want := range map[uint32]uint64{0: 0, 1: 7, 2: 7} {
		s := Socket{Info: Info{SegmentsSent: segments, BytesAcked: 7}}
		if got := s.sent(); got != want {
			t.Errorf("%d segments: %d bytes sent, want %d", segments, got, want)
		}
	}
}

// A connection that was idle since a dead one was forgotten may be the same, so
// its end is not reported; a connection that was active later is another one.
func TestIdleSinceTheForgottenIsUnclear(t *testing.T) {
	for idle, want := range map[uint32]uint64{1999: 0, 2000: 1, 2001: 1} {
		table := opened(Config{})
		dump(table, 1)
		table.spaces[ns].forgottenUntil = at(1).UnixNano()
		s := closed(living(5, 100))
		s.Info.LastAck, s.Info.LastSent, s.Info.LastReceived = idle, idle, idle
		destroy(table, 3, s)
		if got := table.Stats().Unclear; got != want {
			t.Errorf("idle for %d ms: %d unclear, want %d", idle, got, want)
		}
	}
}

// A row for the time before the trouble is added only if the last dump is newer
// than the last row, and while there is room.
func TestRowBeforeTrouble(t *testing.T) {
	for name, tc := range map[string]struct {
		c    conn
		want int
	}{
		"activity since the last row": {conn{seen: 2, reported: 1, counters: Counters{BytesSent: 1}}, 1},
		"no dump since the last row":  {conn{seen: 2, reported: 2, counters: Counters{BytesSent: 1}}, 0},
		"no activity":                 {conn{seen: 2, reported: 1}, 0},
	} {
		table := opened(Config{MaxRows: 1})
		table.reportBefore(table.spaces[ns], &tc.c)
		if got := table.Pending(); got != tc.want {
			t.Errorf("%s: %d rows, want %d", name, got, tc.want)
		}
		again := conn{seen: 2, reported: 1, counters: Counters{BytesSent: 1}}
		table.reportBefore(table.spaces[ns], &again)
		if got := table.Pending(); got != 1 {
			t.Errorf("%s: %d rows of at most 1", name, got)
		}
	}
}
