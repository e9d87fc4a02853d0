package flow

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// kernel models the sockets of one namespace: what the kernel would report of
// them, and what the sum of all rows of each connection must be.
type kernel struct {
	now     time.Time
	cookies uint64
	port    uint16
	sockets []*modelSocket
	events  []*modelSocket // destroyed, notification not delivered yet
}

type modelSocket struct {
	s       Socket
	held    bool // dead, descriptor open
	seen    bool // shown by a dump
	known   Counters
	ends    Counters
	lost    bool // its destroy notification was lost
	removed bool
	cleared bool
}

type connKey struct {
	cookie      uint64
	local, peer uint16
}

func (m *modelSocket) key() connKey {
	return connKey{m.s.Cookie, m.s.Local.Port(), m.s.Peer.Port()}
}

func (k *kernel) open(established bool) *modelSocket {
	k.cookies++
	k.port++
	m := &modelSocket{s: Socket{
		Cookie: k.cookies, State: StateSynSent, SendQueue: 1,
		Local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), 1000+k.port), Peer: ap("10.0.0.2:80"),
		Info: Info{MinRTT: UnknownRTT},
	}}
	if established {
		m.establish()
	}
	k.sockets = append(k.sockets, m)
	return m
}

func (m *modelSocket) establish() {
	m.s.State, m.s.SendQueue = StateEstablished, 0
	m.s.Info.MinRTT, m.s.Info.RTT, m.s.Info.Delivered, m.s.Info.BytesAcked = 10, 10, 1, 1
}

func (m *modelSocket) work(sent, again, twice, received uint32) {
	i := &m.s.Info
	i.BytesSent += uint64(sent) + uint64(again)
	i.BytesRetransmitted += uint64(again)
	i.BytesAcked += uint64(sent)
	i.BytesReceived += uint64(received)
	i.SegmentsSent += 1 + again/10
	i.Retransmits += again / 10
	i.Duplicates += min(again, twice) / 10
	i.Delivered++
	i.Busy += 4000
	i.ReceiveWindowLimited += 1000
	i.RetransmitTimeout += uint64(again)
	m.s.ReceiveQueue, i.Unsent, i.InFlight = received, sent, again
}

