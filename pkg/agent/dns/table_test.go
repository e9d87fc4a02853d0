package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const ns = 4026531840

var epoch = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// at returns the time some milliseconds after the epoch.
func at(ms int) time.Time { return epoch.Add(time.Duration(ms) * time.Millisecond) }

// event is a packet of one client and resolver.
type event struct {
	ms     int
	answer bool
	id     uint16
	port   uint16
	name   string
	code   uint16
	device int
	ips    string
}

func (e event) packet() *Packet {
	c, r := netip.AddrPortFrom(client4.Addr(), 40000+e.port), resolver4
	p := &Packet{Time: at(e.ms).UnixNano(), Outgoing: !e.answer, Interface: e.device, From: c, To: r}
	p.Message = Message{ID: e.id, Response: e.answer, Code: e.code, Name: e.name, Type: 1, TTL: 60}
	if e.answer {
		p.From, p.To = r, c
	}
	if e.ips != "" {
		p.Message.Addresses = []netip.Addr{netip.MustParseAddr(e.ips)}
	}
	return p
}

// line is a Record in short.
func line(r *Record) string {
	return fmt.Sprintf("%s %d-%d port=%d q=%d f=%d u=%d t=%d max=%d %s", r.Name,
		(r.Start-epoch.UnixNano())/1e6, (r.End-epoch.UnixNano())/1e6, r.Client.Port(), r.Queries, r.Failures, r.Unanswered, r.Time/1000, r.MaxTime/1000, r.Code)
}

