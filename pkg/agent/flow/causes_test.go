package flow

import (
	"net/netip"
	"testing"
	"time"
)

// only returns the one row that waits.
func only(t *testing.T, tab *Table) Row {
	t.Helper()
	got := tab.Take(nil)
	if len(got) != 1 {
		t.Fatalf("%d rows, want 1: %+v", len(got), got)
	}
	return got[0]
}

// A connect fails because nothing listens, which the peer answers at once, or
// because nothing answers.
func TestRefused(t *testing.T) {
	refused := connecting(5)
	refused.Info.Unanswered, refused.Info.Retransmits = 0, 0
	answered := refused
	answered.Info.PacketsReceived = 1
	late := connecting(5)
	late.Info.PacketsReceived = 1
	for name, tc := range map[string]struct {
		last Socket
		want uint32
	}{
		"answered":                                 {answered, 1},
		"answered after a repetition":              {late, 1},
		"not answered, repeated":                   {connecting(5), 0},
		"not answered, closed before a repetition": {refused, 0},
		"blocking connect, answered":               {cleared(refused), 1},
		"blocking connect, not answered":           {cleared(connecting(5)), 0},
	} {
		for _, seen := range []bool{false, true} {
			tab := opened(Config{})
			if seen {
				dump(tab, 1, refused)
			}
			tc.last.State = StateClose
			destroy(tab, 2, tc.last)
			if r := only(t, tab); r.ConnectFailures != 1 || r.Refused != tc.want || r.Reason != EndConnectFailed {
				t.Errorf("%s, seen by a dump %t: %+v", name, seen, r)
			}
		}
	}
}

// A reset that cuts nothing off is an orderly end, and so is none of the
// network's what the own process did.
func TestResetsThatHarmNobody(t *testing.T) {
	client := func(edit func(*Socket)) Socket {
		s := living(5, 1000)
		s.State = StateClose
		s.Info.LastSent, s.Info.LastReceived, s.Info.LastAck = 3000, 2990, 2990 // the answer came after the question
		edit(&s)
		return s
	}
	server := func(edit func(*Socket)) Socket {
		s := living(5, 1000)
		s.Local, s.Peer = s.Peer, s.Local
		s.State, s.Info.BytesAcked = StateClose, 1000
		s.Info.LastSent, s.Info.LastReceived, s.Info.LastAck = 2990, 3000, 2980
		edit(&s)
		return s
	}
	for name, tc := range map[string]struct {
		last   Socket
		end    End
		resets uint32
		gaveUp uint32
	}{
		"client's idle pool":                             {client(func(*Socket) {}), EndOrderly, 0, 0},
		"client that waits for an answer":                {client(func(s *Socket) { s.Info.LastSent, s.Info.LastAck = 500, 499 }), EndReset, 1, 0},
		"client whose question is not acknowledged":      {client(func(s *Socket) { s.SendQueue = 100; s.Info.BytesSent += 100; s.Info.LastSent = 500 }), EndReset, 1, 0},
		"client in the middle of an answer":              {client(func(s *Socket) { s.Info.LastReceived, s.Info.LastAck = 20, 20 }), EndReset, 1, 0},
		"client that does not read the answer":           {client(func(s *Socket) { s.ReceiveQueue = 3000 }), EndReset, 0, 1},
		"client that leaves close_notify and FIN unread": {client(func(s *Socket) { s.ReceiveQueue = 32 }), EndOrderly, 0, 0},
		"client that sent and received nothing": {client(func(s *Socket) {
			s.Info.BytesSent, s.Info.SegmentsSent, s.Info.SegmentsReceived, s.Info.BytesReceived, s.Info.BytesAcked = 0, 0, 0, 0, 1
		}), EndOrderly, 0, 0},
		"server after its answer":                 {server(func(*Socket) {}), EndOrderly, 0, 0},
		"server while it works":                   {server(func(s *Socket) { s.Info.LastReceived = 400 }), EndReset, 1, 0},
		"server whose answer is not acknowledged": {server(func(s *Socket) { s.SendQueue = 5000; s.Info.BytesSent += 5000 }), EndReset, 1, 0},
		"server whose client had left":            {server(func(s *Socket) { s.SendQueue, s.ReceiveQueue = 5000, 1; s.Info.BytesSent += 5000 }), EndOrderly, 0, 0},
	} {
		tab := opened(Config{})
		dump(tab, 1, listener("10.0.0.2:80"))
		destroy(tab, 5, tc.last)
		tab.ResolveRoles(ns)
		if r := only(t, tab); r.Reason != tc.end || r.Resets != tc.resets || r.GaveUp != tc.gaveUp {
			t.Errorf("%s: end %d, resets %d, gave up %d; want %d, %d and %d", name, r.Reason, r.Resets, r.GaveUp, tc.end, tc.resets, tc.gaveUp)
		}
	}
}

