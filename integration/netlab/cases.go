//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/metaflowys/metaflow-server/pkg/testkit/namespaces"
)

// truth is an edge that a query must name, and the words for the cause of which
// it must say one.
type truth struct {
	client, server string
	causes         []string
	// spanless edges have no span that could tell, only flows.
	spanless bool
	// may means that the edge is allowed, not required: a hop of the edge at fault.
	may bool
}

// trial is one case of the table.
type trial struct {
	name  string
	story string
	// paths are requested through nginx perSecond times a second by default 6
	// clients at once.
	paths     []string
	perSecond float64
	atOnce    int
	least     int // requests, however long they take
	seconds   int // how long; long and short replace it in those forms
	long      int
	short     int // 0: not part of the short form
	// begin starts the fault before the requests; during runs beside them. All
	// faults end with the requests.
	begin  func(l *lab) error
	during func(ctx context.Context, l *lab, d time.Duration) error
	// want is empty where nothing may be named.
	want []truth
	// anyOf says that one of want suffices, such as a line about the node in
	// place of its edges.
	anyOf bool
	// known are the ways in which the answers are wrong today; they do not fail the
	// run.
	known []way
}

const (
	order      = "/order/%d"
	orderDB    = "/order/%d?parts=db"
	orderStock = "/order/%d?parts=stock"
	priceOne   = "/price/%d"
)

// The words for causes, as the views say them.
var (
	loss       = []string{"retransmission", "slow handshake", "timed out", "connect failed"}
	reset      = []string{"reset"}
	refused    = []string{"connect refused"}
	swallowed  = []string{"connect failed"}
	slow       = []string{"slow network"}
	capped     = []string{"slow queue", "slow network", "retransmission"}
	notRead    = []string{"receiver does not read", "receiver's window full"}
	queueFull  = []string{"accept queue full"}
	slowDNS    = []string{"slow DNS"}
	failingDNS = []string{"DNS failed"}
)

// losing returns a fault that drops packets between two hosts, in thousandths.
func losing(thousandths int, pairs ...[2]string) func(*lab) error {
	return func(l *lab) error {
		var rules []string
		for _, p := range pairs {
			rules = append(rules, both(l.hosts[p[0]].ip, l.hosts[p[1]].ip, lose(thousandths))...)
		}
		return l.faults.set(rules...)
	}
}

// delaying returns a fault that delays packets in each direction between two hosts.
func delaying(d time.Duration, one, other string) func(*lab) error {
	return func(l *lab) error {
		a, b := l.hosts[one], l.hosts[other]
		return l.faults.delay(d, 0, [2]*host{a, b}, [2]*host{b, a})
	}
}

func edge(client, server string, causes []string) []truth {
	return []truth{{client: client, server: server, causes: causes}}
}

// way is a way in which answers can be wrong.
type way string

const (
	missed     way = "missed"      // an edge or a cause that a view did not name
	falseAlarm way = "false alarm" // one that it had not to name
	harmless   way = "harmless"    // a verdict on a call that was neither slow nor failed
	unmatched  way = "unmatched"   // client spans that found no connection
)

// unproven are the ways in which a case may be wrong that no run has shown to be
// right yet.
var unproven = []way{missed, falseAlarm, harmless, unmatched}

// proven are the cases that were right, and must stay so.
var proven = []string{
	"clean", "loss-orders", "sleep", "loss-nginx", "proxy", "loss-behind-proxy", "loss-db", "loss-cache", "refused", "swallowed", "reset-mid-answer", "burst", "short-burst",
	"delay", "ipv6-loss", "virtual-loss", "stopped", "own-timeout", "idle-pool", "idle-client",
	"ipv6", "virtual", "virtual-swallowed", "masquerade-loss", "dns-slow", "dns-fails", "egress-cap", "probes", "clock-loss",
	"sleep-beside-loss", "price-six", "dns-silent", "paced-bulk", "proxy-closes", "clock", "node",
	"loss-replies", "large-packets", "policer", "forgotten", "price-sleeps", "jitter", "accept-queue", "pauses", "two-on-one-address", "two-faults",
	"blackout", "unreachable", "crash", "db-sleeps", "cache-stopped", "proxy-refused", "proxy-pauses", "client-pauses", "narrow", "three-ms", "delay-db", "delay-behind-proxy",
	"few-connects", "few-answered", "upload-cap", "loss-upload", "dns-lossy", "masquerade", "two-lossy-edges", "dead-path", "step", "cut-silently", "mesh",
	"lossy-path", "no-such-name", "large-answers",
}

// cases returns the truth table.
func cases() []trial {
	all := table()
	for i := range all {
		if !slices.Contains(proven, all[i].name) {
			all[i].known = unproven
		}
	}
	return all
}

