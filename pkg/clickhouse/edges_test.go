package clickhouse

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sqlRow is a row as column and SQL.
type sqlRow map[string]string

func (r sqlRow) with(more sqlRow) sqlRow {
	all := maps.Clone(r)
	maps.Copy(all, more)
	return all
}

func insertRows(t *testing.T, d *DB, table string, rows ...sqlRow) {
	t.Helper()
	for _, r := range rows {
		names := slices.Sorted(maps.Keys(r))
		var values []string
		for _, n := range names {
			values = append(values, r[n])
		}
		mustExec(t, d, fmt.Sprintf("INSERT INTO %s.%s (%s) VALUES (%s)", d.cfg.Database, table, strings.Join(names, ", "), strings.Join(values, ", ")))
	}
}

func at(d time.Duration) string {
	return fmt.Sprintf("fromUnixTimestamp64Nano(%d)", now.Add(d).UnixNano())
}

func ipOf(a string) string { return "toIPv6('" + address(a) + "')" }

var spanCount int

// calls returns n calls of a client to a server, one a second, each with the span of the
// server unless server is nil. The server works for half of the client's 20 ms.
func calls(n int, client, server sqlRow) []sqlRow {
	var rows []sqlRow
	for i := range n {
		spanCount++
		id := fmt.Sprintf("'%016x'", spanCount)
		begin := time.Duration(i) * time.Second
		span := sqlRow{"trace_id": fmt.Sprintf("'%032x'", spanCount), "span_id": id, "kind": "'client'", "start_time": at(begin), "duration_ns": "18000000"}
		rows = append(rows, span.with(client))
		if server != nil {
			rows = append(rows, span.with(sqlRow{
				"span_id": fmt.Sprintf("'%016x'", 1<<32+spanCount), "parent_span_id": id, "kind": "'server'", "duration_ns": "10000000",
			}).with(server))
		}
	}
	return rows
}

// both returns a connection of a minute as its two ends report it.
func both(client, server sqlRow, more sqlRow) []sqlRow {
	row := sqlRow{
		"time": at(55 * time.Second), "start_time": at(-5 * time.Second), "connections": "1", "bytes_sent": "1000", "bytes_received": "2000",
		"segments_sent": "300", "rtt_us": "300", "rtt_usual_us": "300", "busy_us": "1000000",
	}
	c := row.with(sqlRow{"role": "'client'", "ip": client["ip"], "port": "40000", "peer_ip": server["ip"], "peer_port": server["port"], "network_namespace": client["netns"]})
	s := row.with(sqlRow{"role": "'server'", "ip": server["ip"], "port": server["port"], "peer_ip": client["ip"], "peer_port": "40000", "network_namespace": server["netns"]})
	for name, end := range map[string]sqlRow{"client": client, "server": server} {
		if end["process"] == "" {
			continue
		}
		if name == "client" {
			c["process"] = end["process"]
		} else {
			s["process"] = end["process"]
		}
	}
	return []sqlRow{c.with(more), s}
}

// asks returns the resolution of a name, as an agent reports it.
func asks(client sqlRow, name string, more sqlRow) []sqlRow {
	return []sqlRow{sqlRow{
		"time": at(5 * time.Second), "start_time": at(0), "role": "'client'", "protocol": "'dns'", "ip": client["ip"], "peer_ip": ipOf("10.0.0.53"), "peer_port": "53",
		"peer_name": "'" + name + "'", "network_namespace": client["netns"], "queries": "3",
	}.with(more)}
}

// The ends of the stories: their addresses, and the ports of servers.
var (
	shopEnd   = sqlRow{"ip": ipOf("10.0.0.1"), "netns": "1", "process": "'shop'"}
	cartEnd   = sqlRow{"ip": ipOf("10.0.0.2"), "netns": "2", "port": "80", "process": "'cart'"}
	proxyEnd  = sqlRow{"ip": ipOf("10.0.0.5"), "netns": "5", "port": "80", "process": "'nginx'"}
	dbEnd     = sqlRow{"ip": ipOf("10.0.0.9"), "netns": "9", "port": "5432", "process": "'postgres'"}
	shopSpan  = sqlRow{"service_name": "'shop'", "ip": ipOf("10.0.0.1"), "peer_ip": ipOf("10.0.0.2"), "peer_port": "80"}
	cartSpan  = sqlRow{"service_name": "'cart'", "ip": ipOf("10.0.0.2"), "port": "80", "peer_ip": ipOf("10.0.0.1")}
	nameless  = shopSpan.with(sqlRow{"peer_ip": ipOf(""), "attributes": "map('server.address', 'cart')"})
	toDB      = sqlRow{"service_name": "'cart'", "ip": ipOf("10.0.0.2"), "peer_ip": ipOf(""), "peer_port": "5432", "attributes": "map('server.address', 'db')"}
	failed    = sqlRow{"status_code": "'error'"}
	slow      = sqlRow{"duration_ns": "230000000"}
	slowly    = sqlRow{"query_time_us": "410000", "query_time_max_us": "400000"}
	lossy     = sqlRow{"retransmits": "12", "retransmitted_bytes": "9000"}
	throughs  = func(s sqlRow, peer string) sqlRow { return s.with(sqlRow{"peer_ip": ipOf(peer)}) }
	emptyRows []sqlRow
)