// A client that closes while it waits for an answer gave up. That the peer hung
// up instead must be ruled out.
func TestGaveUp(t *testing.T) {
	asked := closed(living(5, 1000))
	asked.Info.LastSent, asked.Info.LastReceived = 100, 2000
	mini := Socket{Cookie: 5, State: StateFinWait2, Local: asked.Local, Peer: asked.Peer, Mini: true, Info: Info{MinRTT: UnknownRTT}}
	first := asked
	first.Info.SegmentsReceived, first.Info.BytesReceived = 0, 0
	hungUp := first
	hungUp.Info.BytesReceived = 1
	answered := asked
	answered.Info.LastReceived = 50
	tick := asked
	tick.Info.LastSent, tick.Info.SegmentsSent, tick.Info.SegmentsReceived = 2000, 4, 3
	tickAnswered := tick
	tickAnswered.Info.SegmentsReceived = 4
	mini.Cookie = 6 // its own
	for name, tc := range map[string]struct {
		last Socket
		next []Socket // in the dump after
		want uint32
	}{
		"no answer to the first question":            {first, nil, 1},
		"the peer hung up at the first question":     {hungUp, nil, 0},
		"no answer to a later question, peer open":   {asked, []Socket{mini}, 1},
		"no answer to a later question, peer closed": {asked, nil, 0},
		"answered":                      {answered, []Socket{mini}, 0},
		"asked at once after an answer": {tick, []Socket{mini}, 1},
		"answered at once":              {tickAnswered, []Socket{mini}, 0},
	} {
		tab := opened(Config{})
		destroy(tab, 5, tc.last)
		dump(tab, 6, tc.next...)
		if r := only(t, tab); r.GaveUp != tc.want || r.Reason != EndOrderly || r.Resets != 0 || r.End != at(5).UnixNano() {
			t.Errorf("%s: %+v", name, r)
		}
	}
	t.Run("held rows survive the end of capture", func(t *testing.T) {
		for name, end := range map[string]func(*Table){
			"flush":  func(tab *Table) { tab.Flush(at(6), ns) },
			"close":  func(tab *Table) { tab.Close(at(6), ns) },
			"forget": func(tab *Table) { tab.Forget(ns) },
		} {
			tab := opened(Config{})
			destroy(tab, 5, asked)
			if n := tab.Pending(); n != 0 {
				t.Fatalf("%d rows at once", n)
			}
			end(tab)
			if n := tab.Pending(); n != 1 {
				t.Errorf("%s: %d rows, want 1", name, n)
			}
		}
	})
	t.Run("held rows are bounded", func(t *testing.T) {
		tab := opened(Config{})
		for i := range uint64(maxHeld + 3) {
			s := asked
			s.Cookie, s.Local = i+1, netip.AddrPortFrom(s.Local.Addr(), uint16(i+1))
			destroy(tab, 5, s)
		}
		if n := tab.Pending(); n != 3 {
			t.Errorf("%d rows at once, want 3", n)
		}
	})
}