func table() []trial {
	return []trial{
		{name: "clean", story: "nothing is wrong", paths: []string{order, order, priceOne, orderDB}, seconds: 40, short: 5, long: 300},
		{
			name: "loss-orders", story: "2% loss between api and orders", paths: []string{order + "?size=4000"}, seconds: 20, short: 5, least: 120, perSecond: 20,
			begin: losing(20, [2]string{"api", "orders"}), want: edge("api", "orders", loss),
		},
		{
			name: "sleep-beside-loss", story: "orders sleeps 600 ms; 1.5% loss beside it harms few", paths: []string{orderDB + "&sleep=600"}, seconds: 20,
			begin: losing(15, [2]string{"api", "orders"}), want: []truth{{client: "api", server: "orders", causes: loss, may: true}},
		},
		{name: "sleep", story: "orders sleeps 600 ms: the code", paths: []string{orderDB + "&sleep=600"}, seconds: 15},
		{
			name: "loss-nginx", story: "5% loss between nginx, which has no SDK, and api", paths: []string{orderDB}, seconds: 20,
			begin: losing(50, [2]string{"nginx", "api"}), want: []truth{{client: "nginx", server: "api", causes: loss, spanless: true}},
		},
		{
			name: "proxy", story: "api asks orders through nginx; nothing is wrong", paths: []string{orderDB + "&via=nginx"}, seconds: 15,
		},
		{
			name: "loss-behind-proxy", story: "api asks orders through nginx; 5% loss between nginx and orders", paths: []string{orderDB + "&via=nginx"}, seconds: 20,
			begin: losing(50, [2]string{"nginx", "orders"}), want: []truth{{client: "nginx", server: "orders", causes: loss, spanless: true}, {client: "api", server: "orders", causes: loss, may: true}},
		},
		{
			name: "loss-db", story: "5% loss to PostgreSQL, by host name", paths: []string{orderDB + "&size=4000"}, seconds: 20,
			begin: losing(50, [2]string{"orders", "db"}), want: edge("orders", "db", loss),
		},
		{
			name: "loss-cache", story: "5% loss to Redis, by host name", paths: []string{"/order/%d?parts=cache&size=4000"}, seconds: 20,
			begin: losing(50, [2]string{"orders", "cache"}), want: edge("orders", "cache", loss),
		},
		{
			name: "refused", story: "nothing listens at the port that orders asks", paths: []string{orderStock + "&stock=stock:3999"}, seconds: 12, short: 3,
			want: edge("orders", "stock", refused),
		},
		{
			name: "swallowed", story: "SYNs from orders to stock are dropped", paths: []string{orderStock}, seconds: 20,
			begin: func(l *lab) error { return l.faults.set(oneWay(l.hosts["orders"].ip, l.hosts["stock"].ip, swallow)) },
			want:  edge("orders", "stock", append([]string{"slow handshake"}, swallowed...)),
		},
		{
			name: "reset-mid-answer", story: "connections are reset in the middle of an answer", paths: []string{orderStock + "&size=60000"}, seconds: 15,
			begin: func(l *lab) error {
				return l.faults.set(oneWay(l.hosts["orders"].ip, l.hosts["stock"].ip, "tcp dport 3000 tcp flags & (syn | fin | rst) == 0 numgen random mod 1000 < 15 reject with tcp reset"))
			},
			want: edge("orders", "stock", reset),
		},
		{
			name: "price-six", story: "six gRPC calls at a time on one connection; 3% loss", paths: []string{priceOne + "?calls=6"}, seconds: 20,
			begin: losing(30, [2]string{"api", "price"}), want: edge("api", "price", loss),
		},
		{
			name: "burst", story: "one pooled connection, loss only in the middle third", paths: []string{priceOne + "?calls=2"}, seconds: 45, long: 120,
			during: middle(func(l *lab) error { return losing(80, [2]string{"api", "price"})(l) }), want: edge("api", "price", loss),
		},
		{
			name: "short-burst", story: "10% loss for a tenth of the time", paths: []string{orderDB}, seconds: 60, long: 540,
			during: func(ctx context.Context, l *lab, d time.Duration) error {
				return l.between(ctx, d*45/100, d/10, losing(100, [2]string{"orders", "db"}))
			},
			want: edge("orders", "db", loss),
		},
		{
			name: "delay", story: "80 ms more between api and orders", paths: []string{orderDB}, seconds: 20,
			begin: delaying(40*time.Millisecond, "api", "orders"),
			want:  edge("api", "orders", slow),
		},
		{
			name: "jitter", story: "60 to 120 ms more from stock to orders, nothing on the way there", paths: []string{orderStock}, seconds: 20,
			begin: func(l *lab) error {
				return l.faults.delay(60*time.Millisecond, 60*time.Millisecond, [2]*host{l.hosts["stock"], l.hosts["orders"]})
			},
			want: edge("orders", "stock", slow),
		},
		{
			name: "loss-replies", story: "5% loss from stock to orders, none on the way there", paths: []string{orderStock + "&size=4000"}, seconds: 20,
			begin: func(l *lab) error { return l.faults.set(oneWay(l.hosts["stock"].ip, l.hosts["orders"].ip, lose(50))) },
			want:  edge("orders", "stock", loss),
		},
		{
			name: "large-packets", story: "a tunnel drops packets above 1,000 bytes from stock, and says so to nobody", paths: []string{orderStock + "&size=4000", orderDB}, seconds: 35, perSecond: 2,
			begin: func(l *lab) error {
				return l.faults.set(oneWay(l.hosts["stock"].ip, l.hosts["orders"].ip, "meta length > 1000 drop"))
			},
			want: edge("orders", "stock", loss),
		},
		{
			name: "policer", story: "a policer drops what stock sends to orders above 400 kB a second", paths: []string{orderStock + "&size=120000"}, seconds: 25, perSecond: 5,
			begin: func(l *lab) error {
				return l.faults.set(oneWay(l.hosts["stock"].ip, l.hosts["orders"].ip, "limit rate over 400 kbytes/second burst 30 kbytes drop"))
			},
			want: edge("orders", "stock", capped),
		},
		{
			name: "forgotten", story: "a firewall forgets pooled connections, and resets requests on them", paths: []string{orderStock + "&pool=1"}, seconds: 20,
			begin: func(l *lab) error {
				return l.faults.set(oneWay(l.hosts["orders"].ip, l.hosts["stock"].ip, "tcp dport 3000 tcp flags & (syn | fin | rst | psh) == psh numgen random mod 1000 < 60 reject with tcp reset"))
			},
			want: edge("orders", "stock", reset),
		},
		{
			name: "price-sleeps", story: "six gRPC calls at a time on one connection; price sleeps 400 ms: the code", paths: []string{priceOne + "?calls=6&sleep=400"}, seconds: 15, perSecond: 3,
		},
		{
			name: "pauses", story: "orders stops for two seconds, as a garbage collection does", paths: []string{orderDB}, seconds: 24,
			during: func(ctx context.Context, l *lab, d time.Duration) error {
				return l.freeze(ctx, "orders", d/3, 2*time.Second)
			},
			want: []truth{{client: "api", server: "orders", causes: append(append([]string{}, notRead...), queueFull...), may: true}},
		},
		{
			name: "ipv6", story: "orders asks stock over IPv6, which no resource names", paths: []string{orderStock + "&stock=stock6:3000"}, seconds: 15,
		},
		{
			name: "ipv6-loss", story: "4% loss between orders and stock over IPv6", paths: []string{orderStock + "&stock=stock6:3000&size=4000"}, seconds: 20,
			begin: func(l *lab) error {
				return l.faults.set(both(l.hosts["orders"].ip6, l.hosts["stock"].ip6, lose(40))...)
			},
			want: edge("orders", "stock", loss),
		},
		{
			name: "virtual", story: "stock behind a virtual address, as kube-proxy makes it", paths: []string{orderStock + "&stock=stock-service"}, seconds: 15,
		},
		{
			name: "virtual-loss", story: "4% loss behind the virtual address", paths: []string{orderStock + "&stock=stock-service&size=4000"}, seconds: 20,
			begin: losing(40, [2]string{"orders", "stock"}), want: edge("orders", "stock", loss),
		},
		{
			name: "virtual-swallowed", story: "SYNs to the virtual address are dropped", paths: []string{orderStock + "&stock=stock-service"}, seconds: 20,
			begin: func(l *lab) error { return l.faults.set(oneWay(l.hosts["orders"].ip, l.hosts["stock"].ip, swallow)) },
			want:  edge("orders", "stock", append([]string{"slow handshake"}, swallowed...)),
		},
		{
			name: "masquerade-loss", story: "the node hides orders behind its own address; 4% loss to stock", paths: []string{orderStock + "&size=4000"}, seconds: 20,
			begin: func(l *lab) error {
				orders, stock := l.hosts["orders"].ip, l.hosts["stock"].ip
				hide := masquerade + fmt.Sprintf("ip saddr %s ip daddr %s masquerade", orders, stock)
				return l.faults.set(append(both(orders, stock, lose(40)), hide)...)
			},
			want: edge("orders", "stock", loss),
		},
		{
			name: "two-faults", story: "loss to PostgreSQL, and stock refuses", paths: []string{orderDB, orderStock + "&stock=stock:3999"}, seconds: 20,
			begin: losing(50, [2]string{"orders", "db"}), want: append(edge("orders", "db", loss), edge("orders", "stock", refused)...),
		},
		{
			name: "dns-slow", story: "the resolver takes 700 ms for orders", paths: []string{orderStock}, seconds: 15,
			begin: func(l *lab) error { return l.dns.trouble(l.hosts["orders"], 700*time.Millisecond, 0, false) },
			want:  edge("orders", "stock", slowDNS),
		},
		{
			name: "dns-fails", story: "the resolver answers SERVFAIL to orders", paths: []string{orderStock}, seconds: 15,
			begin: func(l *lab) error { return l.dns.trouble(l.hosts["orders"], 0, dnsmessage.RCodeServerFailure, false) },
			want:  edge("orders", "stock", failingDNS),
		},
		{
			name: "dns-silent", story: "the resolver does not answer orders", paths: []string{orderStock}, seconds: 25,
			begin: func(l *lab) error { return l.dns.trouble(l.hosts["orders"], 0, 0, true) },
			want:  edge("orders", "stock", append(append([]string{}, failingDNS...), slowDNS...)),
		},
		{
			name: "stopped", story: "price is stopped for some seconds and reads nothing", paths: []string{priceOne + "?calls=2"}, seconds: 20,
			during: func(ctx context.Context, l *lab, d time.Duration) error { return l.freeze(ctx, "price", d/4, d/3) },
			want:   edge("api", "price", notRead),
		},
		{
			name: "accept-queue", story: "reports is stopped, and its accept queue is full", paths: []string{"/report?%d"}, seconds: 25, perSecond: 6, atOnce: 12,
			during: func(ctx context.Context, l *lab, d time.Duration) error { return l.freeze(ctx, "reports", d/6, d/2) },
			want:   edge("api", "reports", queueFull),
		},
		{
			name: "own-timeout", story: "api gives up after 300 ms, while orders sleeps 600 ms", paths: []string{orderDB + "&sleep=600&timeout=300"}, seconds: 15,
		},
		{
			name: "idle-pool", story: "pooled connections that stock closes after five idle seconds", paths: []string{orderStock + "&pool=1"}, seconds: 45, perSecond: 0.15, atOnce: 1,
		},
		{
			name: "idle-client", story: "clients close first, and the server keeps its end open", paths: []string{orderDB}, seconds: 30,
			during: halfClosed,
		},
		{
			name: "egress-cap", story: "stock's egress is capped at 4 Mbit/s, and its answers are large", paths: []string{orderStock + "&size=120000"}, seconds: 25, perSecond: 5,
			begin: func(l *lab) error { return l.throttle("stock") },
			want:  edge("orders", "stock", capped),
		},
		{
			name: "probes", story: "health probes connect, ask and reset", paths: []string{orderDB}, seconds: 20, during: probes,
		},
		{
			name: "paced-bulk", story: "a bulk transfer that the receiver paces", paths: []string{orderDB}, seconds: 25, during: bulk,
		},
		{
			name: "proxy-closes", story: "nginx renews its connections to api under load", paths: []string{priceOne}, seconds: 15, perSecond: 40, atOnce: 8,
		},
		{
			name: "clock", story: "stock's clock is 400 ms ahead; nothing is wrong", paths: []string{orderStock}, seconds: 15,
			begin: func(l *lab) error { return l.restart("stock", "+0.4s") },
		},
		{
			name: "clock-loss", story: "stock's clock is 400 ms ahead; 4% loss to it", paths: []string{orderStock + "&size=4000"}, seconds: 20,
			begin: func(l *lab) error { return losing(40, [2]string{"orders", "stock"})(l) }, want: edge("orders", "stock", loss),
		},
		{
			name: "node", story: "5% loss on everything that orders sends or receives", paths: []string{order + "?size=4000"}, seconds: 25,
			begin: losing(50, [2]string{"orders", "api"}, [2]string{"orders", "db"}, [2]string{"orders", "cache"}, [2]string{"orders", "stock"}, [2]string{"orders", "dns"}),
			want:  []truth{{client: "orders", server: "db", causes: loss}, {client: "orders", server: "cache", causes: loss}, {client: "orders", server: "stock", causes: loss}, {client: "api", server: "orders", causes: loss}, {client: "orders", server: "stock", causes: slowDNS, may: true}},
			anyOf: true,
		},
		{
			name: "blackout", story: "every packet between orders and stock is lost for six seconds", paths: []string{orderStock + "&pool=1"}, seconds: 24,
			during: func(ctx context.Context, l *lab, d time.Duration) error {
				return l.between(ctx, d/3, 6*time.Second, losing(1000, [2]string{"orders", "stock"}))
			},
			want: edge("orders", "stock", loss),
		},
		{
			name: "unreachable", story: "a firewall answers connects from orders to stock with ICMP: administratively prohibited", paths: []string{orderStock}, seconds: 15,
			begin: func(l *lab) error {
				return l.faults.set(oneWay(l.hosts["orders"].ip, l.hosts["stock"].ip, "tcp flags & (syn | ack) == syn reject with icmp type admin-prohibited"))
			},
			want: edge("orders", "stock", slices.Concat(refused, swallowed)),
		},
		{
			name: "crash", story: "stock is killed, and comes back after four seconds", paths: []string{orderStock + "&pool=1"}, seconds: 20,
			during: func(ctx context.Context, l *lab, d time.Duration) error {
				return l.crash(ctx, "stock", 3000, d/3, 4*time.Second)
			},
			want: edge("orders", "stock", slices.Concat(refused, reset)),
		},
		{
			name: "db-sleeps", story: "queries take 300 ms in PostgreSQL: no network", paths: []string{orderDB + "&dbsleep=300"}, seconds: 15,
		},
		{
			name: "cache-stopped", story: "Redis is stopped for some seconds and reads nothing", paths: []string{"/order/%d?parts=cache&size=4000"}, seconds: 20,
			during: func(ctx context.Context, l *lab, d time.Duration) error { return l.freeze(ctx, "cache", d/4, d/3) },
			want:   edge("orders", "cache", notRead),
		},
		{
			name: "proxy-refused", story: "nginx cannot connect to orders: refused", paths: []string{orderDB + "&via=nginx"}, seconds: 15,
			begin: func(l *lab) error {
				return l.faults.set(oneWay(l.hosts["nginx"].ip, l.hosts["orders"].ip, "tcp dport 8000 reject with tcp reset"))
			},
			want: []truth{{client: "nginx", server: "orders", causes: slices.Concat(refused, reset), spanless: true}},
		},
		{
			name: "proxy-pauses", story: "nginx stops for two seconds", paths: []string{orderDB + "&via=nginx"}, seconds: 24,
			during: func(ctx context.Context, l *lab, d time.Duration) error {
				return l.freeze(ctx, "nginx", d/3, 2*time.Second)
			},
			want: []truth{{client: "api", server: "nginx", causes: slices.Concat(notRead, queueFull), may: true}, {client: "api", server: "orders", causes: slices.Concat(notRead, queueFull), may: true}, {client: "visitors", server: "nginx", causes: notRead, may: true}},
		},
		{
			name: "client-pauses", story: "api stops for two seconds", paths: []string{orderDB, priceOne}, seconds: 24,
			during: func(ctx context.Context, l *lab, d time.Duration) error {
				return l.freeze(ctx, "api", d/3, 2*time.Second)
			},
			want: []truth{{client: "nginx", server: "api", causes: slices.Concat(notRead, queueFull), may: true}},
		},
		{
			name: "narrow", story: "a hop takes packets of 1,000 bytes at most, and says so", paths: []string{orderStock + "&size=4000"}, seconds: 15,
			begin: func(l *lab) error { return l.narrow("orders", 1000) },
			want:  []truth{{client: "orders", server: "stock", causes: loss, may: true}}, // the first answer is sent twice
		},
		{
			name: "three-ms", story: "3 ms more in each direction between api and orders", paths: []string{orderDB}, seconds: 15,
			begin: delaying(3*time.Millisecond, "api", "orders"),
		},
		{
			name: "delay-db", story: "80 ms more between orders and PostgreSQL, on connections that stay open", paths: []string{orderDB}, seconds: 20,
			begin: delaying(40*time.Millisecond, "orders", "db"),
			want:  edge("orders", "db", slow),
		},
		{
			name: "delay-behind-proxy", story: "80 ms more between nginx and orders", paths: []string{orderDB + "&via=nginx"}, seconds: 20,
			begin: delaying(40*time.Millisecond, "nginx", "orders"),
			want:  []truth{{client: "nginx", server: "orders", causes: slow, spanless: true}, {client: "api", server: "orders", causes: slow, may: true}},
		},
		{
			name: "few-connects", story: "half of the SYNs from orders to stock are dropped", paths: []string{orderStock}, seconds: 20,
			begin: func(l *lab) error {
				return l.faults.set(oneWay(l.hosts["orders"].ip, l.hosts["stock"].ip, "tcp flags & (syn | ack) == syn "+lose(500)))
			},
			want: edge("orders", "stock", slices.Concat(loss, swallowed)),
		},
		{
			name: "loss-upload", story: "4% of what orders sends to Redis is lost, in large values", paths: []string{"/order/%d?parts=cache&size=60000"}, seconds: 20,
			begin: func(l *lab) error { return l.faults.set(oneWay(l.hosts["orders"].ip, l.hosts["cache"].ip, lose(40))) },
			want:  edge("orders", "cache", loss),
		},
		{
			name: "no-such-name", story: "orders asks a name that does not exist", paths: []string{orderStock + "&stock=nowhere:3000"}, seconds: 12,
			want: edge("orders", "nowhere", failingDNS),
		},
		{
			name: "dns-lossy", story: "40% of the packets between orders and its resolver are lost", paths: []string{orderStock}, seconds: 30,
			begin: func(l *lab) error {
				orders, dns := l.hosts["orders"].ip, l.hosts["dns"].ip
				return l.faults.set(both(orders, dns, "udp sport != 0 "+lose(400))...)
			},
			want: edge("orders", "stock", slices.Concat(failingDNS, slowDNS)),
		},
		{
			name: "masquerade", story: "the node hides orders behind its own address; nothing is wrong", paths: []string{orderStock}, seconds: 15,
			begin: func(l *lab) error {
				return l.faults.set(masquerade + fmt.Sprintf("ip saddr %s ip daddr %s masquerade", l.hosts["orders"].ip, l.hosts["stock"].ip))
			},
		},
		{
			name: "two-lossy-edges", story: "6% loss between nginx and api, and between orders and PostgreSQL", paths: []string{orderDB + "&size=4000"}, seconds: 25,
			begin: losing(60, [2]string{"nginx", "api"}, [2]string{"orders", "db"}),
			want:  append(edge("orders", "db", loss), truth{client: "nginx", server: "api", causes: loss, spanless: true}),
		},
		{
			name: "dead-path", story: "one of eight equal paths to stock is dead: connections whose port chooses it", paths: []string{orderStock}, seconds: 25,
			begin: func(l *lab) error {
				return l.faults.set(oneWay(l.hosts["orders"].ip, l.hosts["stock"].ip, "tcp sport & 14 == 6 drop"))
			},
			want: edge("orders", "stock", slices.Concat(loss, swallowed)),
		},
		{
			name: "lossy-path", story: "one of four equal paths to stock loses 20% of its packets", paths: []string{orderStock + "&size=4000"}, seconds: 25,
			begin: func(l *lab) error {
				orders, stock := l.hosts["orders"].ip, l.hosts["stock"].ip
				return l.faults.set(oneWay(orders, stock, "tcp sport & 6 == 2 "+lose(200)), oneWay(stock, orders, "tcp dport & 6 == 2 "+lose(200)))
			},
			want: append(edge("orders", "stock", loss), truth{client: "orders", server: "stock", causes: reset, may: true}), // of a call that took too long
		},
		{
			name: "step", story: "80 ms more from the middle on, between api and price", paths: []string{priceOne + "?calls=2"}, seconds: 24,
			during: func(ctx context.Context, l *lab, d time.Duration) error {
				if !after(ctx, d/2) {
					return nil
				}
				l.faultFrom = time.Now()
				return delaying(40*time.Millisecond, "api", "price")(l)
			},
			want: edge("api", "price", slow),
		},
		{
			name: "cut-silently", story: "a firewall forgets pooled connections in the middle, and drops their packets", paths: []string{orderStock + "&pool=1"}, seconds: 30,
			during: func(ctx context.Context, l *lab, d time.Duration) error {
				return l.cutSilently(ctx, d/3)
			},
			want: edge("orders", "stock", loss),
		},
		{
			name: "large-answers", story: "answers of 2 MB beside small ones; receivers take their time", paths: []string{orderStock + "&size=2000000", orderStock}, seconds: 20, perSecond: 6,
			want: []truth{
				{client: "orders", server: "stock", causes: notRead, may: true},
				{client: "api", server: "orders", causes: notRead, may: true},
				{client: "nginx", server: "api", causes: notRead, may: true},
				{client: "visitors", server: "nginx", causes: notRead, may: true},
			},
		},
		{
			name: "few-answered", story: "half of the SYN-ACKs from stock to orders are dropped", paths: []string{orderStock}, seconds: 20,
			begin: func(l *lab) error {
				return l.faults.set(oneWay(l.hosts["stock"].ip, l.hosts["orders"].ip, "tcp flags & (syn | ack) == (syn | ack) "+lose(500)))
			},
			want: edge("orders", "stock", slices.Concat(loss, swallowed)),
		},
		{
			name: "far-timeout", story: "240 ms more between api and orders, and api gives up after 300 ms", paths: []string{orderDB + "&timeout=300"}, seconds: 20,
			begin: delaying(120*time.Millisecond, "api", "orders"),
			want:  edge("api", "orders", slow),
		},
		{
			name: "upload-cap", story: "orders' egress is capped at 4 Mbit/s, and it stores large values in Redis", paths: []string{"/order/%d?parts=cache&size=100000"}, seconds: 25, perSecond: 2,
			begin: func(l *lab) error { return l.throttle("orders") },
			want:  append(edge("orders", "cache", capped), truth{client: "api", server: "orders", causes: capped, may: true}),
		},
		{
			name: "mesh", story: "sidecars redirect what orders and stock say to each other; nothing is wrong", paths: []string{orderStock}, seconds: 15, during: mesh,
		},
		{
			name: "mesh-loss", story: "sidecars beside orders and stock; 5% loss between them", paths: []string{orderStock + "&size=4000"}, seconds: 20, during: mesh,
			begin: losing(50, [2]string{"orders", "stock"}), want: []truth{{client: "orders", server: "sidecar", causes: loss, spanless: true}, {client: "orders", server: "stock", causes: loss, may: true}},
		},
		{
			name: "mesh-delay", story: "sidecars beside orders and stock; 80 ms more between them", paths: []string{orderStock}, seconds: 20, during: mesh,
			begin: delaying(40*time.Millisecond, "orders", "stock"),
			want:  append(edge("orders", "stock", slow), truth{client: "orders", server: "sidecar", causes: slow, may: true}),
		},
		// The last, because views know an address by its services of the whole hour.
		{
			name: "two-on-one-address", story: "ledger listens beside stock, at another port of its host; 5% loss to that port", paths: []string{orderStock + "&size=4000", orderStock + "&size=4000&stock=stock:4000"}, seconds: 20,
			begin: func(l *lab) error {
				if err := l.startLedger(); err != nil {
					return err
				}
				orders, stock := l.hosts["orders"].ip, l.hosts["stock"].ip
				return l.faults.set(oneWay(orders, stock, "tcp dport 4000 "+lose(50)), oneWay(stock, orders, "tcp sport 4000 "+lose(50)))
			},
			want: edge("orders", "ledger", loss),
		},
	}
}

