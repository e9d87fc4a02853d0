package main

import (
	"context"
	_ "embed"
	"fmt"
	"strings"
	"time"

	driver "github.com/ClickHouse/clickhouse-go/v2"
	"golang.org/x/sync/errgroup"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
)

// The calls are those of 40 services with 5 pods each; service a calls
// (7a + 1) mod 40. Trace t begins at service t mod 40 and makes three calls
// below one another: 8 spans, of which the last is internal. Every pod of a
// service keeps connections to every pod of the next, and both ends report each
// of them every minute. Service 1 loses packets.
const (
	services     = 40
	podsEach     = 5
	podPairs     = services * podsEach * podsEach
	spansATrace  = 8
	rowsADial    = 120     // flows of a connection in an hour
	minPerHour   = 500_000 // so that every pod has errors in every hour
	traceID      = "lower(hex(sipHash128(t)))"
	userID       = "'user-' || toString(sipHash64(t, 'user') % 100000)"
	fillSpansSQL = `INSERT INTO metaflow.spans_local (trace_id, span_id, parent_span_id, name, kind, start_time, duration_ns, status_code, status_message,
	service_name, resource, origin, scope, attributes, protocol, method, endpoint, response_code, ip, port, peer_ip, peer_port, namespace, pod, workload)
WITH
	k % 2 = 0 AS served, k = 7 AS inside,
	chain[intDiv(k, 2) + 1] AS own, pods[intDiv(k, 2) + 1] AS p,
	multiIf(k = 0 OR inside, 0, served, chain[intDiv(k, 2)], chain[intDiv(k, 2) + 2]) AS other,
	multiIf(k = 0 OR inside, 0, served, pods[intDiv(k, 2)], pods[intDiv(k, 2) + 2]) AS other_pod,
	toIPv6('10.0.' || toString(own) || '.' || toString(p + 1)) AS own_ip,
	multiIf(inside, '::', k = 0, '192.168.' || toString(t % 200) || '.1', '10.0.' || toString(other) || '.' || toString(other_pod + 1)) AS other_ip,
	'svc-' || toString(own) AS service, service || '-6b7f9c5d4-' || toString(p) AS pod_name,
	leftPad(toString(own * 5 + p), 8, '0') || '-6d1f-4c67-9a3b-2f1f3c9d8e70' AS uid, 'node-' || toString((own + p) % 12) AS on_node,
	['/cart', '/product', '/checkout', '/ship'][own % 4 + 1] AS path, ['GET', 'GET', 'POST', 'GET'][own % 4 + 1] AS verb,
	'p-' || toString(sipHash64(t, 'product') % 2000) AS product,
	` + userID + ` AS user, lower(hex(sipHash128(t, 'session'))) AS session,
	bad AND k >= 4 AS failed, if(failed, '504', '200') AS code,
	40000 + sipHash64(t, k - k % 2) % {per_pair:UInt64} AS port_of_client
SELECT
	` + traceID + `, lower(hex(reinterpretAsFixedString(sipHash64(t, k)))), if(k = 0, '', lower(hex(reinterpretAsFixedString(sipHash64(t, toUInt8(k - 1)))))),
	multiIf(inside, 'handle', served, verb || ' ' || path || '/{id}', verb), multiIf(inside, 1, served, 2, 3),
	fromUnixTimestamp64Nano(toInt64({begin:Int64} + intDiv(n * 3600000000000, {traces:UInt64}) + k * 100000)),
	toInt64((8 - k) * 1000000 + sipHash64(t, k) % 500000) * if(sipHash64(t) % 1000 = 0, 50, 1), if(failed, 2, if(served, 0, 1)), if(failed, 'deadline exceeded', ''),
	service,
	'{"service.name":"' || service || '","service.namespace":"shop","service.version":"1.4.2","service.instance.id":"' || uid || '","telemetry.sdk.name":"opentelemetry","telemetry.sdk.language":"go","telemetry.sdk.version":"1.38.0","k8s.cluster.name":"eu-1","k8s.namespace.name":"shop","k8s.pod.name":"'
		|| pod_name || '","k8s.pod.uid":"' || uid || '","k8s.node.name":"' || on_node || '","k8s.deployment.name":"' || service || '","container.image.name":"registry.example.com/shop/' || service || '","container.image.tag":"1.4.2","os.type":"linux","host.arch":"amd64","process.runtime.name":"go"}',
	'{"service_namespace":"shop","service_instance_id":"' || uid || '","cluster":"eu-1","pod_uid":"' || uid || '","node":"' || on_node || '","agent_id":"' || on_node || '"}',
	'{"name":"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp","version":"0.63.0"}',
	multiIf(
		inside, map('code.function.name', service || '.handle', 'code.file.path', '/app/internal/' || service || '/handler.go', 'code.line.number', toString(100 + t % 4), 'app.items', toString(sipHash64(t, 'items') % 30),
			'feature_flag.key', 'newCheckout', 'feature_flag.result.variant', 'off', 'thread.id', toString(sipHash64(t, 'thread') % 16)),
		served, map('http.request.method', verb, 'url.scheme', 'http', 'url.path', path || '/' || product, 'http.route', path || '/{id}', 'http.response.status_code', code,
			'server.address', 'webstore.example.com', 'server.port', '8080', 'network.peer.address', other_ip, 'network.peer.port', toString(port_of_client), 'network.protocol.version', '1.1',
			'user_agent.original', 'Mozilla/5.0 (X11; Linux x86_64) Firefox/1' || toString(sipHash64(t, 'agent') % 30), 'http.response.body.size', toString(sipHash64(t, k, 'size') % 20000),
			'app.user.id', user, 'app.session.id', session, 'app.currency', 'EUR', 'app.tenant', 'webstore-eu', 'enduser.role', 'customer', 'app.region', 'eu-west-1', 'app.product.id', product),
		map('http.request.method', verb, 'url.full', 'http://svc-' || toString(other) || ':8080' || path || '/' || product, 'http.response.status_code', code, 'network.protocol.version', '1.1',
			'server.address', 'svc-' || toString(other), 'server.port', '8080', 'network.peer.address', other_ip, 'network.peer.port', '8080', 'app.user.id', user, 'app.session.id', session)),
	if(inside, '', 'http'), if(inside, '', verb), if(inside, '', path || '/{id}'), if(inside, '', code),
	own_ip, if(served, 8080, 0), toIPv6(other_ip), multiIf(inside OR k = 0, 0, served, port_of_client, 8080), 'shop', pod_name, service
FROM
(
	SELECT number AS n, {first:UInt64} + number AS t, t % 40 AS a, [a, (7 * a + 1) % 40, (49 * a + 8) % 40, (343 * a + 57) % 40] AS chain,
		[intDiv(t, 40) % 5, intDiv(t, 200) % 5, intDiv(t, 1000) % 5, intDiv(t, 5000) % 5] AS pods, sipHash64(t, 'bad') % 100 = 0 AS bad
	FROM numbers({traces:UInt64})
)
ARRAY JOIN range(8)::Array(UInt8) AS k`
	fillFlowsSQL = `INSERT INTO metaflow.flows_local (time, start_time, role, ip, port, peer_ip, peer_port, network_namespace, connection, state, bytes_sent, bytes_received,
	segments_sent, retransmits, retransmitted_bytes, rtt_us, rtt_min_us, busy_us, agent_id, cluster, node, namespace, pod, pod_uid, workload,
	peer_node, peer_namespace, peer_pod, peer_pod_uid, peer_workload)
WITH
	side = 0 AS calls, if(calls, a, b) AS own, if(calls, pa, pb) AS p, if(calls, b, a) AS other, if(calls, pb, pa) AS other_pod,
	'svc-' || toString(own) AS service, 'svc-' || toString(other) AS other_service,
	'node-' || toString((own + p) % 12) AS on_node, 'node-' || toString((other + other_pod) % 12) AS other_node,
	toInt64({begin:Int64} + (m * 60 + sipHash64(r) % 60) * 1000000000) AS at, sipHash64(r, m) AS x
SELECT fromUnixTimestamp64Nano(at), fromUnixTimestamp64Nano(at - 60000000000), if(calls, 1, 2),
	toIPv6('10.0.' || toString(own) || '.' || toString(p + 1)), if(calls, 40000 + c, 8080), toIPv6('10.0.' || toString(other) || '.' || toString(other_pod + 1)), if(calls, 8080, 40000 + c),
	4026532000 + own * 5 + p, cityHash64(r, side), 1,
	10000 + x % 100000, 20000 + x % 777777, 100 + x % 500, if(a = 1 AND calls, 1 + x % 20, 0), if(a = 1 AND calls, 1400, 0), 300 + x % 1000, 200 + r % 50, x % 10000000,
	on_node, 'eu-1', on_node, 'shop', service || '-6b7f9c5d4-' || toString(p), leftPad(toString(own * 5 + p), 8, '0') || '-6d1f-4c67-9a3b-2f1f3c9d8e70', service,
	other_node, 'shop', other_service || '-6b7f9c5d4-' || toString(other_pod), leftPad(toString(other * 5 + other_pod), 8, '0') || '-6d1f-4c67-9a3b-2f1f3c9d8e70', other_service
FROM
(
	SELECT intDiv(number, {connections:UInt64}) AS m, number % {connections:UInt64} AS r, r % 40 AS a, (7 * a + 1) % 40 AS b,
		intDiv(r, 40) % 5 AS pa, intDiv(r, 200) % 5 AS pb, intDiv(r, 1000) AS c
	FROM numbers({connections:UInt64} * 60)
)
ARRAY JOIN [0, 1] AS side`
	// The view has the exporter's columns, in the order of its table. Its indexes take ten times
	// the CPU of the others' inserts, so two threads share them.
	fillCollectorSQL = `INSERT INTO otel.otel_traces SELECT * EXCEPT (SampleRate, "__hdx_materialized_rum.sessionId") FROM metaflow.otel_traces
WHERE Timestamp >= fromUnixTimestamp64Nano({begin:Int64}, 'UTC') AND Timestamp < fromUnixTimestamp64Nano({begin:Int64} + 3600000000000, 'UTC')
SETTINGS max_insert_threads = 2`
)