// Every story tells the edges, as "client -> server requests/errors", and the trouble, as
// "client -> server: verdict". A story with trouble has a twin without.
func TestEdgesAndTrouble(t *testing.T) {
	cfg := testConfig(t)
	d := openDB(t, cfg)
	if err := d.Migrate(t.Context(), Retention{}); err != nil {
		t.Fatal(err)
	}
	cat := func(rows ...[]sqlRow) []sqlRow { return slices.Concat(rows...) }
	step := func(more sqlRow) sqlRow {
		return more.with(sqlRow{"start_time": at(20 * time.Second), "time": at(25 * time.Second)})
	}
	for name, tc := range map[string]struct {
		spans, flows   []sqlRow
		edges, trouble []string
	}{
		"clean": {
			calls(20, shopSpan, cartSpan), both(shopEnd, cartEnd, nil),
			[]string{"shop -> cart 20/0"},
			nil,
		},
		"loss that harms": {
			cat(calls(20, shopSpan, cartSpan), calls(4, shopSpan.with(slow), cartSpan)), both(shopEnd, cartEnd, step(lossy)),
			[]string{"shop -> cart 24/0"},
			[]string{"shop -> cart: retransmission"},
		},
		"loss that harms nobody": {
			calls(20, shopSpan, cartSpan), both(shopEnd, cartEnd, step(lossy)),
			[]string{"shop -> cart 20/0"},
			nil,
		},
		"requests that the server fails itself, beside loss": {
			calls(20, shopSpan.with(failed), cartSpan.with(failed)), both(shopEnd, cartEnd, lossy),
			[]string{"shop -> cart 20/20"},
			nil,
		},
		"slow code beside a clean network": {
			calls(20, shopSpan.with(slow), cartSpan.with(sqlRow{"duration_ns": "225000000"})), both(shopEnd, cartEnd, nil),
			[]string{"shop -> cart 20/0"},
			nil,
		},
		"the server is known by its name, and by the trace": {
			cat(calls(5, nameless, cartSpan), calls(2, nameless.with(failed), nil)), both(shopEnd, cartEnd, nil),
			[]string{"shop -> cart 7/2"},
			nil,
		},
		"failing calls do not know whom they called": {
			cat(calls(5, shopSpan, cartSpan), calls(2, nameless.with(failed), nil)), both(shopEnd, cartEnd, sqlRow{"resets": "2"}),
			[]string{"shop -> cart 7/2"},
			[]string{"shop -> cart: reset"},
		},
		"errors with an answer beside a reset": {
			cat(calls(5, shopSpan, cartSpan), calls(6, shopSpan.with(failed).with(sqlRow{"response_code": "'9'"}), cartSpan.with(failed))), both(shopEnd, cartEnd, sqlRow{"resets": "1"}),
			[]string{"shop -> cart 11/6"},
			nil,
		},
		"failing calls to a name that is not the server's": {
			calls(3, nameless.with(failed).with(sqlRow{"attributes": "map('server.address', 'nowhere')"}), nil), both(shopEnd, cartEnd, sqlRow{"peer_name": "'cart.shop.svc.cluster.local'"}),
			[]string{"shop -> cart@10.0.0.2 0/0", "shop -> nowhere 3/3"},
			nil,
		},
		"failing calls to the short name of a server": {
			calls(3, nameless.with(failed), nil), both(shopEnd, cartEnd, sqlRow{"peer_name": "'cart.shop.svc.cluster.local'", "connect_failures": "3", "refused": "3"}),
			[]string{"shop -> cart@10.0.0.2 3/3"},
			[]string{"shop -> cart@10.0.0.2: connect refused"},
		},
		"failing calls that tell the class of their error": {
			cat(calls(5, shopSpan, cartSpan), calls(2, nameless.with(failed).with(sqlRow{"response_code": "'ConnectionError'"}), nil)), both(shopEnd, cartEnd, sqlRow{"resets": "2"}),
			[]string{"shop -> cart 7/2"},
			[]string{"shop -> cart: reset"},
		},
		"answered by HTTP beside a reset": {
			cat(calls(5, shopSpan, cartSpan), calls(2, shopSpan.with(failed).with(sqlRow{"response_code": "'500'"}), cartSpan.with(failed))), both(shopEnd, cartEnd, sqlRow{"resets": "2"}),
			[]string{"shop -> cart 7/2"},
			nil,
		},
		"a reset that both ends of requests tell of": {
			cat(calls(5, shopSpan, cartSpan), calls(2, shopSpan.with(failed).with(sqlRow{"response_code": "'14'"}), cartSpan.with(failed))), both(shopEnd, cartEnd, sqlRow{"resets": "2"}),
			[]string{"shop -> cart 7/2"},
			[]string{"shop -> cart: reset"},
		},
		"resets of idle connections": {
			calls(5, shopSpan, cartSpan), both(shopEnd, cartEnd, sqlRow{"resets": "2"}),
			[]string{"shop -> cart 5/0"},
			nil,
		},
		"refused": {
			cat(calls(1, shopSpan, cartSpan), calls(3, nameless.with(failed), nil)), both(shopEnd, cartEnd, sqlRow{"connect_failures": "3", "refused": "3", "peer_name": "'cart'"}),
			[]string{"shop -> cart 4/3"},
			[]string{"shop -> cart: connect refused"},
		},
		"refused once, nobody noticed": {
			calls(30, shopSpan, cartSpan), both(shopEnd, cartEnd, sqlRow{"connect_failures": "1", "refused": "1"}),
			[]string{"shop -> cart 30/0"},
			nil,
		},
		"swallowed": {
			cat(calls(1, shopSpan, cartSpan), calls(3, shopSpan.with(failed), nil)), both(shopEnd, cartEnd, sqlRow{"connect_failures": "3"}),
			[]string{"shop -> cart 4/3"},
			[]string{"shop -> cart: connect failed"},
		},
		"timed out": {
			cat(calls(4, shopSpan, cartSpan), calls(4, shopSpan.with(failed), nil)), both(shopEnd, cartEnd, lossy.with(sqlRow{"timeouts": "2"})),
			[]string{"shop -> cart 8/4"},
			[]string{"shop -> cart: timed out"},
		},
		"few timed out, loss slowed the others": {
			cat(calls(8, shopSpan.with(slow), cartSpan), calls(1, shopSpan.with(failed), nil)), both(shopEnd, cartEnd, lossy.with(sqlRow{"timeouts": "2"})),
			[]string{"shop -> cart 9/1"},
			[]string{"shop -> cart: retransmission"},
		},
		"few timed out, nothing slowed the others": {
			cat(calls(8, shopSpan.with(slow), cartSpan), calls(1, shopSpan.with(failed), nil)), both(shopEnd, cartEnd, sqlRow{"timeouts": "2"}),
			[]string{"shop -> cart 9/1"},
			[]string{"shop -> cart: timed out"},
		},
		"few reset, loss slowed the others": {
			cat(calls(8, shopSpan.with(slow), cartSpan), calls(1, shopSpan.with(failed), nil)), both(shopEnd, cartEnd, lossy.with(sqlRow{"resets": "1"})),
			[]string{"shop -> cart 9/1"},
			[]string{"shop -> cart: retransmission"},
		},
		"clients that gave up on a farther server": {
			calls(20, shopSpan.with(failed).with(sqlRow{"duration_ns": "100000000"}), nil),
			both(shopEnd, cartEnd, sqlRow{"rtt_us": "82000", "rtt_max_us": "83000", "rtt_usual_us": "1000", "resets": "2"}),
			[]string{"shop -> cart@10.0.0.2 20/20"},
			[]string{"shop -> cart@10.0.0.2: slow network"},
		},
		"few reset, nothing slowed the others": {
			cat(calls(8, shopSpan.with(slow), cartSpan), calls(1, shopSpan.with(failed), nil)), both(shopEnd, cartEnd, sqlRow{"resets": "1"}),
			[]string{"shop -> cart 9/1"},
			[]string{"shop -> cart: reset"},
		},
		"many requests on one connection, which timed out": {
			cat(calls(4, shopSpan, cartSpan), calls(10, shopSpan.with(failed), nil)), both(shopEnd, cartEnd, lossy.with(sqlRow{"timeouts": "1"})),
			[]string{"shop -> cart 14/10"},
			[]string{"shop -> cart: timed out"},
		},
		"loss fills the receiver's window": {
			cat(calls(20, shopSpan, cartSpan), calls(4, shopSpan.with(slow), cartSpan)),
			both(shopEnd, cartEnd, lossy.with(sqlRow{"segments_sent": "60", "busy_us": "1000000", "receive_window_limited_us": "900000"})),
			[]string{"shop -> cart 24/0"},
			[]string{"shop -> cart: retransmission"},
		},
		"a farther server": {
			calls(20, shopSpan.with(sqlRow{"duration_ns": "100000000"}), cartSpan), both(shopEnd, cartEnd, sqlRow{"rtt_us": "82000", "rtt_max_us": "83000", "rtt_usual_us": "1000"}),
			[]string{"shop -> cart 20/0"},
			[]string{"shop -> cart: slow network"},
		},
		"a farther server, and a sidecar beside its client": {
			calls(20, shopSpan.with(sqlRow{"duration_ns": "100000000"}), cartSpan),
			cat(both(shopEnd, cartEnd, sqlRow{"rtt_us": "82000", "rtt_max_us": "83000", "rtt_usual_us": "1000"}), both(shopEnd, cartEnd, sqlRow{"port": "40001"})[:1]),
			[]string{"shop -> cart 20/0"},
			[]string{"shop -> cart: slow network"},
		},
		"a farther server, and few segments sent again": {
			calls(20, shopSpan.with(sqlRow{"duration_ns": "100000000"}), cartSpan),
			cat(both(shopEnd, cartEnd, sqlRow{"rtt_us": "82000", "rtt_max_us": "83000", "rtt_usual_us": "1000"}), both(shopEnd, cartEnd, sqlRow{"port": "40001", "rtt_us": "82000", "rtt_max_us": "83000", "rtt_usual_us": "1000"})[:1],
				both(shopEnd, cartEnd, sqlRow{"port": "40002", "segments_sent": "30", "retransmits": "4", "retransmitted_bytes": "4000"})[:1]),
			[]string{"shop -> cart 20/0"},
			[]string{"shop -> cart: slow network"},
		},
		"a farther server without spans, all of whose requests are slow": {
			calls(20, shopSpan.with(sqlRow{"duration_ns": "70000000"}), nil), both(shopEnd, cartEnd, sqlRow{"rtt_us": "82000", "rtt_max_us": "83000", "rtt_usual_us": "1000"}),
			[]string{"shop -> cart@10.0.0.2 20/0"},
			[]string{"shop -> cart@10.0.0.2: slow network"},
		},
		"a farther server, few of whose requests lack its span": {
			cat(calls(20, shopSpan.with(sqlRow{"duration_ns": "70000000"}), cartSpan.with(sqlRow{"duration_ns": "65000000"})), calls(4, shopSpan.with(sqlRow{"duration_ns": "70000000"}), nil)),
			both(shopEnd, cartEnd, sqlRow{"rtt_us": "82000", "rtt_max_us": "83000", "rtt_usual_us": "1000"}),
			[]string{"shop -> cart 24/0"},
			nil,
		},
		"a farther server without spans that is slow by itself": {
			calls(20, shopSpan.with(sqlRow{"duration_ns": "300000000"}), nil), both(shopEnd, cartEnd, sqlRow{"rtt_us": "82000", "rtt_max_us": "83000", "rtt_usual_us": "1000"}),
			[]string{"shop -> cart@10.0.0.2 20/0"},
			nil,
		},
		"a farther server of a proxy": {
			emptyRows, both(proxyEnd, dbEnd, sqlRow{"rtt_us": "82000", "rtt_max_us": "83000", "rtt_usual_us": "1000"}),
			[]string{"nginx@10.0.0.5 -> postgres@10.0.0.9 0/0"},
			[]string{"nginx@10.0.0.5 -> postgres@10.0.0.9: slow network"},
		},
		"acknowledgements of a proxy's server that lacks CPU": {
			emptyRows, both(proxyEnd, dbEnd, sqlRow{"rtt_us": "82000", "rtt_max_us": "1000", "rtt_usual_us": "1000"}),
			[]string{"nginx@10.0.0.5 -> postgres@10.0.0.9 0/0"},
			nil,
		},
		"a server that was always far": {
			calls(20, shopSpan.with(sqlRow{"duration_ns": "100000000"}), cartSpan), both(shopEnd, cartEnd, sqlRow{"rtt_us": "82000", "rtt_max_us": "83000", "rtt_usual_us": "80000"}),
			[]string{"shop -> cart 20/0"},
			nil,
		},
		"a bulk transfer that its receiver paces": {
			calls(20, shopSpan, cartSpan), both(shopEnd, cartEnd, sqlRow{"receive_window_limited_us": "900000", "unread_bytes": "70000"}),
			[]string{"shop -> cart 20/0"},
			nil,
		},
		"a receiver that does not read": {
			calls(5, shopSpan.with(slow), cartSpan), both(shopEnd, cartEnd, sqlRow{"unread_bytes": "70000"}),
			[]string{"shop -> cart 5/0"},
			[]string{"shop -> cart: receiver does not read"},
		},
		"a full accept queue": {
			cat(calls(1, shopSpan, cartSpan), calls(5, shopSpan.with(failed), nil)), cat(both(shopEnd, cartEnd, sqlRow{"connect_failures": "5"}), []sqlRow{{
				"time": at(30 * time.Second), "start_time": at(25 * time.Second), "role": "'server'", "ip": cartEnd["ip"], "port": "80", "peer_ip": ipOf(""), "accept_queue_full": "4", "network_namespace": "2",
			}}),
			[]string{"shop -> cart 6/5"},
			[]string{"shop -> cart: accept queue full"},
		},
		"a full accept queue, listening at any address, in the minute before": {
			cat(calls(1, shopSpan, cartSpan), calls(5, shopSpan.with(failed).with(sqlRow{"start_time": at(70 * time.Second)}), nil)),
			cat(both(shopEnd, cartEnd, sqlRow{"connect_failures": "5", "time": at(75 * time.Second)}), []sqlRow{{
				"time": at(30 * time.Second), "start_time": at(25 * time.Second), "role": "'server'", "ip": ipOf(""), "port": "80", "peer_ip": ipOf(""), "accept_queue_full": "4", "network_namespace": "2",
			}}),
			[]string{"shop -> cart 6/5"},
			[]string{"shop -> cart: accept queue full"},
		},
		"a slow resolution of the server's name": {
			calls(5, shopSpan.with(slow), cartSpan), cat(both(shopEnd, cartEnd, sqlRow{"peer_name": "'cart.shop.svc'"}), asks(shopEnd, "cart.shop.svc", slowly)),
			[]string{"shop -> cart 5/0"},
			[]string{"shop -> cart: slow DNS"},
		},
		"a slow resolution that delayed nobody": {
			calls(5, shopSpan, cartSpan), cat(both(shopEnd, cartEnd, sqlRow{"peer_name": "'cart.shop.svc'"}), asks(shopEnd, "cart.shop.svc", slowly)),
			[]string{"shop -> cart 5/0"},
			nil,
		},
		"one slow resolution beside many requests that waited for another reason": {
			calls(40, shopSpan.with(slow), cartSpan), cat(both(shopEnd, cartEnd, sqlRow{"peer_name": "'cart.shop.svc'"}), asks(shopEnd, "cart.shop.svc", slowly)),
			[]string{"shop -> cart 40/0"},
			nil,
		},
		"one resolution that took seconds": {
			calls(40, shopSpan.with(slow), cartSpan), cat(both(shopEnd, cartEnd, sqlRow{"peer_name": "'cart.shop.svc'"}), asks(shopEnd, "cart.shop.svc", sqlRow{"query_time_max_us": "5000000"})),
			[]string{"shop -> cart 40/0"},
			[]string{"shop -> cart: slow DNS"},
		},
		"a slow resolution of another name": {
			calls(5, shopSpan.with(slow), cartSpan), cat(both(shopEnd, cartEnd, sqlRow{"peer_name": "'cart.shop.svc'"}), asks(shopEnd, "cartoon.shop.svc", slowly)),
			[]string{"shop -> cart 5/0"},
			nil,
		},
		"a name that is not resolved": {
			cat(calls(1, shopSpan, cartSpan), calls(3, nameless.with(failed), nil)), cat(both(shopEnd, cartEnd, nil), asks(shopEnd, "cart.shop.svc", sqlRow{"query_failures": "3"})),
			[]string{"shop -> cart 4/3"},
			[]string{"shop -> cart: DNS failed"},
		},
		"failing resolutions beside requests that answer": {
			calls(4, shopSpan, cartSpan), cat(both(shopEnd, cartEnd, sqlRow{"peer_name": "'cart.shop.svc'"}), asks(shopEnd, "cart.shop.svc", sqlRow{"query_failures": "3"})),
			[]string{"shop -> cart 4/0"},
			nil,
		},
		"a masquerade between client and server": {
			calls(5, shopSpan.with(slow), cartSpan),
			[]sqlRow{
				both(shopEnd, cartEnd, nil)[0].with(lossy).with(sqlRow{"translated_ip": ipOf("10.0.0.254"), "translated_port": "40000"}),
				both(shopEnd, cartEnd, nil)[1].with(sqlRow{"peer_ip": ipOf("10.0.0.254"), "translated_peer_ip": shopEnd["ip"], "translated_peer_port": "40000"}),
			},
			[]string{"shop -> cart 5/0"},
			[]string{"shop -> cart: retransmission"},
		},
		"a probe that resets, and asked nothing": {
			emptyRows,
			[]sqlRow{
				both(proxyEnd, dbEnd, sqlRow{"resets": "1", "bytes_sent": "0"})[0],
				both(proxyEnd, dbEnd, nil)[1].with(sqlRow{"bytes_received": "0"}),
			},
			[]string{"nginx@10.0.0.5 -> postgres@10.0.0.9 0/0"},
			nil,
		},
		"a proxy whose connections are reset": {
			emptyRows, both(proxyEnd, dbEnd, sqlRow{"resets": "3"}),
			[]string{"nginx@10.0.0.5 -> postgres@10.0.0.9 0/0"},
			[]string{"nginx@10.0.0.5 -> postgres@10.0.0.9: reset"},
		},
		"a proxy with one reset": {
			emptyRows, both(proxyEnd, dbEnd, sqlRow{"resets": "1"}),
			[]string{"nginx@10.0.0.5 -> postgres@10.0.0.9 0/0"},
			nil,
		},
		"a cap fills a queue, and its receiver reads late": {
			calls(5, shopSpan.with(slow), cartSpan), both(shopEnd, cartEnd, sqlRow{"rtt_us": "82000", "rtt_max_us": "83000", "rtt_usual_us": "1000", "queue_us": "70000", "unread_bytes": "70000"}),
			[]string{"shop -> cart 5/0"},
			[]string{"shop -> cart: slow queue"},
		},
		"a database without spans, called by name": {
			calls(10, toDB, nil), both(cartEnd.with(sqlRow{"process": "'cart'"}), dbEnd, sqlRow{"peer_name": "'db'"}),
			[]string{"cart -> postgres@10.0.0.9 10/0"},
			nil,
		},
		"loss to a database": {
			cat(calls(10, toDB, nil), calls(2, toDB.with(slow), nil)), both(cartEnd, dbEnd, lossy.with(sqlRow{"peer_name": "'db'"})),
			[]string{"cart -> postgres@10.0.0.9 12/0"},
			[]string{"cart -> postgres@10.0.0.9: retransmission"},
		},
		"loss that only the server's end sees": {
			calls(5, shopSpan.with(slow), cartSpan),
			[]sqlRow{both(shopEnd, cartEnd, nil)[1].with(lossy)},
			[]string{"shop -> cart 5/0"},
			[]string{"shop -> cart: retransmission"},
		},
		"a proxy that no span names": {
			calls(5, throughs(shopSpan, "10.0.0.5"), throughs(cartSpan, "10.0.0.5")),
			cat(both(shopEnd, proxyEnd, nil), both(proxyEnd, cartEnd, lossy)),
			[]string{"nginx@10.0.0.5 -> cart 0/0", "shop -> cart 5/0", "shop -> nginx@10.0.0.5 0/0"},
			[]string{"nginx@10.0.0.5 -> cart: retransmission"},
		},
		"a proxy, clean": {
			calls(5, throughs(shopSpan, "10.0.0.5"), throughs(cartSpan, "10.0.0.5")),
			cat(both(shopEnd, proxyEnd, nil), both(proxyEnd, cartEnd, nil)),
			[]string{"nginx@10.0.0.5 -> cart 0/0", "shop -> cart 5/0", "shop -> nginx@10.0.0.5 0/0"},
			nil,
		},
		"a translated address": {
			calls(5, throughs(shopSpan, "10.96.0.1"), cartSpan),
			[]sqlRow{
				both(shopEnd, cartEnd, nil)[0].with(sqlRow{"peer_ip": ipOf("10.96.0.1"), "translated_peer_ip": cartEnd["ip"], "translated_peer_port": "80"}),
				both(shopEnd, cartEnd, nil)[1],
			},
			[]string{"shop -> cart 5/0"},
			nil,
		},
		"a translated address that the agent could not look up": {
			calls(5, throughs(shopSpan, "10.96.0.1"), cartSpan),
			[]sqlRow{both(shopEnd, cartEnd, nil)[0].with(sqlRow{"peer_ip": ipOf("10.96.0.1")}), both(shopEnd, cartEnd, nil)[1]},
			[]string{"shop -> cart 5/0"},
			nil,
		},
		"two services on one address": {
			cat(calls(5, shopSpan, cartSpan), calls(3, shopSpan.with(sqlRow{"peer_port": "81"}).with(failed), cartSpan.with(sqlRow{"service_name": "'pay'", "port": "81"}).with(failed))),
			cat(both(shopEnd, cartEnd, nil), both(shopEnd, cartEnd.with(sqlRow{"port": "81"}), sqlRow{"resets": "3"})),
			[]string{"shop -> cart 5/0", "shop -> pay 3/3"},
			[]string{"shop -> pay: reset"},
		},
		"a service and a database on one address": {
			calls(5, shopSpan, cartSpan),
			cat(both(shopEnd, cartEnd, nil), both(shopEnd, cartEnd.with(sqlRow{"port": "5432", "process": "'postgres'"}), nil)),
			[]string{"shop -> cart 5/0", "shop -> postgres@10.0.0.2 0/0"},
			nil,
		},
		"another address of one owner": {
			calls(5, shopSpan, cartSpan),
			cat(both(shopEnd, cartEnd, nil), both(shopEnd.with(sqlRow{"ip": ipOf("fd00::1")}), cartEnd.with(sqlRow{"ip": ipOf("fd00::2")}), nil)),
			[]string{"shop -> cart 5/0"},
			nil,
		},
		"export of telemetry": {
			emptyRows, both(shopEnd, sqlRow{"ip": ipOf("10.0.0.8"), "netns": "8", "port": "4318", "process": "'collector'"}, sqlRow{"resets": "1"}),
			[]string{"shop@10.0.0.1 -> collector@10.0.0.8 0/0"},
			nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, table := range []string{"spans_local", "flows_local", "flow_addresses_local", "service_addresses_local"} {
				mustExec(t, d, "TRUNCATE TABLE "+cfg.Database+"."+table)
			}
			insertRows(t, d, "spans_local", tc.spans...)
			insertRows(t, d, "flows_local", tc.flows...)
			const end = "if(%[1]s_address = '' OR %[1]s_address = %[1]s_service, %[1]s_service, concat(%[1]s_service, '@', %[1]s_address))"
			edge := "concat(" + fmt.Sprintf(end, "client") + ", ' -> ', " + fmt.Sprintf(end, "server") + ")"
			got := queryColumn(t, d, "SELECT concat("+edge+", ' ', toString(sum(requests)), '/', toString(sum(errors))) AS e FROM "+cfg.Database+
				".service_network WHERE minute >= now() - INTERVAL 1 HOUR GROUP BY client_service, server_service, client_address, server_address ORDER BY e")
			if diff := cmp.Diff(tc.edges, got); diff != "" {
				t.Errorf("edges (-want +got):\n%s", diff)
			}
			got = queryColumn(t, d, "SELECT concat("+edge+", ': ', verdict) AS e FROM "+cfg.Database+".network_trouble(minutes = 60) ORDER BY e")
			if diff := cmp.Diff(tc.trouble, got); diff != "" {
				t.Errorf("trouble (-want +got):\n%s", diff)
			}
		})
	}
}