// between runs a fault for some time, after some time.
func (l *lab) between(ctx context.Context, from, long time.Duration, fault func(*lab) error) error {
	if !after(ctx, from) {
		return nil
	}
	if err := fault(l); err != nil {
		return err
	}
	l.faultFrom = time.Now()
	after(ctx, long)
	l.faultUntil = time.Now()
	return l.faults.heal()
}

// middle returns a fault for the middle third of the time.
func middle(fault func(*lab) error) func(context.Context, *lab, time.Duration) error {
	return func(ctx context.Context, l *lab, d time.Duration) error { return l.between(ctx, d/3, d/3, fault) }
}

// freeze stops a program for some time, after some time.
func (l *lab) freeze(ctx context.Context, name string, from, long time.Duration) error {
	if !after(ctx, from) {
		return nil
	}
	l.faultFrom = time.Now()
	if err := l.programs[name].signal(syscall.SIGSTOP); err != nil {
		return err
	}
	after(ctx, long)
	l.faultUntil = time.Now()
	return l.programs[name].signal(syscall.SIGCONT)
}

// crash kills a program, and starts it again after a while.
func (l *lab) crash(ctx context.Context, name string, port int, from, long time.Duration) error {
	if !after(ctx, from) {
		return nil
	}
	l.faultFrom = time.Now()
	old := l.programs[name]
	if err := old.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-old.done
	after(ctx, long)
	err := l.launchAt(name, l.hosts[name], port, old.env, old.argv)
	l.faultUntil = time.Now()
	return err
}

