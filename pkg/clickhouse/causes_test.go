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

// sql is values of columns in SQL, by column.
type sql = map[string]string

// call is a span of a case: a row of spans_local, and values of further columns.
type call struct {
	spanRow
	more sql
}

// flow is a row of flows_local: its interval, and the values of the other columns. Every
// address is in a network namespace of its own unless the flow says otherwise.
type flow struct {
	from, to time.Duration
	more     sql
}

func join(all ...sql) sql {
	sum := sql{}
	for _, v := range all {
		maps.Copy(sum, v)
	}
	return sum
}

// to returns a client's flow, and from the server's flow of the same connection.
func to(server string, port int, more ...sql) flow {
	return flow{to: time.Minute, more: join(append([]sql{{
		"role": "'client'", "ip": "toIPv6('10.0.0.1')", "port": "40000", "peer_ip": "toIPv6('" + server + "')", "peer_port": fmt.Sprint(port),
	}}, more...)...)}
}

func from(server string, port int, more ...sql) flow {
	return flow{to: time.Minute, more: join(append([]sql{{
		"role": "'server'", "ip": "toIPv6('" + server + "')", "port": fmt.Sprint(port), "peer_ip": "toIPv6('10.0.0.1')", "peer_port": "40000",
	}}, more...)...)}
}

func (f flow) during(from, to time.Duration) flow {
	f.from, f.to = from, to
	return f
}