func TestTable(t *testing.T) {
	ask := func(ms int, id uint16, name string) event { return event{ms: ms, id: id, name: name} }
	reply := func(ms int, id uint16, name string) event { return event{ms: ms, id: id, name: name, answer: true} }
	failed := func(ms int, id uint16, name string, code uint16) event {
		return event{ms: ms, id: id, name: name, answer: true, code: code}
	}
	tests := map[string]struct {
		events []event
		until  int
		want   []string
	}{
		"quiet, together once an interval": {
			[]event{ask(0, 1, "a"), reply(3, 1, "a"), ask(10, 2, "a"), reply(12, 2, "a")},
			70_000,
			[]string{"a 0-12 port=40000 q=2 f=0 u=0 t=5 max=3 "},
		},
		"nothing before the interval is over": {[]event{ask(0, 1, "a"), reply(3, 1, "a")}, 50_000, nil},
		"slow, at once": {
			[]event{ask(0, 1, "a"), reply(250, 1, "a")},
			400,
			[]string{"a 0-250 port=40000 q=1 f=0 u=0 t=250 max=250 "},
		},
		"failed, at once": {
			[]event{ask(0, 1, "a"), failed(3, 1, "a", 2)},
			200,
			[]string{"a 0-3 port=40000 q=1 f=1 u=0 t=3 max=3 SERVFAIL"},
		},
		"trouble of one step comes together": {
			[]event{ask(0, 1, "a"), failed(3, 1, "a", 2), ask(1000, 2, "a"), failed(1005, 2, "a", 5), ask(2000, 3, "a"), failed(2001, 3, "a", 2)},
			6000,
			[]string{"a 0-3 port=40000 q=1 f=1 u=0 t=3 max=3 SERVFAIL", "a 1000-2001 port=40000 q=2 f=2 u=0 t=6 max=5 SERVFAIL"},
		},
		"unanswered": {
			[]event{ask(0, 1, "a")},
			6000,
			[]string{"a 0-5000 port=40000 q=1 f=0 u=1 t=0 max=0 "},
		},
		"repeated with the same id, then answered": {
			[]event{ask(0, 1, "a"), ask(2000, 1, "a"), reply(2010, 1, "a")},
			3000,
			[]string{"a 0-2010 port=40000 q=2 f=0 u=0 t=2010 max=2010 "},
		},
		"repeated after it counted as unanswered": {
			[]event{ask(0, 1, "a"), {ms: 5004, id: 2, port: 9, name: "a"}, {ms: 5006, id: 2, port: 9, name: "a", answer: true}},
			12_000,
			[]string{"a 0-5000 port=40000 q=1 f=0 u=1 t=0 max=0 ", "a 0-5006 port=40009 q=1 f=0 u=0 t=5006 max=5006 "},
		},
		"asked by two at a time": {
			[]event{ask(0, 1, "a"), ask(5, 2, "a"), reply(6, 1, "a"), reply(7, 2, "a")},
			70_000,
			[]string{"a 0-7 port=40000 q=2 f=0 u=0 t=8 max=6 "},
		},
		"answer after seven seconds": {
			[]event{ask(0, 1, "a"), reply(7000, 1, "a")},
			13_000,
			[]string{"a 0-5000 port=40000 q=1 f=0 u=1 t=0 max=0 ", "a 0-7000 port=40000 q=0 f=0 u=0 t=7000 max=7000 "},
		},
		"the same packet on two devices": {
			[]event{ask(0, 1, "a"), {ms: 1, id: 1, name: "a", device: 2}, reply(3, 1, "a"), {ms: 4, id: 1, name: "a", device: 2, answer: true}},
			70_000,
			[]string{"a 0-3 port=40000 q=1 f=0 u=0 t=3 max=3 "},
		},
		"no such name": {
			[]event{ask(0, 1, "no.example"), failed(3, 1, "no.example", 3)},
			7000,
			[]string{"no.example 0-3 port=40000 q=1 f=1 u=0 t=3 max=3 NXDOMAIN"},
		},
		"a search list": {
			[]event{
				ask(0, 1, "api.example.com.shop.svc.cluster.local"), failed(1, 1, "api.example.com.shop.svc.cluster.local", 3),
				ask(2, 2, "api.example.com"), reply(3, 2, "api.example.com"),
				ask(5, 3, "cart.other.shop.svc.cluster.local"), failed(6, 3, "cart.other.shop.svc.cluster.local", 3),
				ask(7, 4, "cart.other.svc.cluster.local"), reply(8, 4, "cart.other.svc.cluster.local"),
			},
			70_000,
			[]string{
				"api.example.com 2-3 port=40000 q=1 f=0 u=0 t=1 max=1 ",
				"api.example.com.shop.svc.cluster.local 0-1 port=40000 q=1 f=0 u=0 t=1 max=1 ",
				"cart.other.shop.svc.cluster.local 5-6 port=40000 q=1 f=0 u=0 t=1 max=1 ",
				"cart.other.svc.cluster.local 7-8 port=40000 q=1 f=0 u=0 t=1 max=1 ",
			},
		},
		"several ports": {
			[]event{ask(0, 1, "a"), reply(3, 1, "a"), {ms: 10, id: 1, port: 1, name: "a"}, {ms: 11, id: 1, port: 1, name: "a", answer: true}},
			70_000,
			[]string{"a 0-11 port=0 q=2 f=0 u=0 t=4 max=3 "},
		},
		"an answer that nobody asked for": {[]event{reply(3, 1, "a")}, 70_000, nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			table := New(Config{Interval: time.Minute, Step: 5 * time.Second})
			table.Open(ns)
			for ms := 0; ms <= tc.until; ms += 200 {
				for len(tc.events) > 0 && tc.events[0].ms <= ms {
					table.Observe(ns, tc.events[0].packet())
					tc.events = tc.events[1:]
				}
				table.Advance(at(ms))
			}
			var got []string
			for _, r := range table.Take(nil) {
				got = append(got, line(&r))
			}
			slices.Sort(got)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNames(t *testing.T) {
	table := New(Config{Interval: time.Minute, Step: time.Second})
	table.Open(ns)
	table.Open(ns + 1)
	resolve := func(ms int, name, ip string) {
		table.Observe(ns, event{ms: ms, id: 1, name: name}.packet())
		table.Observe(ns, event{ms: ms + 1, id: 1, name: name, answer: true, ips: ip}.packet())
	}
	name := func(ms int, space uint64, ip string) string {
		return table.Name(at(ms), space, netip.MustParseAddr(ip))
	}
	resolve(0, "a.example", "192.0.2.1")
	resolve(10, "b.example", "192.0.2.2")
	if got := name(20, ns, "192.0.2.1") + " " + name(20, ns, "192.0.2.2") + name(20, ns+1, "192.0.2.1") + name(20, ns, "192.0.2.3"); got != "a.example b.example" {
		t.Errorf("names %q", got)
	}
	resolve(30, "c.example", "192.0.2.1")
	if got := name(40, ns, "192.0.2.1"); got != "c.example" {
		t.Errorf("the latest name is %q", got)
	}
	valid := int((time.Minute + nameGrace) / time.Millisecond)
	if got := name(10+valid, ns, "192.0.2.2"); got != "b.example" {
		t.Errorf("name at the end of its time %q", got)
	}
	if got := name(20+valid, ns, "192.0.2.2"); got != "" {
		t.Errorf("name after its time %q", got)
	}
	table.Advance(at(valid + 100))
	if n := table.Stats().Names; n != 0 {
		t.Errorf("%d names left", n)
	}
	// Nobody else can send an answer nobody asked for, but a local process can.
	spoofed := event{ms: 1, id: 9, name: "evil.example", answer: true, ips: "192.0.2.7"}.packet()
	table.Observe(ns, spoofed)
	if got := name(2, ns, "192.0.2.7"); got != "" {
		t.Errorf("name of an unasked answer %q", got)
	}
	spoofed.From = netip.MustParseAddrPort("127.0.0.11:53")
	table.Observe(ns, spoofed)
	if got := name(2, ns, "192.0.2.7"); got != "evil.example" {
		t.Errorf("name of a local resolver's answer %q", got)
	}
}

// TestBounds: whatever a namespace asks, the memory of the table is bounded,
// others keep their share, and the sums stay right.
func TestBounds(t *testing.T) {
	table := New(Config{Interval: time.Minute, Step: 5 * time.Second})
	table.Open(ns)
	table.Open(ns + 1)
	const n = 20_000
	for i := range n {
		e := event{ms: i / 10, id: uint16(i), port: uint16(i >> 16), name: fmt.Sprintf("x%d.example", i)}
		table.Observe(ns, e.packet())
		if i%2 == 0 {
			e.answer, e.ips = true, fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)
			table.Observe(ns, e.packet())
		}
	}
	table.Observe(ns+1, event{ms: 1, id: 1, name: "a"}.packet())
	table.Observe(ns+1, event{ms: 2, id: 1, name: "a", answer: true, ips: "192.0.2.1"}.packet())
	s := table.Stats()
	if s.Questions > maxQuestionsPerSpace || s.Subjects > maxSubjectsPerSpace+2 || s.Names > maxNamesPerSpace+1 || s.Untracked == 0 {
		t.Errorf("stats %+v", s)
	}
	if got := table.Name(at(3), ns+1, netip.MustParseAddr("192.0.2.1")); got != "a" {
		t.Errorf("name in another namespace %q", got)
	}
	table.Advance(at(10_000))
	table.Forget(ns)
	var queries, unanswered uint64
	for _, r := range table.Take(nil) {
		queries += uint64(r.Queries)
		unanswered += uint64(r.Unanswered)
	}
	// Every second question has no answer, until they fill the namespace's share.
	if unanswered != maxQuestionsPerSpace || queries != 2*maxQuestionsPerSpace {
		t.Errorf("%d queries, %d unanswered", queries, unanswered)
	}
}

// TestSumsAddUp: over any packets, lost, late, repeated and in any order, each
// question that was tracked is counted once, and two records never have the
// same identity.
func TestSumsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := New(Config{Interval: 10 * time.Second, Step: time.Second})
		table.Open(ns)
		ms := 0
		type identity struct {
			client netip.Addr
			end    int64
			key    uint64
		}
		seen := map[identity]bool{}
		var queries, failures, unanswered uint64
		take := func() {
			for _, r := range table.Take(nil) {
				id := identity{r.Client.Addr(), r.End, r.Key}
				if seen[id] {
					t.Fatalf("two records with the identity %+v", id)
				}
				seen[id] = true
				if r.End < r.Start || r.MaxTime > 0 && uint64(r.MaxTime) > r.Time || r.Unanswered > r.Queries {
					t.Fatalf("record %+v", r)
				}
				queries += uint64(r.Queries)
				failures += uint64(r.Failures)
				unanswered += uint64(r.Unanswered)
			}
		}
		for range rapid.IntRange(0, 100).Draw(t, "events") {
			ms += rapid.SampledFrom([]int{0, 1, 50, 500, 3000, 8000}).Draw(t, "pause")
			table.Observe(ns, event{
				ms: ms - rapid.SampledFrom([]int{0, 0, 0, 20}).Draw(t, "late"), answer: rapid.Bool().Draw(t, "answer"),
				id: rapid.Uint16Range(0, 2).Draw(t, "id"), name: rapid.SampledFrom([]string{"a", "a.b", "c"}).Draw(t, "name"),
				code: rapid.SampledFrom([]uint16{0, 2, 3}).Draw(t, "code"), device: rapid.IntRange(0, 1).Draw(t, "device"),
			}.packet())
			if rapid.Bool().Draw(t, "advance") {
				table.Advance(at(ms))
				take()
			}
		}
		for range 20 {
			ms += 1000
			table.Advance(at(ms))
		}
		table.Forget(ns)
		take()
		s := table.Stats()
		if queries != s.Asked || s.Questions != 0 || s.Subjects != 0 || s.Names != 0 || failures > s.Answered || queries-unanswered > s.Answered*maxRepeats {
			t.Fatalf("%d queries, %d failures, %d unanswered, %+v", queries, failures, unanswered, s)
		}
	})
}

