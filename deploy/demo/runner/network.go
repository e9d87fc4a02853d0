package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/metaflowys/metaflow-server/deploy/demo/internal/process"
	"github.com/metaflowys/metaflow-server/deploy/demo/netlab"
	"github.com/metaflowys/metaflow-server/pkg/testkit/namespaces"
)

// The edge that loses packets, how many it loses, and the number of visitors.
const (
	lossyCaller, lossyCallee = "frontend", "productcatalogservice"
	lossyPackets             = 20 // one in so many is dropped, at first
	mostLossy                = 5
	lossyVisitors            = 80
	lossyVisitorsAtOnce      = 6
	warmUpVisitors           = 6
)

const networkTitle = "Was it the code, or was it the network?"

// network answers the question with an example: it runs the shop again, each
// service in its own network namespace, with an edge that loses packets. Where
// that is not possible, it prints what it would have shown.
func network(ctx context.Context, o options, path *path, db *database, out *terminal, progress *progress) (err error) {
	if path.agent == nil {
		return nil
	}
	if missing := namespaces.Missing(); missing != "" {
		out.example(missing)
		return nil
	}
	port, err := process.FreePort("127.0.0.1")
	if err != nil {
		return err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return err
	}
	if err := path.configure(ctx, fmt.Sprintf("inputs:\n  integration: {grpc_port: %s}\n  flow: {enabled: true, dump_interval: 1s, report_interval: 10s}\n", port)); err != nil {
		return err
	}
	if err := path.agent.Await(ctx, process.Listening(net.JoinHostPort("127.0.0.1", port))); err != nil {
		return err
	}
	progress.printf("running the WebStore again, each service in its own network namespace; the agent watches their connections")
	lab, err := netlab.Start(ctx, netlab.Options{Program: o.service, OTLPPort: uint16(number), Output: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	if err := awaitFlows(ctx, lab, db, o.patience, progress); err != nil {
		return err
	}
	// On a fast machine it may happen that no loss costs a call anything. So more are lost then.
	for packets := lossyPackets; ; packets /= 2 {
		id, calls, err := lossy(ctx, lab, db, packets, o.patience, progress)
		if errors.Is(err, errNotShown) && packets >= 2*mostLossy {
			progress.printf("no call had to wait for what was lost")
			continue
		}
		if id != "" {
			out.question(networkTitle, fmt.Sprintf(callsQuery, id))
			out.calls(calls)
		}
		if err == nil {
			out.println(out.style(green, fmt.Sprintf("It was the network, between %s and %s.", lossyCaller, lossyCallee)))
		}
		return err
	}
}

// awaitFlows makes visits until every service has flow data.
func awaitFlows(ctx context.Context, lab *netlab.Lab, db *database, patience time.Duration, progress *progress) error {
	want := uint64(lab.Namespaces() - 1) // the bridge has no address
	since := time.Now()
	return awaitStored(ctx, want, patience,
		func(ctx context.Context) (uint64, error) {
			if _, err := lab.Visit(warmUpVisitors, lossyVisitorsAtOnce); err != nil {
				return 0, err
			}
			return db.watched(ctx, lab, since)
		},
		func(seen uint64) { progress.printf("flow data of %d of %d services", seen, want) })
}

// errNotShown means that the answer does not name the edge that lost packets.
var errNotShown = errors.New("the answer does not show it")

// lossy makes the network lose one in so many packets on an edge, and returns the calls of
// the trace whose call over it waited longest.
func lossy(ctx context.Context, lab *netlab.Lab, db *database, packets int, patience time.Duration, progress *progress) (id string, calls []hop, err error) {
	if err := lab.Settle(ctx); err != nil {
		return "", nil, err
	}
	progress.printf("the network now drops one in %d packets between %s and %s; %d visitors", packets, lossyCaller, lossyCallee, lossyVisitors)
	if err := lab.Lose(lossyCaller, lossyCallee, packets); err != nil {
		return "", nil, err
	}
	from := time.Now()
	if _, err := lab.Visit(lossyVisitors, lossyVisitorsAtOnce); err != nil {
		return "", nil, err
	}
	if err := errors.Join(lab.Heal(), lab.Settle(ctx)); err != nil {
		return "", nil, err
	}
	err = awaitStored(ctx, lossyVisitors, patience,
		func(ctx context.Context) (uint64, error) { return db.journeys(ctx, from) },
		func(stored uint64) { progress.printf("%d of %d journeys stored", stored, lossyVisitors) })
	if err != nil {
		return "", nil, err
	}
	if id, err = db.waitedMost(ctx, lossyCaller, lossyCallee, from); err != nil {
		return "", nil, err
	}
	// Flow data arrives a moment after the connections were closed.
	err = awaitStored(ctx, 1, patience, func(ctx context.Context) (found uint64, err error) {
		if calls, err = db.calls(ctx, id); err == nil && lossFound(calls) {
			found = 1
		}
		return found, err
	}, func(uint64) {})
	if err != nil {
		err = fmt.Errorf("the network dropped packets between %s and %s, but %w: %w", lossyCaller, lossyCallee, errNotShown, err)
	}
	return id, calls, err
}

// lossFound reports whether all calls have flow data and the lossy edge is the
// only one with a verdict other than clean.
func lossFound(hops []hop) bool {
	for _, h := range hops {
		lossy := h.caller == lossyCaller && h.callee == lossyCallee
		if h.withoutFlow > 0 || lossy == (h.verdict == clean) {
			return false
		}
	}
	return len(hops) > 0
}

// clean is the verdict on a network without trouble.
const clean = "network clean"

// callsQuery returns the calls of one trace, edges with trouble first.
const callsQuery = `SELECT service_name AS caller,
       if(peer_service_name != '', peer_service_name, replaceOne(toString(any(peer_ip)), '::ffff:', '')) AS callee,
       count() AS calls, max(duration_ns) / 1e6 AS slowest_ms, argMax(gap_ns, duration_ns) / 1e6 AS gap_ms,
       max(retransmits + peer_retransmits) AS sent_again, max(rtt_us) / 1e3 AS rtt_ms,
       countIf(matched = '') AS without_flow, argMax(if(verdict = '', unmatched, verdict), verdict != 'network clean') AS outcome
FROM metaflow.trace_network(trace_id = '%s')
WHERE kind = 'client'
GROUP BY caller, peer_service_name
ORDER BY outcome = 'network clean', slowest_ms DESC`

// hop is one row of the answer: the calls of a trace from one service to
// another.
type hop struct {
	caller, callee string
	calls          uint64
	slowest, gap   float64 // milliseconds: the caller's duration, and the part that the callee does not account for
	sentAgain      uint64
	rtt            float64 // milliseconds
	withoutFlow    uint64  // calls without flow data
	verdict        string
}

// calls returns the edges of one trace.
func (d *database) calls(ctx context.Context, id string) (out []hop, err error) {
	err = d.each(ctx, fmt.Sprintf(callsQuery, id), func(rows driver.Rows) error {
		var c hop
		err := rows.Scan(&c.caller, &c.callee, &c.calls, &c.slowest, &c.gap, &c.sentAgain, &c.rtt, &c.withoutFlow, &c.verdict)
		out = append(out, c)
		return err
	})
	return out, err
}

// watched returns the number of the lab's services with flow data.
func (d *database) watched(ctx context.Context, lab *netlab.Lab, since time.Time) (n uint64, err error) {
	host := lab.Host().As4()
	const query = `SELECT uniqExact(ip) FROM metaflow.flows WHERE toUnixTimestamp64Nano(time) > $1 AND startsWith(toString(ip), $2) AND ip != toIPv6($3)`
	err = d.conn.QueryRow(ctx, query, since.UnixNano(), fmt.Sprintf("::ffff:%d.%d.%d.", host[0], host[1], host[2]), lab.Host().String()).Scan(&n)
	return n, err
}

const (
	journeysQuery = `SELECT count() FROM metaflow.spans
WHERE service_namespace = 'webstore' AND parent_span_id = '' AND toUnixTimestamp64Nano(start_time) >= $1`
	// A call may be slow in its server, too: so the example is the call over the edge in question
	// that took longest beside its server.
	waitedMostQuery = `SELECT argMax(call.trace_id, toInt64(call.duration_ns) - toInt64(answer.duration_ns))
FROM metaflow.spans AS call INNER JOIN metaflow.spans AS answer ON answer.trace_id = call.trace_id AND answer.parent_span_id = call.span_id
WHERE call.service_namespace = 'webstore' AND call.kind = 'client' AND call.service_name = $2 AND answer.service_name = $3
    AND toUnixTimestamp64Nano(call.start_time) >= $1 AND toUnixTimestamp64Nano(answer.start_time) >= $1`
)

// journeys returns the number of journeys that began since then.
func (d *database) journeys(ctx context.Context, since time.Time) (n uint64, err error) {
	err = d.conn.QueryRow(ctx, journeysQuery, since.UnixNano()).Scan(&n)
	return n, err
}

// waitedMost returns the id of the trace whose call from one service to another took
// longest beside the server's own time, of those that began since then.
func (d *database) waitedMost(ctx context.Context, caller, callee string, since time.Time) (id string, err error) {
	err = d.conn.QueryRow(ctx, waitedMostQuery, since.UnixNano(), caller, callee).Scan(&id)
	return id, err
}

// calls prints a row for each edge of a trace.
func (t *terminal) calls(calls []hop) {
	t.println(t.style(bold, fmt.Sprintf("%-22s %-22s %6s %11s %8s %11s %7s %7s  %s", "caller", "callee", "calls", "slowest ms", "gap ms", "sent again", "rtt ms", "no flow", "verdict")))
	for _, c := range calls {
		style := ""
		if c.verdict != clean {
			style = red
		}
		line := fmt.Sprintf("%-22s %-22s %6d %11.1f %8.1f %11d %7.2f %7d  %s", c.caller, c.callee, c.calls, c.slowest, c.gap, c.sentAgain, c.rtt, c.withoutFlow, c.verdict)
		if style != "" {
			line = t.style(style, line)
		}
		t.println(line)
	}
}

// example prints why the last question was not asked, and an example of its
// answer.
func (t *terminal) example(missing string) {
	t.question(networkTitle, fmt.Sprintf(callsQuery, "..."))
	t.printf("Not run: %s.\n", missing)
	t.printf(`Otherwise the demo puts each service of the shop into a network namespace, drops one in %d packets
between %s and %s, and runs this query for the trace with the slowest call. An example:

`, lossyPackets, lossyCaller, lossyCallee)
	t.calls(exampleCalls)
}

// exampleCalls is the output of a real run.
var exampleCalls = []hop{
	{"frontend", "productcatalogservice", 4, 1013.3, 1012.2, 37, 1.01, 0, "retransmission"},
	{"loadgenerator", "frontend", 5, 1019.5, 0.9, 0, 9.27, 0, clean},
	{"frontend", "checkoutservice", 1, 28.6, 0.3, 0, 4.64, 0, clean},
	{"frontend", "shippingservice", 1, 23.4, 0.4, 0, 0.44, 0, clean},
	{"checkoutservice", "paymentservice", 1, 5.8, 0.3, 0, 1.91, 0, clean},
	{"frontend", "cartservice", 4, 5.4, 0.5, 0, 1.73, 0, clean},
	{"cartservice", "10.77.0.10", 6, 3.3, 0.0, 0, 0.83, 0, clean},
	{"checkoutservice", "productcatalogservice", 1, 1.6, 0.2, 0, 0.90, 0, clean},
}