// throttle limits what a host sends to 4 Mbit/s.
func (l *lab) throttle(name string) error {
	return l.hosts[name].run("", "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", "4mbit", "burst", "16kb", "latency", "200ms")
}

// narrow makes the node's way to a host take packets of so many bytes. The node says so to
// the senders of larger ones, which remember it for ten minutes: see widen.
func (l *lab) narrow(name string, bytes int) error {
	h := l.hosts[name]
	return namespaces.Feed(fmt.Sprintf("route replace %s/32 dev %s mtu %d\n", h.ip, h.device(), bytes), "ip", "-batch", "-")
}

// widen undoes narrow.
func (l *lab) widen(name string) error {
	if err := l.narrow(name, 1500); err != nil {
		return err
	}
	for _, h := range l.hosts {
		if err := h.run("", "ip", "route", "flush", "cache"); err != nil {
			return err
		}
	}
	return nil
}

// cutSilently drops the packets of the connections from orders to stock that are open after a
// while.
func (l *lab) cutSilently(ctx context.Context, from time.Duration) error {
	if !after(ctx, from) {
		return nil
	}
	l.faultFrom = time.Now()
	orders, stock := l.hosts["orders"], l.hosts["stock"]
	var out strings.Builder
	if err := namespaces.Enter(orders.pid(), func() error {
		cmd := exec.Command("ss", "-Htn", "state", "established", "dst", stock.ip.String()) //nolint:gosec // an address of the lab
		cmd.Stdout = &out
		return cmd.Run()
	}); err != nil {
		return err
	}
	var rules []string
	for line := range strings.Lines(out.String()) {
		fields := strings.Fields(line)
		_, port, _ := net.SplitHostPort(fields[2])
		rules = append(rules, oneWay(orders.ip, stock.ip, "tcp sport "+port+" drop"), oneWay(stock.ip, orders.ip, "tcp dport "+port+" drop"))
	}
	return l.faults.set(rules...)
}