func BenchmarkExchange(b *testing.B) {
	table := New(Config{Interval: time.Minute, Step: 5 * time.Second})
	table.Open(ns)
	ask, reply := event{id: 1, name: "cart.shop.svc.cluster.local"}.packet(), event{ms: 1, id: 1, name: "cart.shop.svc.cluster.local", answer: true, ips: "10.0.0.1"}.packet()
	b.ReportAllocs()
	for b.Loop() {
		table.Observe(ns, ask)
		table.Observe(ns, reply)
	}
}

// A subject that was forgotten as its last record ended must not come back and end
// another record at that time: the second would be taken for a copy.
func TestForgottenSubjectEndsLater(t *testing.T) {
	table := New(Config{Interval: 10 * time.Second, Step: time.Second})
	table.Open(ns)
	for _, e := range []event{{ms: 0, id: 0, name: "a"}, {ms: 3000, id: 1, name: "a"}, {ms: 11000, id: 0, name: "a", answer: true}, {ms: 11000, id: 1, name: "a", answer: true}} {
		table.Observe(ns, e.packet())
		if e.answer {
			table.Advance(at(e.ms))
		}
	}
	table.Forget(ns)
	records := table.Take(nil)
	if len(records) != 2 || records[0].Key == records[1].Key && records[0].End == records[1].End {
		t.Errorf("records %+v", records)
	}
}