// collectorTable has the collector's spans.
const collectorTable = "otel.otel_traces"

// collectorTables is the schema that the collector's ClickHouse exporter
// v0.161.0 creates: the table of spans, and the one from which its users look
// up when a trace was.
//
//go:embed otel_traces.sql
var collectorTables string

// data is what the tables hold: whole hours, filled in order.
type data struct {
	conn      driver.Conn
	pid       int // ClickHouse
	begin     time.Time
	hours     int
	perHour   int
	collector bool
	tables    []table
}

type table struct {
	name    string
	fill    string
	perHour int // rows
	done    int // hours that it held at the start
}

func (d *data) traces() int      { return d.perHour / spansATrace }
func (d *data) connections() int { return d.perHour / rowsADial }

// hour returns the beginning of hour h.
func (d *data) hour(h int) time.Time { return d.begin.Add(time.Duration(h) * time.Hour) }

// open finds out what the tables hold already.
func (d *data) open(ctx context.Context) error {
	spans := d.traces() * spansATrace
	d.tables = []table{
		{name: "metaflow.spans_local", fill: fillSpansSQL, perHour: spans},
		{name: "metaflow.flows_local", fill: fillFlowsSQL, perHour: d.connections() * rowsADial},
	}
	if d.collector {
		for statement := range strings.SplitSeq(collectorTables, ";\n") {
			if err := d.conn.Exec(ctx, statement); err != nil {
				return err
			}
		}
		d.tables = append(d.tables, table{name: collectorTable, fill: fillCollectorSQL, perHour: spans})
	}
	for i := range d.tables {
		t := &d.tables[i]
		var rows uint64
		if err := d.conn.QueryRow(ctx, "SELECT count() FROM "+t.name).Scan(&rows); err != nil {
			return err
		}
		t.done = int(rows) / t.perHour
		if t.done > d.hours || int(rows)%t.perHour != 0 {
			return fmt.Errorf("%s has %d rows: want at most %d hours of %d rows; remove the directory", t.name, rows, d.hours, t.perHour)
		}
	}
	d.begin = time.Now().UTC().Truncate(time.Hour).Add(-time.Duration(d.hours) * time.Hour)
	if d.tables[0].done > 0 {
		return d.conn.QueryRow(ctx, "SELECT toDateTime(toStartOfHour(min(start_time)), 'UTC') FROM metaflow.spans_local").Scan(&d.begin)
	}
	return nil
}