// restart starts a service again, with a clock that is off.
func (l *lab) restart(name, offset string) error {
	old := l.programs[name]
	if err := old.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-old.done:
	case <-time.After(5 * time.Second): // the SDK of Node handles the signal, and does not end the program
		if err := old.signal(syscall.SIGKILL); err != nil {
			return err
		}
		<-old.done
	}
	found, err := filepath.Glob(filepath.Join(l.o.programs, "debian/usr/lib/*/faketime/libfaketimeMT.so.1"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("find libfaketime: %d files, %w", len(found), err)
	}
	library, err := filepath.Abs(found[0])
	if err != nil {
		return err
	}
	env := append(old.env, "LD_PRELOAD="+library, "FAKETIME="+offset, "FAKETIME_DONT_FAKE_MONOTONIC=1")
	return l.launchAt(name, l.hosts[name], 3000, env, old.argv)
}

// launchAt launches a program and waits until it listens at a port of its host.
func (l *lab) launchAt(name string, at *host, port int, env, argv []string) error {
	if err := l.launch(name, at, 0, env, argv...); err != nil {
		return err
	}
	return l.await(name, func() error { return l.listening(at, port) })
}

// startLedger starts a second service on stock's host.
func (l *lab) startLedger() error {
	if l.programs["ledger"] != nil {
		return nil
	}
	stock := l.programs["stock"]
	return l.launchAt("ledger", l.hosts["stock"], 4000, append(stock.env, "OTEL_SERVICE_NAME=ledger", "PORT=4000"), stock.argv)
}

