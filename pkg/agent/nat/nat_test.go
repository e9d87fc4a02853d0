package nat

import (
	"fmt"
	"net/netip"
	"testing"
)

const (
	pod = iota + 1
	host
	router
	other
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func tracked(from, to, replyFrom, replyTo string) *Connection {
	return &Connection{From: ap(from), To: ap(to), ReplyFrom: ap(replyFrom), ReplyTo: ap(replyTo)}
}

type entry struct {
	namespace uint64
	c         *Connection
}

func TestTranslate(t *testing.T) {
	const (
		client = "10.1.0.2:40000"
		vip    = "10.96.0.10:80"
		server = "10.1.0.9:8080"
		node   = "192.0.2.1:61000"
	)
	dnat := tracked(client, vip, server, client)
	both := tracked(client, vip, server, node)
	v6 := tracked("[fd00::2]:40000", "[fd96::10]:80", "[fd00::9]:8080", "[fd00::2]:40000")
	tests := map[string]struct {
		entries     []entry
		namespace   uint64
		local, peer string
		want        string // own end outside, peer behind
	}{
		"nothing known": {nil, pod, client, vip, "- -"},
		"client of a service, translated by the host":                {[]entry{{host, dnat}}, pod, client, vip, "- " + server},
		"server of that connection":                                  {[]entry{{host, dnat}}, other, server, client, vip + " -"},
		"client, translated by its own namespace":                    {[]entry{{pod, dnat}}, pod, client, vip, "- " + server},
		"client, masqueraded":                                        {[]entry{{host, both}}, pod, client, vip, node + " " + server},
		"server, sees the node":                                      {[]entry{{host, both}}, other, server, node, vip + " " + client},
		"IPv6":                                                       {[]entry{{host, v6}}, pod, "[fd00::2]:40000", "[fd96::10]:80", "- [fd00::9]:8080"},
		"another connection":                                         {[]entry{{host, dnat}}, pod, "10.1.0.2:40001", vip, "- -"},
		"port forgotten":                                             {[]entry{{host, dnat}}, pod, client, "10.96.0.10:0", "- -"},
		"a redirect in the pod to a proxy":                           {[]entry{{pod, tracked(client, vip, "127.0.0.1:15001", client)}}, pod, client, vip, "- 127.0.0.1:15001"},
		"the host's DNAT, then a router's masquerade":                {[]entry{{host, dnat}, {router, tracked(client, server, server, node)}}, pod, client, vip, node + " " + server},
		"two networks with the same addresses":                       {[]entry{{host, dnat}, {router, both}}, pod, client, vip, "- -"},
		"two networks with the same addresses, one is the socket's":  {[]entry{{pod, dnat}, {router, both}}, pod, client, vip, "- " + server},
		"an untranslated connection":                                 {[]entry{{host, tracked(client, vip, vip, client)}}, pod, client, vip, "- -"},
		"a connection that lacks an address":                         {[]entry{{host, &Connection{From: ap(client)}}}, pod, client, vip, "- -"},
		"of UDP only DNS counts, and it is not the name of a socket": {[]entry{{host, &Connection{UDP: true, From: ap(client), To: ap(vip), ReplyFrom: ap(server), ReplyTo: ap(client)}}}, pod, client, vip, "- -"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			table := New()
			for _, e := range tc.entries {
				table.Add(e.namespace, e.c)
			}
			text := func(a netip.AddrPort) string {
				if a == (netip.AddrPort{}) {
					return "-"
				}
				return a.String()
			}
			own, peer := table.Translate(tc.namespace, ap(tc.local), ap(tc.peer))
			if got := text(own) + " " + text(peer); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

func TestAsker(t *testing.T) {
	table := New()
	table.Add(host, &Connection{UDP: true, From: ap("10.1.0.2:4000"), To: ap("9.9.9.9:53"), ReplyFrom: ap("9.9.9.9:53"), ReplyTo: ap("192.0.2.1:5000")})
	table.Add(host, &Connection{UDP: true, From: ap("192.0.2.1:6000"), To: ap("10.96.0.53:53"), ReplyFrom: ap("9.9.9.9:53"), ReplyTo: ap("192.0.2.1:6000")})
	table.Rotate()
	if asker, ok := table.Asker(host, ap("192.0.2.1:5000"), ap("9.9.9.9:53")); !ok || asker != ap("10.1.0.2:4000").Addr() {
		t.Errorf("the pod's question is of %s, %t", asker, ok)
	}
	for _, e := range []struct {
		namespace uint64
		from      string
	}{{host, "192.0.2.1:5001"}, {pod, "192.0.2.1:5000"}, {host, "192.0.2.1:6000"}} {
		if asker, ok := table.Asker(e.namespace, ap(e.from), ap("9.9.9.9:53")); ok {
			t.Errorf("question of %s is of %s", e.from, asker)
		}
	}
}

func TestRotateAndBounds(t *testing.T) {
	table := New()
	table.Add(host, tracked("10.1.0.2:1", "10.96.0.1:80", "10.1.0.9:80", "10.1.0.2:1"))
	known := func() bool {
		_, peer := table.Translate(pod, ap("10.1.0.2:1"), ap("10.96.0.1:80"))
		return peer.IsValid()
	}
	table.Rotate()
	if !known() {
		t.Error("forgotten after one period")
	}
	table.Rotate()
	if known() || table.Stats().Keys != 0 {
		t.Errorf("remembered after two periods: %+v", table.Stats())
	}
	for i := range maxKeys {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}), 1000).String()
		table.Add(host, tracked(from, "10.96.0.1:80", "10.1.0.9:80", from))
	}
	if s := table.Stats(); s.Keys > maxKeys || s.Untracked != maxKeys/2 {
		t.Errorf("%+v", s)
	}
}

func BenchmarkAddAndTranslate(b *testing.B) {
	table := New()
	c := tracked("10.1.0.2:1", "10.96.0.1:80", "10.1.0.9:80", "10.1.0.2:1")
	for i := range 200 { // a pod each, none of which translates
		table.Add(uint64(i+10), tracked(fmt.Sprintf("10.3.0.%d:1", i+1), "10.96.0.1:80", "10.1.0.9:80", "10.3.0.1:1"))
	}
	b.ReportAllocs()
	for b.Loop() {
		table.Add(host, c)
		if _, peer := table.Translate(pod, c.From, c.To); !peer.IsValid() {
			b.Fatal("not known")
		}
	}
}