func TestAcceptQueue(t *testing.T) {
	tab := opened(Config{})
	l := listener("0.0.0.0:80")
	l.Cookie, l.Inode, l.SendQueue, l.ReceiveQueue = 9, 7, 128, 128
	dump(tab, 5, l) // there is room for one more
	if n := tab.Pending(); n != 0 {
		t.Fatalf("%d rows of a queue that is not full", n)
	}
	l.ReceiveQueue = 129
	dump(tab, 10, l)
	r := only(t, tab)
	want := Row{
		Start: at(5).UnixNano(), End: at(10).UnixNano(), Namespace: ns, Cookie: 9, Inode: 7, Local: ap("0.0.0.0:80"), Peer: ap("[::]:0"),
		Role: RoleServer, AcceptQueueFull: 1,
	}
	if r != want {
		t.Errorf("row %+v, want %+v", r, want)
	}
	waits := living(5, 0)
	waits.Local, waits.Peer = waits.Peer, waits.Local
	dump(tab, 15, l, waits)
	if r := only(t, tab); r.AcceptQueueFull != 1 || r.Local != waits.Local {
		t.Errorf("row %+v, want the address of the connection that waits, %s", r, waits.Local)
	}
	tab.Configure(Config{ExcludePorts: []PortRange{{80, 80}}})
	dump(tab, 20, l)
	if n := tab.Pending(); n != 0 {
		t.Errorf("%d rows of an excluded port", n)
	}
}

func TestUnread(t *testing.T) {
	server := func(received uint64, queue uint32, state State) Socket {
		s := living(5, 1000)
		s.Local, s.Peer = s.Peer, s.Local
		s.State, s.Info.BytesAcked, s.Info.BytesReceived, s.ReceiveQueue = state, 1000, received, queue
		return s
	}
	client := func(received uint64, queue uint32, state State) Socket {
		s := living(5, 1000)
		s.State, s.Info.BytesReceived, s.ReceiveQueue = state, received, queue
		return s
	}
	for name, tc := range map[string]struct {
		one, two Socket
		want     uint64
	}{
		"a request waits":                  {server(200, 200, StateEstablished), server(200, 200, StateEstablished), 200},
		"more arrives":                     {server(200, 200, StateEstablished), server(500, 500, StateEstablished), 200},
		"the process reads":                {server(200, 200, StateEstablished), server(400, 200, StateEstablished), 0},
		"nothing waits":                    {server(200, 0, StateEstablished), server(200, 0, StateEstablished), 0},
		"it arrived just now":              {server(200, 0, StateEstablished), server(400, 200, StateEstablished), 0},
		"the client gave up":               {server(200, 200, StateEstablished), server(201, 201, StateCloseWait), 200},
		"only a FIN waits":                 {server(201, 1, StateCloseWait), server(201, 1, StateCloseWait), 0},
		"an answer waits":                  {client(90_000, 90_000, StateEstablished), client(90_000, 90_000, StateEstablished), 90_000},
		"session tickets wait at a client": {client(500, 500, StateEstablished), client(500, 500, StateEstablished), 0},
		"a farewell waits at a client":     {client(9000, 9000, StateCloseWait), client(9000, 9000, StateCloseWait), 0},
	} {
		tab := opened(Config{ReportInterval: time.Hour})
		dump(tab, 5, listener("10.0.0.2:80"), tc.one)
		dump(tab, 10, listener("10.0.0.2:80"), tc.two)
		var got uint64
		for _, r := range tab.Take(nil) {
			got = max(got, r.UnreadBytes)
			if r.UnreadBytes > 0 && r.Start != at(5).UnixNano() {
				t.Errorf("%s: the row starts at %d", name, r.Start)
			}
		}
		if got != tc.want {
			t.Errorf("%s: %d bytes unread, want %d", name, got, tc.want)
		}
	}
}