// halfClosed makes connections that the client ends at once and whose other end
// the server keeps, as an idle pool does that nobody looks at.
func halfClosed(ctx context.Context, l *lab, _ time.Duration) error {
	listener, err := l.hosts["sink"].listen(7000)
	if err != nil {
		return err
	}
	defer listener.Close()
	var mu sync.Mutex
	var kept []net.Conn
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range kept {
			_ = c.Close()
		}
	}()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			kept = append(kept, c)
			mu.Unlock()
		}
	}()
	for after(ctx, time.Second) {
		c, err := l.hosts["batch"].dial(fmt.Sprintf("%s:7000", l.hosts["sink"].ip))
		if err != nil {
			return err
		}
		_, err = c.Write([]byte("hello"))
		if err := c.Close(); err != nil {
			return err
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// probes does what a kubelet does: it connects and resets, or asks for a health
// page, every second.
func probes(ctx context.Context, l *lab, _ time.Duration) error {
	for after(ctx, time.Second) {
		for name, port := range map[string]int{"api": 3000, "orders": 8000, "stock": 3000, "db": 5432, "cache": 6379, "price": 50051} {
			c, err := net.Dial("tcp", netip.AddrPortFrom(l.hosts[name].ip, uint16(port)).String())
			if err != nil {
				return err
			}
			if port == 3000 || port == 8000 {
				if _, err := io.WriteString(c, "GET /health HTTP/1.0\r\n\r\n"); err == nil {
					_ = c.SetReadDeadline(time.Now().Add(time.Second))
					_, _ = io.Copy(io.Discard, c)
				}
			} else if t, ok := c.(*net.TCPConn); ok {
				_ = t.SetLinger(0) // closes with a reset
			}
			_ = c.Close()
		}
	}
	return nil
}

// bulk sends as fast as the receiver reads, which is a megabyte a second.
func bulk(ctx context.Context, l *lab, _ time.Duration) error {
	listener, err := l.hosts["sink"].listen(7001)
	if err != nil {
		return err
	}
	defer listener.Close()
	go func() {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for after(ctx, 100*time.Millisecond) {
			if _, err := io.CopyN(io.Discard, c, 100_000); err != nil {
				return
			}
		}
		_, _ = io.Copy(io.Discard, c) // a close before all is read would reset the connection
	}()
	c, err := l.hosts["batch"].dial(fmt.Sprintf("%s:7001", l.hosts["sink"].ip))
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })
	defer stop()
	chunk := make([]byte, 64<<10)
	for {
		if _, err := c.Write(chunk); err != nil {
			return nil // the time is over
		}
	}
}

// healAll ends every fault.
func (l *lab) healAll() error {
	if err := l.dns.trouble(nil, 0, 0, false); err != nil {
		return err
	}
	if err := l.widen("orders"); err != nil {
		return err
	}
	for _, name := range []string{"stock", "orders"} {
		_ = l.hosts[name].run("", "tc", "qdisc", "del", "dev", "eth0", "root") // there may be none
	}
	return l.faults.heal()
}