// The edge that harmed most requests comes first, not the one with the worst cause.
func TestMostHarmFirst(t *testing.T) {
	cfg := testConfig(t)
	d := openDB(t, cfg)
	if err := d.Migrate(t.Context(), Retention{}); err != nil {
		t.Fatal(err)
	}
	payEnd := cartEnd.with(sqlRow{"ip": ipOf("10.0.0.3"), "netns": "3", "process": "'pay'"})
	toPay := shopSpan.with(sqlRow{"peer_ip": payEnd["ip"]})
	insertRows(t, d, "spans_local", slices.Concat(calls(20, shopSpan, cartSpan), calls(4, shopSpan.with(slow), cartSpan),
		calls(20, toPay, cartSpan.with(sqlRow{"service_name": "'pay'", "ip": payEnd["ip"]})), calls(1, toPay.with(failed), nil))...)
	insertRows(t, d, "flows_local", append(both(shopEnd, cartEnd, lossy), both(shopEnd, payEnd, sqlRow{"connect_failures": "1", "refused": "1"})...)...)
	got := queryColumn(t, d, "SELECT concat(server_service, ': ', verdict) FROM "+cfg.Database+".network_trouble(minutes = 60)")
	if diff := cmp.Diff([]string{"cart: retransmission", "pay: connect refused"}, got); diff != "" {
		t.Errorf("trouble (-want +got):\n%s", diff)
	}
}

