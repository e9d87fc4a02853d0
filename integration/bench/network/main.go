// Command networkbench measures how fast the views over spans and flows answer:
// it fills the tables with a day of both, ten million rows each by default, and
// times queries as a person would run them.
//
//	go run ./integration/bench/network
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	driver "github.com/ClickHouse/clickhouse-go/v2"

	"github.com/metaflowys/metaflow-server/integration/bench/measured"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
)

func main() {
	measured.MaybeRunEngine()
	spans := flag.Int("spans", 10_000_000, "spans to store")
	flows := flag.Int("flows", 10_000_000, "flows to store")
	runs := flag.Int("runs", 7, "runs of each query")
	data := flag.String("data", "", "keep tables and views in this `directory` and reuse existing ones; if empty, they are removed")
	measured.Main("networkbench", func(ctx context.Context) error { return run(ctx, *data, *spans, *flows, *runs) })
}

// A day of calls between 40 services of three pods each: a trace has a server
// span, a client span below it and the server span of the other end. Every pair
// of pods keeps ten connections; both ends report each of them every minute.
// One edge loses packets.
const (
	fillSpans = `INSERT INTO metaflow.spans_local (trace_id, span_id, parent_span_id, name, kind, start_time, duration_ns, status_code, service_name, origin,
	attributes, protocol, method, endpoint, response_code, ip, port, peer_ip, peer_port, namespace, pod, workload)
WITH toInt64({traces:UInt64}) AS n, {begin:Int64} AS t0
SELECT lower(hex(sipHash128(t))), lower(hex(sipHash64(t, k))), if(k = 0, '', lower(hex(sipHash64(t, k - 1)))),
	['GET /buy', 'GET', 'GET /item'][k + 1], [2, 3, 2][k + 1],
	fromUnixTimestamp64Nano(toInt64(t0 + intDiv(t * 86400, n) * 1000000000 + sipHash64(t) % 1000000000 + k * 100000)), toInt64((3 - k) * 1000000 + sipHash64(t, k) % 500000),
	if(t % 50 = 0, 2, 1), 'svc-' || toString(if(k < 2, a, b)), '{"pod_uid":"' || toString(if(k < 2, a * 3 + pa, b * 3 + pb)) || '","cluster":"c"}',
	map('http.route', '/x', 'n', toString(t % 1000)), 'http', 'GET', '/x', '200',
	if(k < 2, A, B), if(k = 2, 8080, 0), if(k = 0, toIPv6('192.168.0.1'), if(k = 1, B, A)), if(k = 1, 8080, 0),
	'shop', 'p' || toString(if(k < 2, a * 3 + pa, b * 3 + pb)), 'svc-' || toString(if(k < 2, a, b))
FROM
(
	SELECT number AS t, t % 40 AS a, (t * 7 + 1) % 40 AS b, intDiv(t, 40) % 3 AS pa, intDiv(t, 120) % 3 AS pb,
		toIPv6('10.0.' || toString(a) || '.' || toString(pa + 1)) AS A, toIPv6('10.0.' || toString(b) || '.' || toString(pb + 1)) AS B
	FROM numbers({from:UInt64}, {count:UInt64})
)
ARRAY JOIN [0, 1, 2] AS k`
	fillFlows = `INSERT INTO metaflow.flows_local (time, start_time, role, ip, port, peer_ip, peer_port, connection, state, bytes_sent, bytes_received,
	segments_sent, retransmits, retransmitted_bytes, rtt_us, rtt_min_us, busy_us, agent_id, cluster, node, namespace, pod, pod_uid, workload)
WITH {begin:Int64} AS t0
SELECT fromUnixTimestamp64Nano(toInt64(t0 + (m + 1) * 60000000000)), fromUnixTimestamp64Nano(toInt64(t0 + m * 60000000000)), if(side = 0, 1, 2),
	if(side = 0, A, B), if(side = 0, 40000 + c, 8080), if(side = 0, B, A), if(side = 0, 8080, 40000 + c), cityHash64(a, b, c, pa, pb, side), 1,
	10000 + sipHash64(c, m) % 1000, 20000, 100, if(a = 1 AND side = 0, 5, 0), if(a = 1 AND side = 0, 5000, 0), 300 + sipHash64(m, a) % 100, 200, 1000,
	'agent', 'c', 'node', 'shop', 'p' || toString(if(side = 0, a * 3 + pa, b * 3 + pb)), toString(if(side = 0, a * 3 + pa, b * 3 + pb)), 'svc-' || toString(if(side = 0, a, b))
FROM
(
	SELECT number % 1440 AS m, intDiv(number, 1440) AS r, r % 40 AS a, (a * 7 + 1) % 40 AS b, intDiv(r, 40) % 3 AS pa, intDiv(r, 120) % 3 AS pb, intDiv(r, 360) % 10 AS c,
		toIPv6('10.0.' || toString(a) || '.' || toString(pa + 1)) AS A, toIPv6('10.0.' || toString(b) || '.' || toString(pb + 1)) AS B
	FROM numbers({from:UInt64}, {count:UInt64})
)
ARRAY JOIN [0, 1] AS side`
)

