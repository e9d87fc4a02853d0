package clickhouse

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// now is the time of the events in these tests: within the last hour, as long as all tests
// of the package may take, so that views over the last hour include them.
var now = time.Now().UTC().Truncate(time.Minute).Add(-2 * time.Minute)

// spanRow has the columns of spans_local that the join needs.
type spanRow struct {
	id, parent, service, kind string
	ip, peer                  string
	port, peerPort            int
	uid, cluster, status      string
	at, took                  time.Duration
}

// flowRow is a row of flows_local. By default it covers the minute from now on.
type flowRow struct {
	role, ip, peer                             string
	port, peerPort                             int
	uid, cluster                               string
	from, to                                   time.Duration
	failures, resets, timeouts                 int
	segments, retransmits, retransmitted, busy int
	window                                     int
}

func insertSpans(t *testing.T, d *DB, trace string, spans ...spanRow) {
	t.Helper()
	for _, s := range spans {
		if s.took == 0 {
			s.took = 10 * time.Millisecond
		}
		if s.status == "" {
			s.status = "unset"
		}
		mustExec(t, d, fmt.Sprintf(`INSERT INTO %s.spans_local (trace_id, span_id, parent_span_id, service_name, name, kind, start_time, duration_ns, status_code,
			ip, port, peer_ip, peer_port, origin) VALUES ('%s', '%s', '%s', '%s', 'call', '%s', fromUnixTimestamp64Nano(%d), %d, '%s', toIPv6('%s'), %d, toIPv6('%s'), %d, '{"pod_uid":"%s","cluster":"%s"}')`,
			d.cfg.Database, trace, id16(s.id), id16(s.parent), s.service, s.kind, now.Add(s.at).UnixNano(), s.took.Nanoseconds(), s.status,
			address(s.ip), s.port, address(s.peer), s.peerPort, s.uid, s.cluster))
	}
}

func insertConns(t *testing.T, d *DB, conns ...flowRow) {
	t.Helper()
	for i, c := range conns {
		if c.to == 0 {
			c.to = time.Minute
		}
		if c.segments == 0 {
			c.segments = 100
		}
		mustExec(t, d, fmt.Sprintf(`INSERT INTO %s.flows_local (time, start_time, role, ip, port, peer_ip, peer_port, connection, connections, connect_failures, resets, timeouts,
			bytes_sent, bytes_received, segments_sent, retransmits, retransmitted_bytes, rtt_us, rtt_min_us, receive_window_limited_us, busy_us, pod_uid, cluster)
			VALUES (fromUnixTimestamp64Nano(%d), fromUnixTimestamp64Nano(%d), '%s', toIPv6('%s'), %d, toIPv6('%s'), %d, %d, 1, %d, %d, %d, 1000, 2000, %d, %d, %d, 300, 200, %d, %d, '%s', '%s')`,
			d.cfg.Database, now.Add(c.to).UnixNano(), now.Add(c.from).UnixNano(), c.role, address(c.ip), c.port, address(c.peer), c.peerPort, i,
			c.failures, c.resets, c.timeouts, c.segments, c.retransmits, c.retransmitted, c.window, c.busy, c.uid, c.cluster))
	}
}

// id16 returns a span id made of one letter; the empty id stays empty.
func id16(letter string) string { return strings.Repeat(letter, 16) }

// address returns :: for an unknown address.
func address(a string) string {
	if a == "" {
		return "::"
	}
	return a
}

// The test call goes from a (10.0.0.1) to b (10.0.0.2:80).
const (
	a = "10.0.0.1"
	b = "10.0.0.2"
)