// A row of trouble starts with its step, also on a connection that rested for
// long.
func TestTroubleAfterRest(t *testing.T) {
	tab := opened(Config{})
	s := living(5, 1000)
	s.Local, s.Peer = s.Peer, s.Local
	s.Info.BytesAcked = 1000
	for second := 5; second <= 115; second += 5 {
		dump(tab, second, listener("10.0.0.2:80"), s)
	}
	tab.Take(nil)
	s.Info.BytesReceived, s.ReceiveQueue = s.Info.BytesReceived+100, 100
	dump(tab, 120, s)
	tab.Take(nil)
	dump(tab, 125, s)
	if r := only(t, tab); r.UnreadBytes != 100 || r.Start != at(120).UnixNano() || r.End != at(125).UnixNano() {
		t.Errorf("row %+v", r)
	}
	s.Info.BytesReceived, s.ReceiveQueue = s.Info.BytesReceived+100, 0
	for second := 130; second <= 145; second += 5 {
		dump(tab, second, s)
	}
	if n := tab.Pending(); n != 0 {
		t.Fatalf("%d rows while nothing is wrong", n)
	}
	s.Info.Retransmits = 3
	dump(tab, 150, s)
	got := tab.Take(nil)
	if len(got) != 2 || got[0].Start != at(125).UnixNano() || got[0].BytesReceived != 100 || got[1].Start != at(145).UnixNano() || got[1].Retransmits != 3 {
		t.Errorf("rows %+v", got)
	}
}

// timed returns a client's socket with these round trip times, in milliseconds,
// after so many exchanges.
func timed(exchanges uint64, rtt, least float64) Socket {
	s := living(5, 1000*exchanges)
	s.Info.RTT, s.Info.MinRTT, s.Info.Delivered = uint32(1000*rtt), uint32(1000*least), uint32(2*exchanges)
	return s
}

// scattered returns the socket with this mean deviation, in milliseconds.
func scattered(s Socket, deviation float64) Socket {
	s.Info.RTTDeviation = uint32(1000 * deviation)
	return s
}

// experienced returns a table that knows the round trip time of the edge, 1 ms.
func experienced(t *testing.T) *Table {
	t.Helper()
	tab := opened(Config{})
	for cookie := range uint64(enoughSamples) {
		s := timed(1, 1, 1)
		s.Cookie = 100 + cookie
		destroy(tab, 1, closed(s))
	}
	tab.Take(nil)
	return tab
}

// A round trip time above its usual is reported at once. What the peer's
// delayed acknowledgements add is not the network's.
func TestSlow(t *testing.T) {
	for name, tc := range map[string]struct {
		before, after Socket
		slow          bool
		want          uint32 // largest, in milliseconds
	}{
		"as usual":                             {timed(10, 1, 1), timed(20, 1.2, 1), false, 1},
		"80 ms more":                           {timed(10, 1, 1), timed(20, 75, 1), true, 75},
		"80 ms more for five minutes":          {timed(10, 81, 1), timed(900, 81, 81), true, 81},
		"30 ms more for five minutes":          {timed(10, 31, 1), timed(900, 31, 31), true, 31},
		"80 ms more, and jitter":               {timed(10, 1, 1), scattered(timed(900, 81, 1), 20), true, 81},
		"a host that acknowledges some late":   {timed(10, 1, 1), scattered(timed(900, 150, 1), 80), false, 1},
		"delayed acknowledgements":             {timed(10, 1, 1), timed(20, 41, 1), false, 1},
		"it was more before, and decays":       {timed(10, 81, 1), timed(11, 71, 1), false, 1},
		"nothing was sent since":               {timed(10, 81, 1), timed(10, 81, 1), false, 0},
		"three times the usual, but of little": {timed(10, 1, 1), timed(20, 9, 9), false, 9},
	} {
		tab := experienced(t)
		dump(tab, 5, tc.before)
		dump(tab, 10, tc.before) // its own sample and trouble are past
		tab.Flush(at(11), ns)
		tab.Take(nil)
		dump(tab, 15, tc.after)
		got := tab.Take(nil)
		if tc.slow != (len(got) == 1) {
			t.Errorf("%s: rows %+v", name, got)
			continue
		}
		if !tc.slow {
			tab.Flush(at(16), ns)
			if got = tab.Take(nil); len(got) == 0 && tc.want == 0 {
				continue
			}
		}
		if r := got[0]; r.MaxRTT/1000 != tc.want || r.UsualRTT < 800 || r.UsualRTT > 1200 || r.Queue != 0 {
			t.Errorf("%s: largest %d us, usual %d us, queue %d us", name, r.MaxRTT, r.UsualRTT, r.Queue)
		}
	}
}