// missing returns the rows that the emptiest table lacks.
func (d *data) missing() int {
	hours := 0
	for _, t := range d.tables {
		hours = max(hours, d.hours-t.done)
	}
	return hours * d.perHour
}

// fill fills the missing hours of every table: one after another, because a table continues
// where it ends, and the tables side by side, because most inserts use one core. The collector's
// gets its spans from the view, which must have the hour first.
func (d *data) fill(ctx context.Context) error {
	first, stored := d.hours, make(chan struct{}, d.hours) // an item for each hour of spans
	for _, t := range d.tables {
		first = min(first, t.done)
	}
	begun := time.Now()
	before, err := measured.UsageOf(d.pid)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for i, t := range d.tables {
		g.Go(func() error {
			for h := range d.hours {
				if t.name == collectorTable {
					select {
					case <-stored:
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				if h >= t.done {
					if err := d.fillHour(ctx, t, h); err != nil {
						return err
					}
				}
				if i == 0 {
					stored <- struct{}{}
				}
				if i < len(d.tables)-1 || h < first {
					continue
				}
				// The last table is the one that waits, or the flows.
				took := time.Since(begun)
				used, err := measured.UsageOf(d.pid)
				if err != nil {
					return err
				}
				measured.Progress("filled %d of %d hours in %v with %v of ClickHouse's CPU, about %v left", h+1, d.hours, took.Round(time.Second), (used.CPU - before.CPU).Round(time.Second),
					(took * time.Duration(d.hours-h-1) / time.Duration(h+1-first)).Round(time.Second))
			}
			return nil
		})
	}
	return g.Wait()
}

func (d *data) fillHour(ctx context.Context, t table, h int) error {
	err := d.conn.Exec(ctx, t.fill,
		driver.Named("begin", d.hour(h).UnixNano()), driver.Named("first", uint64(h*d.traces())), driver.Named("traces", uint64(d.traces())),
		driver.Named("connections", uint64(d.connections())), driver.Named("per_pair", uint64(d.connections()/podPairs)))
	if err != nil {
		return fmt.Errorf("fill hour %d of %s: %w", h, t.name, err)
	}
	return nil
}

// printTables prints what is stored.
func (d *data) printTables(ctx context.Context) error {
	fmt.Printf("%d hours of %d spans and %d flows, one ClickHouse, two threads a query\n\n| table | rows | parts | GB | bytes a row |\n|---|---|---|---|---|\n", d.hours, d.tables[0].perHour, d.tables[1].perHour)
	for _, t := range d.tables {
		var rows, parts, bytes uint64
		err := d.conn.QueryRow(ctx, "SELECT sum(rows), count(), sum(bytes_on_disk) FROM system.parts WHERE active AND database || '.' || table = {name:String}", driver.Named("name", t.name)).Scan(&rows, &parts, &bytes)
		if err != nil {
			return err
		}
		fmt.Printf("| %s | %d | %d | %.2f | %.1f |\n", t.name, rows, parts, float64(bytes)/1e9, float64(bytes)/float64(rows))
	}
	fmt.Println()
	return nil
}