const (
	day    = 24 * time.Hour
	pieces = 8 // INSERTs per table, like writers that make parts over time
)

func run(ctx context.Context, dir string, spans, flows, runs int) error {
	filled := false
	if dir == "" {
		temporary, err := os.MkdirTemp("", "networkbench-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(temporary) }()
		dir = temporary
	} else if _, err := os.Stat(dir); err == nil {
		filled = true
	}
	engine, err := measured.StartClickHouse(ctx, chengine.Options{DataDir: dir}, driver.Settings{
		"max_insert_block_size": 1_000_000, "max_partitions_per_insert_block": 1000, "min_insert_block_size_rows": 500_000,
	})
	if err != nil {
		return err
	}
	defer engine.Close()
	cfg := clickhouse.DefaultConfig()
	cfg.Addresses = []string{engine.NativeAddr()}
	db, err := clickhouse.Open(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if err := db.Migrate(ctx, clickhouse.Retention{}); err != nil {
		return err
	}
	if err := db.Close(); err != nil {
		return err
	}
	if filled {
		return ask(ctx, engine.Conn, runs)
	}
	begin := time.Now().Add(-day).UnixNano()
	for _, t := range []struct {
		name, fill string
		numbers    int
	}{{"spans", fillSpans, spans / 3}, {"flows", fillFlows, flows / 2}} {
		measured.Progress("filling %s", t.name)
		for i := range pieces {
			from, to := t.numbers*i/pieces, t.numbers*(i+1)/pieces
			err := engine.Conn.Exec(ctx, t.fill, driver.Named("traces", uint64(t.numbers)), driver.Named("begin", begin),
				driver.Named("from", uint64(from)), driver.Named("count", uint64(to-from)))
			if err != nil {
				return fmt.Errorf("fill %s: %w", t.name, err)
			}
		}
	}
	measured.Progress("waiting for merges")
	if err := engine.WaitMerged(ctx); err != nil {
		return err
	}
	return ask(ctx, engine.Conn, runs)
}

// ask prints the duration of each query.
func ask(ctx context.Context, conn driver.Conn, runs int) error {
	var spans, flows uint64
	var trace string
	err := conn.QueryRow(ctx, `SELECT (SELECT count() FROM metaflow.spans_local), (SELECT count() FROM metaflow.flows_local),
		(SELECT any(trace_id) FROM metaflow.spans_local WHERE start_time > now() - INTERVAL 30 MINUTE)`).Scan(&spans, &flows, &trace)
	if err != nil {
		return err
	}
	fmt.Printf("%d spans and %d flows of one day, one ClickHouse\n\n| question | rows | fastest | median | slowest |\n|---|---|---|---|---|\n", spans, flows)
	for _, q := range []string{
		"SELECT * FROM metaflow.trace_network(trace_id = '" + trace + "')",
		"SELECT * FROM metaflow.service_network WHERE minute >= now() - INTERVAL 1 HOUR",
		"SELECT * FROM metaflow.network_trouble(minutes = 60)",
	} {
		var took []time.Duration
		n := 0
		for range runs {
			begun := time.Now()
			rows, err := conn.Query(ctx, q)
			if err != nil {
				return fmt.Errorf("%s: %w", q, err)
			}
			for n = 0; rows.Next(); n++ {
			}
			if err := errors.Join(rows.Err(), rows.Close()); err != nil {
				return err
			}
			took = append(took, time.Since(begun))
		}
		slices.Sort(took)
		ms := func(d time.Duration) string { return fmt.Sprintf("%.0f ms", float64(d.Microseconds())/1000) }
		fmt.Printf("| %s | %d | %s | %s | %s |\n", q[:min(len(q), 60)], n, ms(took[0]), ms(took[len(took)/2]), ms(took[len(took)-1]))
	}
	return nil
}