// One slow handshake may be a busy host's; several in a row are the network's.
func TestShortConnectionsMustAgree(t *testing.T) {
	tab := experienced(t)
	cookie := uint64(200)
	slow := func(rtt float64) bool {
		s := timed(1, rtt, rtt)
		cookie++
		s.Cookie = cookie
		destroy(tab, 10, closed(s))
		r := only(t, tab)
		return r.UsualRTT > 0 && r.MaxRTT > 3*r.UsualRTT && r.MaxRTT > r.UsualRTT+slowMargin
	}
	for i, step := range []struct {
		rtt  float64
		slow bool
	}{{81, false}, {1, false}, {81, false}, {81, false}, {81, true}, {81, true}, {1, false}, {81, false}} {
		if got := slow(step.rtt); got != step.slow {
			t.Errorf("connection %d of %.0f ms: slow %t", i, step.rtt, got)
		}
	}
}

// Bytes of the connection's own that fill a queue are told from distance.
func TestQueueOfItsOwn(t *testing.T) {
	with := func(s Socket, unsent, inFlight uint32) Socket {
		s.Info.Unsent, s.Info.InFlight = unsent, inFlight
		return s
	}
	for name, tc := range map[string]struct {
		after Socket
		queue bool
	}{
		"more than a bottleneck takes":         {with(timed(500, 200, 1), 60_000, 5), true},
		"much under way":                       {with(timed(500, 200, 1), 0, 80), true},
		"little under way":                     {with(timed(500, 200, 1), 0, 3), false},
		"much under way over a great distance": {with(timed(500, 200, 190), 60_000, 80), false},
	} {
		tab := experienced(t)
		dump(tab, 5, timed(10, 1, 1))
		dump(tab, 10, tc.after)
		for _, r := range tab.Take(nil) {
			if r.Start != at(5).UnixNano() {
				continue
			}
			if (r.Queue > 150_000) != tc.queue || r.Queue > r.MaxRTT || r.UnsentBytes != uint64(tc.after.Info.Unsent) {
				t.Errorf("%s: queue %d us of %d, %d bytes unsent", name, r.Queue, r.MaxRTT, r.UnsentBytes)
			}
		}
	}
}

// The least round trip time of a row is of its own period: the kernel's minimum
// goes back five minutes.
func TestLeastRTTOfThePeriod(t *testing.T) {
	tab := opened(Config{ReportInterval: 10 * time.Second})
	var got []uint32
	for i, s := range []Socket{timed(1, 2, 1), timed(2, 80, 1), timed(3, 70, 1), timed(4, 50, 0.5), timed(4, 50, 0.5)} {
		dump(tab, 10*(i+1), s)
		got = append(got, only(t, tab).MinRTT)
	}
	want := []uint32{1000, 80_000, 70_000, 500, 500} // nothing is measured in the last
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("minima %v, want %v", got, want)
			break
		}
	}
}

// Trouble that lasts is reported for each dump at first, then once an interval.
func TestLastingTroubleIsReportedLess(t *testing.T) {
	tab := experienced(t)
	dump(tab, 5, timed(1, 1, 1))
	rows := 0
	for i := range 120 {
		dump(tab, 10+5*i, timed(uint64(i+2), 81, 80))
		rows += len(tab.Take(nil))
	}
	if rows < maxSteps || rows > maxSteps+12 {
		t.Errorf("%d rows for ten minutes", rows)
	}
}