// Requests to a server that became farther count as harmed, also if none shows it by itself.
func TestFarRequestsCountAsHarmed(t *testing.T) {
	cfg := testConfig(t)
	d := openDB(t, cfg)
	if err := d.Migrate(t.Context(), Retention{}); err != nil {
		t.Fatal(err)
	}
	insertRows(t, d, "spans_local", calls(20, shopSpan.with(sqlRow{"duration_ns": "70000000"}), nil)...)
	insertRows(t, d, "flows_local", both(shopEnd, cartEnd, sqlRow{"rtt_us": "82000", "rtt_max_us": "83000", "rtt_usual_us": "1000"})...)
	if got := queryText(t, d, "SELECT verdict, harmed FROM "+cfg.Database+".network_trouble(minutes = 60)"); got != "slow network\t20" {
		t.Errorf("trouble %q", got)
	}
}

func queryColumn(t *testing.T, d *DB, query string) (values []string) {
	t.Helper()
	rows, err := d.conn.Query(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			t.Fatal(err)
		}
		values = append(values, v)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		t.Fatal(err)
	}
	return values
}

// When most connections of one node are bad, and the others are well, one line names the node in
// place of its edges. When the others are bad too, no node is to blame.
func TestNodeInTrouble(t *testing.T) {
	cfg := testConfig(t)
	d := openDB(t, cfg)
	if err := d.Migrate(t.Context(), Retention{}); err != nil {
		t.Fatal(err)
	}
	n := 0
	// link returns a connection between two workloads on two nodes.
	link := func(client, clientNode, server, serverNode string, more sqlRow) []sqlRow {
		n++
		c := sqlRow{"ip": ipOf(fmt.Sprintf("10.1.%d.1", n)), "netns": fmt.Sprint(100 + n)}
		s := sqlRow{"ip": ipOf(fmt.Sprintf("10.2.%d.1", n)), "netns": fmt.Sprint(200 + n), "port": "80"}
		rows := both(c, s, more)
		for i, end := range [][2]string{{client, clientNode}, {server, serverNode}} {
			rows[i] = rows[i].with(sqlRow{"workload": "'" + end[0] + "'", "pod": "'" + end[0] + "-0'", "pod_uid": "'" + end[0] + "'", "node": "'" + end[1] + "'"})
		}
		return rows
	}
	onNode := slices.Concat(link("a", "n1", "b", "n2", lossy), link("c", "n3", "d", "n2", lossy), link("e", "n1", "f", "n2", lossy))
	elsewhere := func(more sqlRow) []sqlRow {
		return slices.Concat(link("a", "n1", "u", "n3", more), link("c", "n3", "v", "n1", more), link("e", "n1", "w", "n3", more), link("g", "n3", "x", "n1", more))
	}
	for name, tc := range map[string]struct {
		flows []sqlRow
		want  []string
	}{
		"one node":          {slices.Concat(onNode, elsewhere(nil)), []string{"node n2 -> all: retransmission"}},
		"one edge":          {slices.Concat(onNode[:2], elsewhere(nil)), []string{"a -> b: retransmission"}},
		"every node is bad": {slices.Concat(onNode[:4], elsewhere(lossy)), []string{"a -> b: retransmission", "a -> u: retransmission", "c -> d: retransmission", "c -> v: retransmission", "e -> w: retransmission", "g -> x: retransmission"}},
	} {
		t.Run(name, func(t *testing.T) {
			mustExec(t, d, "TRUNCATE TABLE "+cfg.Database+".flows_local")
			insertRows(t, d, "flows_local", tc.flows...)
			got := queryColumn(t, d, "SELECT concat(client_service, ' -> ', server_service, ': ', verdict) AS e FROM "+cfg.Database+".network_trouble(minutes = 60) ORDER BY e")
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