func TestTraceNetwork(t *testing.T) {
	cfg := testConfig(t)
	d := openDB(t, cfg)
	if err := d.Migrate(t.Context(), Retention{}); err != nil {
		t.Fatal(err)
	}
	client := spanRow{id: "c", service: "shop", kind: "client", ip: a, peer: b, peerPort: 80, took: 30 * time.Millisecond}
	server := spanRow{id: "d", parent: "c", service: "cart", kind: "server", ip: b, port: 80, peer: a, at: 5 * time.Millisecond}
	clean := []flowRow{
		{role: "client", ip: a, port: 40000, peer: b, peerPort: 80},
		{role: "server", ip: b, port: 80, peer: a, peerPort: 40000},
	}
	type result map[string]string // by the letter of a span: how it matched, or why not, and the verdict
	tests := map[string]struct {
		spans []spanRow
		conns []flowRow
		want  result
	}{
		"both ends clean": {
			[]spanRow{client, server},
			clean,
			result{"c": "ip and port/network clean", "d": "ip/network clean"},
		},
		"the response is sent again": {
			[]spanRow{client, server},
			[]flowRow{clean[0], {role: "server", ip: b, port: 80, peer: a, peerPort: 40000, retransmits: 5, retransmitted: 5000}},
			result{"c": "ip and port/retransmission", "d": "ip/retransmission"},
		},
		"only the handshake is sent again": {
			[]spanRow{{id: "c", service: "shop", kind: "client", ip: a, peer: b, peerPort: 80, took: 1030 * time.Millisecond}},
			[]flowRow{{role: "client", ip: a, peer: b, peerPort: 80, retransmits: 2, segments: 3}},
			result{"c": "ip and port/slow handshake"},
		},
		"a handshake is sent again, and the call took less than that does": {
			[]spanRow{client},
			[]flowRow{{role: "client", ip: a, peer: b, peerPort: 80, retransmits: 2, segments: 3}},
			result{"c": "ip and port/network clean"},
		},
		"the receiver does not read": {
			[]spanRow{client, server},
			[]flowRow{{role: "client", ip: a, peer: b, peerPort: 80, busy: 100_000, window: 90_000}, clean[1]},
			result{"c": "ip and port/receiver's window full", "d": "ip/receiver's window full"},
		},
		"loss fills the receiver's window": {
			[]spanRow{client, server},
			[]flowRow{{role: "client", ip: a, peer: b, peerPort: 80, segments: 60, retransmits: 5, retransmitted: 5000, busy: 100_000, window: 90_000}, clean[1]},
			result{"c": "ip and port/retransmission", "d": "ip/retransmission"},
		},
		"the receiver does not read, and little is lost": {
			[]spanRow{client, server},
			[]flowRow{{role: "client", ip: a, peer: b, peerPort: 80, segments: 100, retransmits: 5, retransmitted: 5000, busy: 100_000, window: 90_000}, clean[1]},
			result{"c": "ip and port/receiver's window full", "d": "ip/receiver's window full"},
		},
		"cut off": {
			[]spanRow{client},
			[]flowRow{{role: "client", ip: a, peer: b, peerPort: 80, resets: 1, to: 40 * time.Millisecond}},
			result{"c": "ip and port/reset"},
		},
		"nobody answers": {
			[]spanRow{client},
			[]flowRow{{role: "client", ip: a, peer: b, peerPort: 80, failures: 1, to: 40 * time.Millisecond}},
			result{"c": "ip and port/connect failed"},
		},
		"timed out": {
			[]spanRow{client},
			[]flowRow{{role: "client", ip: a, peer: b, peerPort: 80, timeouts: 1, to: 40 * time.Millisecond}},
			result{"c": "ip and port/timed out"},
		},
		"another edge of the same client is bad": {
			[]spanRow{client, server},
			append([]flowRow{{role: "client", ip: a, peer: "10.0.0.3", peerPort: 80, retransmits: 50, retransmitted: 1}}, clean...),
			result{"c": "ip and port/network clean", "d": "ip/network clean"},
		},
		"another port of the same server is bad": {
			[]spanRow{client},
			append([]flowRow{{role: "client", ip: a, peer: b, peerPort: 81, resets: 1}}, clean...),
			result{"c": "ip and port/network clean"},
		},
		"cut off long after the span": {
			[]spanRow{client},
			[]flowRow{{role: "client", ip: a, peer: b, peerPort: 80, resets: 1, timeouts: 1, to: 30 * time.Second}},
			result{"c": "ip and port/network clean"},
		},
		"it was bad an hour ago": {
			[]spanRow{client},
			append([]flowRow{{role: "client", ip: a, peer: b, peerPort: 80, resets: 1, from: -61 * time.Minute, to: -time.Hour}}, clean...),
			result{"c": "ip and port/network clean"},
		},
		"clocks disagree by half a second": {
			[]spanRow{client},
			[]flowRow{{role: "client", ip: a, peer: b, peerPort: 80, resets: 1, from: 500 * time.Millisecond, to: 900 * time.Millisecond}},
			result{"c": "ip and port/reset"},
		},
		"clocks disagree the other way": {
			[]spanRow{client},
			[]flowRow{{role: "client", ip: a, peer: b, peerPort: 80, resets: 1, from: -time.Minute, to: -500 * time.Millisecond}},
			result{"c": "ip and port/reset"},
		},
		"the client does not know its peer, the trace does": {
			[]spanRow{{id: "c", service: "shop", kind: "client", ip: a}, server},
			clean,
			result{"c": "trace edge/network clean", "d": "ip/network clean"},
		},
		"the server does not know its peer either": {
			[]spanRow{{id: "c", service: "shop", kind: "client", ip: a}, {id: "d", parent: "c", service: "cart", kind: "server", ip: b, port: 80}},
			clean,
			result{"c": "trace edge/network clean", "d": "trace edge/network clean"},
		},
		"the very connection is known": {
			[]spanRow{{id: "d", service: "cart", kind: "server", ip: b, port: 80, peer: a, peerPort: 40000}},
			append([]flowRow{{role: "server", ip: b, port: 80, peer: a, peerPort: 40001, resets: 1}}, clean...),
			result{"d": "ip and port/network clean"},
		},
		"a pod without an address": {
			[]spanRow{{id: "c", service: "shop", kind: "client", uid: "pod-a", peer: b, peerPort: 80}},
			[]flowRow{{role: "client", ip: a, uid: "pod-a", peer: b, peerPort: 80, resets: 1, to: time.Second}},
			result{"c": "ip and port/reset"},
		},
		"a pod with another address than its spans know": {
			[]spanRow{{id: "c", service: "shop", kind: "client", ip: "10.9.9.9", uid: "pod-a", peer: "fd00::2", peerPort: 80}},
			[]flowRow{{role: "client", ip: "fd00::1", uid: "pod-a", peer: "fd00::2", peerPort: 80, resets: 1, to: time.Second}},
			result{"c": "ip and port/reset"},
		},
		"the same addresses in another cluster": {
			[]spanRow{{id: "c", service: "shop", kind: "client", ip: a, peer: b, peerPort: 80, cluster: "east"}},
			[]flowRow{{role: "client", ip: a, peer: b, peerPort: 80, cluster: "west", resets: 1}},
			result{"c": "no flow in that time/"},
		},
		"a consumer is a client of its broker": {
			[]spanRow{{id: "c", service: "shop", kind: "consumer", ip: a, peer: b, peerPort: 9092}},
			[]flowRow{{role: "client", ip: a, peer: b, peerPort: 9092, resets: 1, to: time.Second}},
			result{"c": "ip and port/reset"},
		},
		"no address": {
			[]spanRow{{id: "c", service: "shop", kind: "client", peer: b}},
			clean,
			result{"c": "no address: the resource says neither pod nor IP/"},
		},
		"no peer": {
			[]spanRow{{id: "c", service: "shop", kind: "client", ip: a}},
			clean,
			result{"c": "no peer address: neither the span nor the trace says it/"},
		},
		"work without a network": {
			[]spanRow{{id: "i", service: "shop", kind: "internal", ip: a}},
			clean,
			result{"i": "the span is no call over a network/"},
		},
		"no agent there": {
			[]spanRow{{id: "c", service: "shop", kind: "client", ip: "10.7.7.7", peer: b}},
			clean,
			result{"c": "no flow data of that address: no agent on that node/"},
		},
	}
	n := 0
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			n++
			trace := fmt.Sprintf("%032x", n)
			mustExec(t, d, "TRUNCATE TABLE "+cfg.Database+".flows_local")
			mustExec(t, d, "TRUNCATE TABLE "+cfg.Database+".flow_addresses_local")
			insertSpans(t, d, trace, tc.spans...)
			insertConns(t, d, tc.conns...)
			for _, view := range []string{
				"trace_network(trace_id = '" + trace + "')",
				"trace_network_with(trace_id = '" + trace + "', slack_ms = 1000, retransmit_percent = 1, window_percent = 20)",
				"traces_network(trace_ids = ['" + trace + "', '" + strings.Repeat("f", 32) + "'])",
			} {
				rows, err := d.conn.Query(t.Context(), `SELECT substring(span_id, 1, 1), if(matched = '', unmatched, matched), verdict,
					matched = '' AND flows + connections + segments_sent + rtt_us + rtt_min_us > 0 OR matched != '' AND flows = 0 FROM `+cfg.Database+"."+view)
				if err != nil {
					t.Fatal(err)
				}
				got := result{}
				for rows.Next() {
					var id, how, verdict string
					var stranger bool
					if err := rows.Scan(&id, &how, &verdict, &stranger); err != nil {
						t.Fatal(err)
					}
					if stranger {
						t.Errorf("%s: span %s has the numbers of others' connections, or none of its own", view, id)
					}
					got[id] = how + "/" + verdict
				}
				if err := errors.Join(rows.Err(), rows.Close()); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", view, diff)
				}
			}
		})
	}
}