// The usual round trip time follows most of the history, not a fault.
func TestUsual(t *testing.T) {
	hour := func(n int) int64 { return int64(time.Duration(n) * time.Hour) }
	within := func(e *edge, want uint32) bool { return e.usual >= want*8/10 && e.usual <= want*12/10 }
	t.Run("a fault soon after the start", func(t *testing.T) {
		e := &edge{}
		for range 10 {
			e.add(1000, 1)
		}
		for range 25 {
			e.add(81_000, 1)
		}
		if !within(e, 1000) {
			t.Errorf("usual %d", e.usual)
		}
	})
	t.Run("a fault of an hour", func(t *testing.T) {
		e := &edge{}
		for h := range 6 {
			for i := range 100 {
				rtt := uint32(1000)
				if h == 4 {
					rtt = 81_000
				}
				e.add(rtt, hour(h)+int64(i)*int64(30*time.Second))
			}
			if !within(e, 1000) {
				t.Errorf("usual %d after hour %d", e.usual, h)
			}
		}
	})
	t.Run("a new path", func(t *testing.T) {
		e := &edge{}
		for h := range 14 {
			rtt := uint32(1000)
			if h >= 7 {
				rtt = 81_000
			}
			for i := range 100 {
				e.add(rtt, hour(h)+int64(i)*int64(30*time.Second))
			}
		}
		if !within(e, 81_000) || len(e.past) != pastBuckets {
			t.Errorf("usual %d of %d half hours", e.usual, len(e.past))
		}
	})
	t.Run("two peers behind one address", func(t *testing.T) {
		e := &edge{}
		for i := range 400 {
			e.add([]uint32{1000, 80_000}[i%2], int64(i)*int64(30*time.Second))
		}
		if e.slow(81_000) {
			t.Errorf("the farther one is slow, usual %d", e.usual)
		}
	})
	t.Run("many samples", func(t *testing.T) {
		e := &edge{}
		for range 200_000 {
			e.add(1000, 1)
		}
		if !within(e, 1000) || e.count > 1<<17 {
			t.Errorf("usual %d of %d", e.usual, e.count)
		}
	})
}

func TestBinsOfRTT(t *testing.T) {
	last := -1
	for rtt := uint32(1); rtt < 60_000_000; rtt += 1 + rtt/50 {
		bin := binOf(rtt)
		if bin < last || bin >= rttBins {
			t.Fatalf("%d us in bin %d after %d", rtt, bin, last)
		}
		last = bin
		if got := float64(rttOf(bin)); got < 0.85*float64(rtt) || got > 1.15*float64(rtt) {
			t.Fatalf("%d us in bin %d of %.0f us", rtt, bin, got)
		}
	}
	if bin := binOf(^uint32(0)); bin != rttBins-1 {
		t.Errorf("the longest is in bin %d", bin)
	}
}

func TestEdgesAreBounded(t *testing.T) {
	tab := opened(Config{MaxRows: 1})
	sp := tab.spaces[ns]
	peer := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 80)
	}
	for i := range maxEdges {
		tab.edgeOf(sp, RoleClient, ap(cl), peer(i), at(0).UnixNano()).add(1000, at(0).UnixNano())
	}
	if e := tab.edgeOf(sp, RoleClient, ap(cl), peer(maxEdges), at(60).UnixNano()); e != nil {
		t.Error("an edge beyond the bound")
	}
	tab.edgeOf(sp, RoleClient, ap(cl), peer(0), at(4000).UnixNano()).add(1000, at(4000).UnixNano())
	if e := tab.edgeOf(sp, RoleClient, ap(cl), peer(maxEdges), at(4000).UnixNano()); e == nil || len(tab.edges) != 2 {
		t.Errorf("%d edges are remembered", len(tab.edges))
	}
}