// after is a time in a case, in seconds.
func after(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// Each cause names itself where it harmed a span, and its twin, alike but for one thing,
// is clean.
func TestCausesOfTrace(t *testing.T) {
	cfg := testConfig(t)
	d := openDB(t, cfg)
	if err := d.Migrate(t.Context(), Retention{}); err != nil {
		t.Fatal(err)
	}
	// The calls go from shop (10.0.0.1) to cart (10.0.0.2:80).
	client := func(took float64, more ...sql) call {
		return call{spanRow{id: "c", service: "shop", kind: "client", ip: a, peer: b, peerPort: 80, at: after(20), took: after(took)}, join(more...)}
	}
	server := func(took float64, more ...sql) call {
		return call{spanRow{id: "d", parent: "c", service: "cart", kind: "server", ip: b, port: 80, peer: a, peerPort: 40000, at: after(20), took: after(took)}, join(more...)}
	}
	named := func(name string, port int, took float64, more ...sql) call {
		c := client(took, append(more, sql{"attributes": "map('server.address', '" + name + "')"})...)
		c.peer, c.peerPort = "", port
		return c
	}
	failed := sql{"status_code": "'error'"}
	inside := call{spanRow{id: "e", service: "cart", kind: "internal", ip: b, at: after(20), took: after(0.01)}, nil}
	lossy := sql{"retransmits": "5", "retransmitted_bytes": "5000"}
	const db = "10.0.0.5"
	tests := map[string]struct {
		calls []call
		flows []flow
		want  sql    // by the letter of a span: matched or unmatched, verdict, evidence, seen
		why   string // part of the explanation of some span
	}{
		"loss that delayed a call":            {[]call{client(0.3), server(0.01)}, []flow{to(b, 80, lossy), from(b, 80)}, sql{"c": "ip and port/retransmission/interval/both ends", "d": "ip and port/retransmission/interval/both ends"}, "5 of 100 segments sent again between "},
		"loss beside a slow callee":           {[]call{client(0.6), server(0.595)}, []flow{to(b, 80, lossy), from(b, 80)}, sql{"c": "ip and port/network clean/interval/both ends", "d": "ip and port/network clean/interval/both ends"}, ""},
		"loss beside the callee's error":      {[]call{client(0.02, failed), server(0.019, failed)}, []flow{to(b, 80, lossy), from(b, 80)}, sql{"c": "ip and port/network clean/interval/both ends", "d": "ip and port/network clean/interval/both ends"}, ""},
		"loss beside an answered error":       {[]call{client(0.004, failed, sql{"response_code": "'500'"})}, []flow{to(b, 80, lossy)}, sql{"c": "ip and port/network clean/interval/client end"}, ""},
		"loss of a database's answer":         {[]call{named("db", 5432, 0.25)}, []flow{to(db, 5432), from(db, 5432, lossy)}, sql{"c": "port/retransmission/interval/both ends"}, "5 of 100 segments"},
		"a slow database":                     {[]call{named("db", 5432, 0.25)}, []flow{to(db, 5432), from(db, 5432)}, sql{"c": "port/network clean/interval/both ends"}, ""},
		"a database with one of its ends":     {[]call{named("db", 5432, 0.25)}, []flow{to(db, 5432)}, sql{"c": "port/network clean/interval/client end"}, ""},
		"refused, the peer by its name":       {[]call{named("stock", 3999, 0.003, failed)}, []flow{to("10.0.0.3", 3999, sql{"connect_failures": "1", "refused": "1", "peer_name": "'stock.shop.svc.cluster.local'"}).during(after(19), after(20))}, sql{"c": "name/connect refused/sample/client end"}, "nothing listens"},
		"another port of it refused":          {[]call{named("stock", 3000, 0.003, failed)}, []flow{to("10.0.0.3", 3999, sql{"connect_failures": "1", "refused": "1", "peer_name": "'stock.shop.svc.cluster.local'"}).during(after(19), after(20))}, sql{"c": "no flow in that time///"}, ""},
		"refused, and another answered":       {[]call{named("stock", 3999, 0.003)}, []flow{to("10.0.0.3", 3999, sql{"connect_failures": "1", "refused": "1", "peer_name": "'stock'"}).during(after(19), after(20))}, sql{"c": "name/network clean/sample/client end"}, ""},
		"swallowed":                           {[]call{client(3, failed)}, []flow{to(b, 80, sql{"connect_failures": "1", "retransmits": "2"}).during(after(19), after(23))}, sql{"c": "ip and port/connect failed/sample/client end"}, "without an answer"},
		"a far edge":                          {[]call{client(0.1), server(0.01)}, []flow{to(b, 80, sql{"rtt_us": "80000", "rtt_max_us": "82000", "rtt_usual_us": "80000"}), from(b, 80)}, sql{"c": "ip and port/network clean/interval/both ends", "d": "ip and port/network clean/interval/both ends"}, ""},
		"an edge that got slower":             {[]call{client(0.1), server(0.01)}, []flow{to(b, 80, sql{"rtt_us": "80000", "rtt_max_us": "82000", "rtt_usual_us": "1000"}), from(b, 80)}, sql{"c": "ip and port/slow network/interval/both ends", "d": "ip and port/slow network/interval/both ends"}, "rtt 82 ms, usually 1 ms"},
		"slower, beside a slow callee":        {[]call{client(0.6), server(0.595)}, []flow{to(b, 80, sql{"rtt_us": "80000", "rtt_max_us": "82000", "rtt_usual_us": "1000"}), from(b, 80)}, sql{"c": "ip and port/network clean/interval/both ends", "d": "ip and port/network clean/interval/both ends"}, ""},
		"slower than a queue explains":        {[]call{client(0.9), server(0.01)}, []flow{to(b, 80, sql{"rtt_max_us": "30000", "rtt_usual_us": "1000"}), from(b, 80)}, sql{"c": "ip and port/network clean/interval/both ends", "d": "ip and port/network clean/interval/both ends"}, ""},
		"a queue of its own bytes":            {[]call{client(0.1), server(0.01)}, []flow{to(b, 80, sql{"rtt_max_us": "82000", "rtt_usual_us": "1000", "queue_us": "75000"}), from(b, 80)}, sql{"c": "ip and port/slow queue/interval/both ends", "d": "ip and port/slow queue/interval/both ends"}, "75 ms longer"},
		"a zero window":                       {[]call{client(0.5), server(0.1)}, []flow{to(b, 80, sql{"receive_window_limited_us": "400000", "busy_us": "500000"}), from(b, 80)}, sql{"c": "ip and port/receiver's window full/interval/both ends", "d": "ip and port/receiver's window full/interval/both ends"}, "waited 400 of 500 ms"},
		"a window that was full for a moment": {[]call{client(0.036), server(0.021)}, []flow{to(b, 80), from(b, 80, sql{"receive_window_limited_us": "8000", "busy_us": "36000"})}, sql{"c": "ip and port/network clean/interval/both ends", "d": "ip and port/network clean/interval/both ends"}, ""},
		"nobody reads":                        {[]call{client(5, failed)}, []flow{to(b, 80), from(b, 80, sql{"unread_bytes": "700"})}, sql{"c": "ip and port/receiver does not read/interval/both ends"}, "700 bytes"},
		"the accept queue was full":           {[]call{client(1), server(0.01)}, []flow{to(b, 80), from(b, 80), from("::", 80, sql{"peer_ip": "toIPv6('::')", "peer_port": "0", "accept_queue_full": "3", "network_namespace": "cityHash64(toIPv6('" + b + "'))"})}, sql{"c": "ip and port/accept queue full/interval/both ends", "d": "ip and port/accept queue full/interval/both ends"}, "full accept queue: 3"},
		"a full queue of an unseen server":    {[]call{client(3, failed)}, []flow{to(b, 80, sql{"connect_failures": "1", "retransmits": "2"}).during(after(19), after(23)), from(b, 80, sql{"peer_ip": "toIPv6('::')", "peer_port": "0", "accept_queue_full": "3"}).during(after(20), after(21))}, sql{"c": "ip and port/accept queue full/sample/client end"}, "full accept queue: 3"},
		"a handshake sent again":              {[]call{client(1.1), server(0.01)}, []flow{to(b, 80, sql{"retransmits": "2"}), from(b, 80)}, sql{"c": "ip and port/slow handshake/interval/both ends", "d": "ip and port/slow handshake/interval/both ends"}, "segments of the handshake sent again: 2"},
		"a handshake of another call":         {[]call{client(0.3), server(0.01)}, []flow{to(b, 80, sql{"retransmits": "2"}), from(b, 80)}, sql{"c": "ip and port/network clean/interval/both ends", "d": "ip and port/network clean/interval/both ends"}, ""},
		"another port's queue was full":       {[]call{client(1), server(0.01)}, []flow{to(b, 80), from(b, 80), from(b, 81, sql{"peer_ip": "toIPv6('::')", "peer_port": "0", "accept_queue_full": "3"})}, sql{"c": "ip and port/network clean/interval/both ends", "d": "ip and port/network clean/interval/both ends"}, ""},
		"a full queue swallowed connects":     {[]call{client(3, failed), inside}, []flow{to(b, 80, sql{"connect_failures": "1", "retransmits": "2"}).during(after(19), after(23)), from(b, 8080), from("::", 80, sql{"peer_ip": "toIPv6('::')", "peer_port": "0", "accept_queue_full": "3", "network_namespace": "cityHash64(toIPv6('" + b + "'))"}).during(after(20), after(21))}, sql{"c": "ip and port/accept queue full/sample/client end", "e": "the span is no call over a network///"}, "full accept queue: 3"},
		"swallowed beside another's queue":    {[]call{client(3, failed), inside}, []flow{to(b, 80, sql{"connect_failures": "1", "retransmits": "2"}).during(after(19), after(23)), from(b, 8080), from("::", 81, sql{"peer_ip": "toIPv6('::')", "peer_port": "0", "accept_queue_full": "3", "network_namespace": "cityHash64(toIPv6('" + b + "'))"}).during(after(20), after(21))}, sql{"c": "ip and port/connect failed/sample/client end", "e": "the span is no call over a network///"}, "without an answer"},
		"a pool's loss beside a fast call":    {[]call{client(0.0039), server(0.003)}, []flow{to(b, 80, lossy), from(b, 80)}, sql{"c": "ip and port/network clean/interval/both ends", "d": "ip and port/network clean/interval/both ends"}, ""},
		"a bulk answer over a slower path":    {[]call{client(0.9), server(0.01)}, []flow{to(b, 80), from(b, 80, sql{"rtt_max_us": "110000", "rtt_usual_us": "1000", "segments_sent": "84"})}, sql{"c": "ip and port/slow network/interval/both ends", "d": "ip and port/slow network/interval/both ends"}, "rtt 110 ms"},
		"hosts that share an address":         {[]call{client(0.3), {spanRow{id: "e", service: "other", kind: "client", ip: a, peer: "10.0.0.9", peerPort: 81, at: after(20), took: after(0.3)}, nil}}, []flow{to(b, 80, lossy, sql{"network_namespace": "7"}), to("10.0.0.9", 81, sql{"network_namespace": "8"})}, sql{"c": "ip and port/retransmission/interval/client end", "e": "ip and port/network clean/interval/client end"}, ""},
		"another server of the host refused":  {[]call{{spanRow{id: "c", service: "shop", kind: "client", ip: a, peer: a, peerPort: 80, at: after(20), took: after(1.2)}, nil}, {spanRow{id: "d", parent: "c", service: "cart", kind: "server", ip: a, port: 80, at: after(20), took: after(0.01)}, nil}}, []flow{to(a, 3999, sql{"connect_failures": "1", "refused": "1"}).during(after(20), after(20.1))}, sql{"c": "no flow in that time///", "d": "no flow in that time///"}, ""},
		"cut off":                             {[]call{client(0.02, failed)}, []flow{to(b, 80, sql{"resets": "1"}).during(after(18), after(20.1))}, sql{"c": "ip and port/reset/sample/client end"}, "connections reset: 1"},
		"cut off, and a proxy said so":        {[]call{client(0.02, failed, sql{"response_code": "'UNAVAILABLE'"})}, []flow{to(b, 80, sql{"resets": "1"}).during(after(18), after(20.1))}, sql{"c": "ip and port/reset/sample/client end"}, "connections reset: 1"},
		"cut off beside an error of HTTP":     {[]call{client(0.02, failed, sql{"response_code": "'404'"}), server(0.019)}, []flow{to(b, 80, sql{"resets": "1"}).during(after(18), after(20.1))}, sql{"c": "ip and port/network clean/sample/client end", "d": "ip and port/network clean/sample/client end"}, ""},
		"cut off beside an error of gRPC":     {[]call{client(0.02, failed, sql{"response_code": "'NOT_FOUND'"}), server(0.019)}, []flow{to(b, 80, sql{"resets": "1"}).during(after(18), after(20.1))}, sql{"c": "ip and port/network clean/sample/client end", "d": "ip and port/network clean/sample/client end"}, ""},
		"cut off beside a code of gRPC":       {[]call{client(0.02, failed, sql{"response_code": "'5'"}), server(0.019)}, []flow{to(b, 80, sql{"resets": "1"}).during(after(18), after(20.1))}, sql{"c": "ip and port/network clean/sample/client end", "d": "ip and port/network clean/sample/client end"}, ""},
		"cut off beside a refused answer":     {[]call{client(0.02, failed, sql{"response_code": "'200'"}), server(0.019)}, []flow{to(b, 80, sql{"resets": "1"}).during(after(18), after(20.1))}, sql{"c": "ip and port/network clean/sample/client end", "d": "ip and port/network clean/sample/client end"}, ""},
		"cut off after the answer":            {[]call{client(0.004)}, []flow{to(b, 80, sql{"resets": "1"}).during(after(18), after(20.1))}, sql{"c": "ip and port/network clean/sample/client end"}, ""},
		"the client gave up":                  {[]call{client(2, failed)}, []flow{to(b, 80, sql{"gave_up": "1"}).during(after(18), after(22))}, sql{"c": "ip and port/network clean/sample/client end"}, "the client gave up: 1"},
		"a name that took long": {[]call{named("stock", 3000, 0.5)}, []flow{
			to("10.0.0.3", 3000, sql{"peer_name": "'stock.shop'"}),
			to("10.0.0.9", 53, sql{"protocol": "'dns'", "peer_name": "'stock.shop'", "queries": "2", "query_time_us": "410000", "query_time_max_us": "400000"}).during(after(19), after(21)),
		}, sql{"c": "name/slow DNS/sample/client end"}, "a query took 400 ms"},
		"a name that took a busy resolver's time": {[]call{named("stock", 3000, 0.3)}, []flow{
			to("10.0.0.3", 3000, sql{"peer_name": "'stock.shop'"}),
			to("10.0.0.9", 53, sql{"protocol": "'dns'", "peer_name": "'stock.shop'", "queries": "130", "query_time_us": "410000", "query_time_max_us": "87000"}).during(after(15), after(25)),
		}, sql{"c": "name/network clean/interval/client end"}, ""},
		"another name that took long": {[]call{named("stock", 3000, 0.5)}, []flow{
			to("10.0.0.3", 3000, sql{"peer_name": "'stock.shop'"}),
			to("10.0.0.9", 53, sql{"protocol": "'dns'", "peer_name": "'cart.shop'", "queries": "2", "query_time_us": "410000", "query_time_max_us": "400000"}).during(after(19), after(21)),
		}, sql{"c": "name/network clean/interval/client end"}, ""},
		"a name that nobody knows": {[]call{named("stock", 3000, 0.02, failed)}, []flow{
			to("10.0.0.9", 53, sql{"protocol": "'dns'", "peer_name": "'stock'", "queries": "2", "query_failures": "2"}).during(after(19), after(21)),
		}, sql{"c": "the name was not resolved/DNS failed/sample/"}, "2 of 2 queries failed"},
		"a suffix that nobody knows": {[]call{named("stock", 3000, 0.02, failed)}, []flow{
			to("10.0.0.3", 3000, sql{"peer_name": "'stock'"}),
			to("10.0.0.9", 53, sql{"protocol": "'dns'", "peer_name": "'stock'", "queries": "2", "query_failures": "1"}).during(after(19), after(21)),
		}, sql{"c": "name/network clean/interval/client end"}, ""},
		"before and after a burst": {
			[]call{
				{spanRow{id: "c", service: "shop", kind: "client", ip: a, peer: b, peerPort: 80, at: after(10), took: after(0.3)}, nil},
				{spanRow{id: "e", service: "shop", kind: "client", ip: a, peer: b, peerPort: 80, at: after(42), took: after(0.3)}, nil},
				{spanRow{id: "f", service: "shop", kind: "client", ip: a, peer: b, peerPort: 80, at: after(50), took: after(0.3)}, nil},
			},
			[]flow{to(b, 80).during(0, after(40)), to(b, 80, lossy).during(after(40), after(45)), to(b, 80).during(after(45), after(105))},
			sql{"c": "ip and port/network clean/interval/client end", "e": "ip and port/retransmission/sample/client end", "f": "ip and port/network clean/interval/client end"},
			"",
		},
		"after a full queue": {
			[]call{client(3, failed), {spanRow{id: "e", service: "shop", kind: "client", ip: a, peer: b, peerPort: 80, at: after(200), took: after(3)}, failed}},
			[]flow{
				to(b, 80, sql{"connect_failures": "1", "retransmits": "2"}).during(after(19), after(23)), from(b, 80, sql{"peer_ip": "toIPv6('::')", "peer_port": "0", "accept_queue_full": "3"}).during(after(20), after(21)),
				to(b, 80, sql{"connect_failures": "1", "retransmits": "2"}).during(after(199), after(203)),
			},
			sql{"c": "ip and port/accept queue full/sample/client end", "e": "ip and port/connect failed/sample/client end"},
			"",
		},
		"a client without an address": {
			[]call{{spanRow{id: "c", service: "shop", kind: "client", peer: b, peerPort: 80, at: after(20), took: after(0.3)}, nil}, server(0.01), {spanRow{id: "e", service: "shop", kind: "internal", ip: a, at: after(20), took: after(0.3)}, nil}},
			[]flow{from(b, 80, lossy)},
			sql{"c": "no address: the resource says neither pod nor IP/retransmission/interval/server end", "d": "ip and port/retransmission/interval/server end", "e": "the span is no call over a network///"},
			"",
		},
		"a proxy between, its far side lossy": {
			[]call{client(0.3), {spanRow{id: "d", parent: "c", service: "cart", kind: "server", ip: "10.0.0.7", port: 3000, peer: b, at: after(20), took: after(0.01)}, nil}},
			[]flow{
				to(b, 80), from(b, 80, sql{"process": "'nginx'"}),
				from("10.0.0.7", 3000, lossy, sql{"peer_ip": "toIPv6('10.0.0.2')", "peer_port": "50000"}),
				to("10.0.0.7", 3000, sql{"ip": "toIPv6('10.0.0.2')", "port": "50000", "process": "'nginx'"}),
			},
			sql{"c": "ip and port/retransmission/interval/both ends", "d": "ip/retransmission/interval/both ends"},
			"5 of 100",
		},
		"a mesh, the caller's hop unseen": {
			[]call{
				{spanRow{id: "c", service: "shop", kind: "client", ip: a, peer: "127.0.0.1", peerPort: 80, at: after(20), took: after(0.3)}, nil},
				{spanRow{id: "d", parent: "c", service: "cart", kind: "server", ip: b, port: 80, peer: "10.0.0.8", at: after(20), took: after(0.01)}, nil},
			},
			[]flow{from(b, 80, sql{"peer_ip": "toIPv6('10.0.0.8')"}), to("10.0.0.66", 9)},
			sql{"c": "loopback: the connection does not leave the host or pod///", "d": "ip/network clean/interval/server end"},
			"",
		},
		"a service's address, translated": {
			[]call{{spanRow{id: "c", service: "shop", kind: "client", ip: a, peer: "10.0.9.9", peerPort: 80, at: after(20), took: after(0.3)}, nil}},
			[]flow{to("10.0.9.9", 80, sql{"translated_peer_ip": "toIPv6('10.0.0.2')", "translated_peer_port": "8080"}), from(b, 8080, lossy)},
			sql{"c": "ip and port/retransmission/interval/both ends"},
			"5 of 100",
		},
		"the caller's address, translated": {
			[]call{client(0.3), {spanRow{id: "d", parent: "c", service: "cart", kind: "server", ip: b, port: 80, peer: "10.0.8.8", peerPort: 30000, at: after(20), took: after(0.01)}, nil}},
			[]flow{to(b, 80, sql{"translated_ip": "toIPv6('10.0.8.8')", "translated_port": "30000"}), from(b, 80, lossy, sql{"peer_ip": "toIPv6('10.0.8.8')", "peer_port": "30000"})},
			sql{"c": "ip and port/retransmission/interval/both ends", "d": "ip and port/retransmission/interval/both ends"},
			"5 of 100",
		},
		"another address of the same host": {
			[]call{{spanRow{id: "c", service: "shop", kind: "client", ip: a, peer: "fd00::2", peerPort: 80, at: after(20), took: after(0.3)}, nil}},
			[]flow{to(b, 81, sql{"network_namespace": "77", "agent_id": "'N'"}), to("fd00::2", 80, lossy, sql{"ip": "toIPv6('fd00::1')", "network_namespace": "77", "agent_id": "'N'"})},
			sql{"c": "ip and port/retransmission/interval/client end"},
			"",
		},
		"a port from the Host header": {
			[]call{{spanRow{id: "d", service: "cart", kind: "server", ip: b, port: 8443, peer: a, at: after(20), took: after(0.01)}, nil}},
			[]flow{from(b, 3000), from(b, 3000, sql{"peer_ip": "toIPv6('10.0.0.77')", "resets": "1"})},
			sql{"d": "ip/network clean/interval/server end"},
			"",
		},
		"a name within its namespace": {
			[]call{named("stock", 80, 0.3, sql{"namespace": "'shop'"})},
			[]flow{to("10.0.0.3", 80, lossy, sql{"peer_service": "'stock'", "peer_namespace": "'shop'"}), to("10.0.0.4", 80, sql{"peer_service": "'stock'", "peer_namespace": "'other'", "resets": "1"}).during(0, after(20))},
			sql{"c": "name/retransmission/interval/client end"},
			"",
		},
		"a name with the cluster's suffix": {
			[]call{named("stock.shop.svc.cluster.local:80", 80, 0.3)},
			[]flow{to("10.0.0.3", 80, lossy, sql{"peer_service": "'stock'", "peer_namespace": "'shop'"})},
			sql{"c": "name/retransmission/interval/client end"},
			"",
		},
		"the name of a pod": {
			[]call{named("db-0.db.shop.svc", 5432, 0.3)},
			[]flow{to(db, 5432, lossy, sql{"peer_pod": "'db-0'", "peer_namespace": "'shop'"}), to("10.0.0.6", 5432, sql{"peer_pod": "'db-1'", "peer_namespace": "'shop'"})},
			sql{"c": "name/retransmission/interval/client end"},
			"",
		},
		"several peers on that port": {
			[]call{named("cache", 6379, 0.3)},
			[]flow{to("10.0.0.3", 6379, lossy), to("10.0.0.4", 6379)},
			sql{"c": "several peers are possible: the span names none of them///"},
			"",
		},
		"a UNIX socket": {
			[]call{named("/var/run/docker.sock", 0, 0.3)},
			[]flow{to(b, 80)},
			sql{"c": "a UNIX socket: it is no network///"},
			"",
		},
		"an agent at the server only": {
			[]call{client(0.3), server(0.01)},
			[]flow{from(b, 80, lossy)},
			sql{"c": "ip and port/retransmission/interval/server end", "d": "ip and port/retransmission/interval/server end"},
			"",
		},
	}
	spanColumns, flowColumns := map[string][]string{}, map[string][]string{}
	traces := map[string]string{}
	for n, name := range slices.Sorted(maps.Keys(tests)) {
		tc := tests[name]
		trace := fmt.Sprintf("c%031x", n)
		traces[name] = trace
		// Each case has a network of its own.
		own := strings.NewReplacer("10.0.", fmt.Sprintf("10.%d.", n+1), "fd00::", fmt.Sprintf("fd00:%x::", n+1), "'N'", fmt.Sprintf("'node%d'", n)).Replace
		for _, c := range tc.calls {
			row := join(sql{
				"trace_id": "'" + trace + "'", "span_id": "'" + id16(c.id) + "'", "parent_span_id": "'" + id16(c.parent) + "'", "service_name": "'" + c.service + "'", "name": "'call'",
				"kind": "'" + c.kind + "'", "start_time": fmt.Sprintf("fromUnixTimestamp64Nano(%d)", now.Add(c.at).UnixNano()), "duration_ns": fmt.Sprint(c.took.Nanoseconds()),
				"ip": "toIPv6('" + address(c.ip) + "')", "port": fmt.Sprint(c.port), "peer_ip": "toIPv6('" + address(c.peer) + "')", "peer_port": fmt.Sprint(c.peerPort),
			}, c.more)
			collect(spanColumns, row, own)
		}
		for i, f := range tc.flows {
			row := join(sql{
				"time": fmt.Sprintf("fromUnixTimestamp64Nano(%d)", now.Add(f.to).UnixNano()), "start_time": fmt.Sprintf("fromUnixTimestamp64Nano(%d)", now.Add(f.from).UnixNano()),
				"connection": fmt.Sprint(i), "segments_sent": "100", "busy_us": "1000", "rtt_us": "300", "rtt_min_us": "200", "rtt_max_us": "400",
			}, f.more)
			if _, ok := row["network_namespace"]; !ok {
				row["network_namespace"] = "cityHash64(" + row["ip"] + ")"
			}
			collect(flowColumns, row, own)
		}
	}
	for table, rows := range map[string]map[string][]string{"spans_local": spanColumns, "flows_local": flowColumns} {
		for list, tuples := range rows {
			mustExec(t, d, fmt.Sprintf("INSERT INTO %s.%s (%s) VALUES %s", cfg.Database, table, list, strings.Join(tuples, ", ")))
		}
	}
	// All traces in one answer have the answers that each has alone.
	together := answersOf(t, d, "traces_network(trace_ids = ['"+strings.Join(slices.Collect(maps.Values(traces)), "', '")+"'])")
	for _, name := range slices.Sorted(maps.Keys(tests)) {
		tc, id := tests[name], traces[name]
		t.Run(name, func(t *testing.T) {
			got := answersOf(t, d, "trace_network(trace_id = '"+id+"')")
			if diff := cmp.Diff(tc.want, got[id].spans); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !strings.Contains(got[id].why, tc.why) {
				t.Errorf("explained by %q, want %q", got[id].why, tc.why)
			}
			if diff := cmp.Diff(got[id], together[id], cmp.AllowUnexported(answers{})); diff != "" {
				t.Errorf("together with others (-alone +together):\n%s", diff)
			}
		})
	}
}

// answers are what trace_network says of the spans of a trace, by the first letter of their ids.
type answers struct {
	spans sql
	why   string // of all spans, in their order
}

// answersOf returns what a view of traces says, by trace.
func answersOf(t *testing.T, d *DB, view string) map[string]answers {
	t.Helper()
	rows, err := d.conn.Query(t.Context(), "SELECT trace_id, substring(span_id, 1, 1), concat(if(matched = '', unmatched, matched), '/', verdict, '/', evidence, '/', seen), why FROM "+d.cfg.Database+"."+view)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]answers{}
	for rows.Next() {
		var trace, id, answer, why string
		if err := rows.Scan(&trace, &id, &answer, &why); err != nil {
			t.Fatal(err)
		}
		of := got[trace]
		if of.spans == nil {
			of.spans = sql{}
		}
		of.spans[id] = answer
		of.why += why + "\n"
		got[trace] = of
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		t.Fatal(err)
	}
	return got
}

// collect adds a row to those with the same columns.
func collect(rows map[string][]string, row sql, own func(string) string) {
	columns := slices.Sorted(maps.Keys(row))
	tuple := make([]string, len(columns))
	for i, c := range columns {
		tuple[i] = own(row[c])
	}
	list := strings.Join(columns, ", ")
	rows[list] = append(rows[list], "("+strings.Join(tuple, ", ")+")")
}