// Where both ends of a call share an id, as in Zipkin, what one of them knows counts for the
// other as well.
func TestTraceNetworkOfSharedID(t *testing.T) {
	cfg := testConfig(t)
	d := openDB(t, cfg)
	if err := d.Migrate(t.Context(), Retention{}); err != nil {
		t.Fatal(err)
	}
	for trace, tc := range map[string]struct{ verdict, flow string }{
		strings.Repeat("1", 32): {"accept queue full", "(time, role, ip, port, accept_queue_full) VALUES (fromUnixTimestamp64Nano(%d), 'server', toIPv6('10.0.0.2'), 80, 3)"},
		strings.Repeat("2", 32): {"DNS failed", "(time, role, ip, peer_ip, peer_port, protocol, peer_name, queries, query_failures) VALUES (fromUnixTimestamp64Nano(%d), 'client', toIPv6('10.0.0.1'), toIPv6('10.0.0.9'), 53, 'dns', 'cart', 2, 2)"},
	} {
		mustExec(t, d, "TRUNCATE TABLE "+cfg.Database+".flows_local")
		for _, end := range []string{"'client', 'error', 300000000, 'shop', '10.0.0.1', 0, map('server.address', 'cart')", "'server', 'unset', 1000000, 'cart', '10.0.0.2', 80, map()"} {
			mustExec(t, d, fmt.Sprintf("INSERT INTO %s.spans_local (trace_id, span_id, start_time, kind, status_code, duration_ns, service_name, ip, port, attributes) VALUES ('%s', '%s', fromUnixTimestamp64Nano(%d), %s)",
				cfg.Database, trace, id16("c"), now.UnixNano(), end))
		}
		mustExec(t, d, fmt.Sprintf("INSERT INTO "+cfg.Database+".flows_local "+tc.flow, now.UnixNano()))
		got := queryText(t, d, "SELECT kind, verdict FROM "+cfg.Database+".trace_network(trace_id = '"+trace+"') ORDER BY kind")
		if want := "server\t" + tc.verdict + "\nclient\t" + tc.verdict; got != want {
			t.Errorf("ends and verdicts %q, want %q", got, want)
		}
	}
}