// TestRowsAddUp: whatever sockets do, and however dumps and destroy
// notifications are lost, delayed or reordered, the rows of a connection add up
// to its counters as of the table's last chance to learn them, and it counts at
// most once as a connection, a failure or a reset.
func TestRowsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := &kernel{now: t0}
		tab := New(Config{ReportInterval: time.Duration(rapid.IntRange(0, 30).Draw(t, "interval")) * time.Second})
		adopt := rapid.Bool().Draw(t, "adopt")
		tab.Open(k.now, ns, adopt)
		all := map[connKey]*modelSocket{}
		sums := map[connKey]*Row{}
		before := map[connKey]Counters{} // of adopted connections

		if adopt {
			for range rapid.IntRange(0, 3).Draw(t, "old") {
				m := k.open(true)
				m.work(100, 20, 0, 50)
				before[m.key()] = countersOf(&m.s)
			}
			for _, m := range k.sockets {
				all[m.key()] = m
			}
		}
		collect := func() {
			for _, r := range tab.Take(nil) {
				if r.End < r.Start {
					t.Fatalf("row ends before it starts: %+v", r)
				}
				key := connKey{r.Cookie, r.Local.Port(), r.Peer.Port()}
				m := all[key]
				if m == nil {
					t.Fatalf("row of a connection that never existed: %+v", r)
				}
				sum := sums[key]
				if sum == nil {
					sum = &Row{}
					sums[key] = sum
				} else if r.Start < sum.End || r.End <= sum.End {
					t.Fatalf("row overlaps the previous one, or ends at the same moment: %+v", r)
				}
				sum.End = r.End
				sum.Connections += r.Connections
				sum.ConnectFailures += r.ConnectFailures
				sum.Resets += r.Resets
				sum.Timeouts += r.Timeouts
				sum.Refused += r.Refused
				sum.GaveUp += r.GaveUp
				sum.Counters = Counters{
					BytesSent:            sum.BytesSent + r.BytesSent,
					BytesReceived:        sum.BytesReceived + r.BytesReceived,
					Retransmits:          sum.Retransmits + r.Retransmits,
					RetransmittedBytes:   sum.RetransmittedBytes + r.RetransmittedBytes,
					SegmentsSent:         sum.SegmentsSent + r.SegmentsSent,
					Busy:                 sum.Busy + r.Busy,
					ReceiveWindowLimited: sum.ReceiveWindowLimited + r.ReceiveWindowLimited,
					SendBufferLimited:    sum.SendBufferLimited + r.SendBufferLimited,
					RetransmitTimeout:    sum.RetransmitTimeout + r.RetransmitTimeout,
				}
			}
		}
		deliver := func() {
			for _, m := range k.events {
				s := m.s
				tab.Destroyed(k.now, ns, &s)
				if !m.cleared {
					m.known = m.ends
				}
				m.seen = true
			}
			k.events = nil
		}
		// An incomplete dump shows nothing; a hasty one skips some living
		// sockets.
		dumpAll := func(complete, hasty bool) {
			tab.BeginDump(k.now, ns)
			for _, m := range k.sockets {
				if m.held {
					continue
				}
				if !complete || hasty && rapid.IntRange(0, 3).Draw(t, "skipped") == 0 {
					continue
				}
				s := m.s
				tab.Observe(k.now, ns, &s)
				m.seen, m.known = true, countersOf(&m.s)
			}
			deliver()
			tab.EndDump(k.now, ns, complete)
			collect()
		}
		if adopt {
			dumpAll(true, false)
		}
		pick := func() *modelSocket {
			if len(k.sockets) == 0 {
				return nil
			}
			return k.sockets[rapid.IntRange(0, len(k.sockets)-1).Draw(t, "socket")]
		}
		destroyOne := func(m *modelSocket, clear, lost bool) {
			m.ends = countersOf(&m.s)
			m.removed = true
			if clear {
				m.s = cleared(m.s)
				if !m.seen {
					all[connKey{m.s.Cookie, m.s.Local.Port(), 0}] = m
				}
				m.cleared = true
			}
			for i, o := range k.sockets {
				if o == m {
					k.sockets = append(k.sockets[:i], k.sockets[i+1:]...)
					break
				}
			}
			if lost {
				m.lost = true
				tab.Overrun(ns)
				return
			}
			m.s.State = StateClose
			k.events = append(k.events, m)
		}
		t.Repeat(map[string]func(*rapid.T){
			"open": func(t *rapid.T) {
				m := k.open(rapid.Bool().Draw(t, "established"))
				all[m.key()] = m
			},
			"establish": func(*rapid.T) {
				if m := pick(); m != nil && m.s.State == StateSynSent && !m.held {
					m.establish()
				}
			},
			"work": func(t *rapid.T) {
				if m := pick(); m != nil && m.s.State == StateEstablished && !m.held {
					m.work(rapid.Uint32Range(0, 1000).Draw(t, "sent"), rapid.Uint32Range(0, 100).Draw(t, "again"), rapid.Uint32Range(0, 30).Draw(t, "twice"), rapid.Uint32Range(0, 1000).Draw(t, "received"))
				}
			},
			"hold": func(*rapid.T) {
				if m := pick(); m != nil && m.s.State == StateEstablished {
					m.held = true
				}
			},
			"destroy": func(*rapid.T) {
				if m := pick(); m != nil {
					destroyOne(m, false, false)
				}
			},
			"clear": func(*rapid.T) {
				if m := pick(); m != nil {
					destroyOne(m, true, false)
				}
			},
			"destroy, notification lost": func(*rapid.T) {
				if m := pick(); m != nil {
					destroyOne(m, false, true)
				}
			},
			"notify":      func(*rapid.T) { deliver(); tab.ResolveRoles(ns); collect() },
			"dump":        func(*rapid.T) { dumpAll(true, false) },
			"broken dump": func(*rapid.T) { dumpAll(false, false) },
			"hasty dump":  func(*rapid.T) { dumpAll(true, true) },
			"time": func(t *rapid.T) {
				k.now = k.now.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "seconds")) * time.Second)
			},
			"": func(*rapid.T) {},
		})
		for len(k.sockets) > 0 {
			destroyOne(k.sockets[0], false, false)
		}
		deliver()
		for range 3 {
			dumpAll(true, false)
		}
		if got := tab.Stats(); got.Dropped+got.Untracked+got.Unclear != 0 {
			t.Fatalf("stats = %+v", got)
		}
		for key, m := range all {
			sum := sums[key]
			if sum == nil {
				if m.seen && !m.cleared { // a cleared socket's rows are under one of its two keys
					t.Fatalf("no row of connection %+v", key)
				}
				continue
			}
			if n := sum.Connections + sum.ConnectFailures; n > 1 {
				t.Fatalf("connection %+v counted %d times", key, n)
			}
			if n := sum.Resets + sum.Timeouts + sum.ConnectFailures; n > 1 {
				t.Fatalf("connection %+v ended %d times", key, n)
			}
			if sum.Refused > sum.ConnectFailures || sum.GaveUp > 1 || sum.GaveUp+sum.Resets+sum.Timeouts+sum.ConnectFailures > 1 {
				t.Fatalf("connection %+v ended in two ways: %+v", key, sum)
			}
			want := m.known.sub(before[key])
			if !m.cleared && sum.Counters != want {
				t.Fatalf("rows of %+v add up to\n%+v, want\n%+v", key, sum.Counters, want)
			}
		}
	})
}