// The gap between a client's wait and its server's work is time on the network.
func TestTraceNetworkGap(t *testing.T) {
	cfg := testConfig(t)
	d := openDB(t, cfg)
	if err := d.Migrate(t.Context(), Retention{}); err != nil {
		t.Fatal(err)
	}
	insertSpans(t, d, id16("1")+id16("1"),
		spanRow{id: "c", service: "shop", kind: "client", ip: a, peer: b, peerPort: 80, took: 30 * time.Millisecond},
		spanRow{id: "d", parent: "c", service: "cart", kind: "server", ip: b, port: 80, peer: a, took: 10 * time.Millisecond})
	var peer string
	var gap int64
	err := d.conn.QueryRow(t.Context(), "SELECT peer_service_name, gap_ns FROM "+cfg.Database+".trace_network(trace_id = '"+id16("1")+id16("1")+"') WHERE kind = 'client'").Scan(&peer, &gap)
	if err != nil || peer != "cart" || gap != 20_000_000 {
		t.Errorf("peer %q, gap %d ns, %v", peer, gap, err)
	}
}

// The edges between services, and their verdicts.
func TestServiceNetwork(t *testing.T) {
	cfg := testConfig(t)
	d := openDB(t, cfg)
	if err := d.Migrate(t.Context(), Retention{}); err != nil {
		t.Fatal(err)
	}
	db := "10.0.0.9"
	insertSpans(t, d, id16("2")+id16("2"),
		spanRow{id: "c", service: "shop", kind: "client", ip: a, peer: b, peerPort: 80, took: 30 * time.Millisecond, status: "error"},
		spanRow{id: "d", parent: "c", service: "cart", kind: "server", ip: b, port: 80, peer: a, took: 10 * time.Millisecond},
		spanRow{id: "e", parent: "d", service: "cart", kind: "client", ip: b, peer: db, peerPort: 5432, took: 2 * time.Millisecond})
	insertConns(t, d,
		flowRow{role: "client", ip: a, port: 40000, peer: b, peerPort: 80, to: 30 * time.Second, retransmits: 7, retransmitted: 1},
		flowRow{role: "server", ip: b, port: 80, peer: a, peerPort: 40000, to: 30 * time.Second},
		flowRow{role: "client", ip: b, port: 41000, peer: db, peerPort: 5432, to: 30 * time.Second})
	rows, err := d.conn.Query(t.Context(), `SELECT client_service, server_service, toString(requests), toString(errors), toString(server_requests), toString(retransmits), toString(retransmit_percent)
		FROM `+cfg.Database+".service_network WHERE minute >= now() - INTERVAL 1 HOUR ORDER BY server_service")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var got [][7]string
	for rows.Next() {
		var r [7]string
		if err := rows.Scan(&r[0], &r[1], &r[2], &r[3], &r[4], &r[5], &r[6]); err != nil {
			t.Fatal(err)
		}
		got = append(got, r)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	want := [][7]string{
		{"cart", "10.0.0.9", "1", "0", "0", "0", "0"},
		{"shop", "cart", "1", "1", "1", "7", "3.5"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, view := range []string{"network_trouble(minutes = 60)", "network_trouble_with(minutes = 60, retransmit_percent = 1, window_percent = 20)"} {
		var n uint64
		var edge, verdict string
		err := d.conn.QueryRow(t.Context(), "SELECT count(), any(client_service || ' -> ' || server_service), any(verdict) FROM "+cfg.Database+"."+view).Scan(&n, &edge, &verdict)
		if err != nil || n != 1 || edge != "shop -> cart" || verdict != "retransmission" {
			t.Errorf("%s: %d edges, %s: %s, %v", view, n, edge, verdict, err)
		}
	}
}

// A reset is a problem if requests failed or if there are no spans to tell. Some
// applications close idle connections by reset.
func TestHarmfulResets(t *testing.T) {
	cfg := testConfig(t)
	d := openDB(t, cfg)
	if err := d.Migrate(t.Context(), Retention{}); err != nil {
		t.Fatal(err)
	}
	call := func(id, service, ip, peer, status string) spanRow {
		return spanRow{id: id, service: service, kind: "client", ip: ip, peer: peer, peerPort: 80, status: status}
	}
	cut := func(ip, peer string) flowRow {
		return flowRow{role: "client", ip: ip, port: 40000, peer: peer, peerPort: 80, to: 30 * time.Second, resets: 1}
	}
	insertSpans(t, d, id16("3")+id16("3"),
		call("a", "idle", "10.0.1.1", "10.0.2.1", "ok"), call("b", "failing", "10.0.1.2", "10.0.2.2", "error"),
		call("c", "untraced", "10.0.1.3", "10.0.2.9", "ok")) // names the address; its calls to 10.0.2.3 have no spans
	untraced := cut("10.0.1.3", "10.0.2.3")
	untraced.resets = 3 // fewer are no trouble without spans
	insertConns(t, d, cut("10.0.1.1", "10.0.2.1"), cut("10.0.1.2", "10.0.2.2"), untraced)
	rows, err := d.conn.Query(t.Context(), "SELECT client_service, verdict, toString(resets) FROM "+cfg.Database+".network_trouble(minutes = 60) ORDER BY client_service")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var got [][3]string
	for rows.Next() {
		var r [3]string
		if err := rows.Scan(&r[0], &r[1], &r[2]); err != nil {
			t.Fatal(err)
		}
		got = append(got, r)
	}
	if diff := cmp.Diff([][3]string{{"failing", "reset", "1"}, {"untraced", "reset", "3"}}, got); diff != "" || rows.Err() != nil {
		t.Errorf("%v (-want +got):\n%s", rows.Err(), diff)
	}
}
