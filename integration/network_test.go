package integration

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/deploy/demo/netlab"
	"github.com/metaflowys/metaflow-server/pkg/testkit/namespaces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
	"github.com/metaflowys/metaflow-server/pkg/testkit/programs"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// Was it the code, or was it the network? The WebStore, each service in its own
// network namespace, has one trouble after the other. Each time one query for
// the worst trace must name the edge and its trouble, or a clean network.
func TestCodeOrNetwork(t *testing.T) {
	n, began := newNetwork(t), time.Now()
	for _, c := range []struct {
		name    string
		begin   func(*netlab.Lab) error
		failing bool   // examine a failed trace, not the slowest
		callee  string // examine the trace with the slowest call of this service
		want    []finding
	}{
		{name: "no trouble"},
		{
			name:  "a service is slow in its own code",
			begin: func(l *netlab.Lab) error { return l.Command("currencyservice", "slow 100ms") },
		},
		{
			name:    "a service returns errors",
			begin:   func(l *netlab.Lab) error { return l.Command("paymentservice", "fail 100") },
			failing: true,
		},
		{
			name:   "a network loses packets",
			begin:  func(l *netlab.Lab) error { return l.Lose("frontend", "productcatalogservice", 20) },
			callee: "ProductCatalogService", // the slowest journey may have lost nothing
			want:   []finding{{"frontend", "productcatalogservice", "retransmission"}},
		},
		{
			name:    "a network swallows SYNs",
			begin:   func(l *netlab.Lab) error { return l.Block("checkoutservice", "shippingservice") },
			failing: true,
			want:    []finding{{"checkoutservice", "shippingservice", "connect failed"}},
		},
		{
			name: "a receiver does not read",
			begin: func(l *netlab.Lab) error {
				if err := l.Command("checkoutservice", "attach 700000"); err != nil {
					return err
				}
				if err := l.Freeze("emailservice"); err != nil {
					return err
				}
				time.AfterFunc(3*time.Second, func() { _ = l.Thaw("emailservice") })
				return nil
			},
			want: []finding{{"checkoutservice", "emailservice", "receiver's window full"}},
		},
		{
			name:    "connections are reset",
			begin:   func(l *netlab.Lab) error { return l.Reset("frontend", "cartservice", 20) },
			failing: true,
			want:    []finding{{"frontend", "cartservice", "reset"}},
		},
	} {
		t.Run(c.name, func(t *testing.T) { n.check(t, c.begin, c.failing, c.callee, c.want) })
	}
	t.Run("all edges of the last minutes", func(t *testing.T) {
		want := []finding{
			{"checkoutservice", "emailservice", "receiver's window full"},
			{"checkoutservice", "shippingservice", "connect failed"},
			{"frontend", "cartservice", "reset"},
			{"frontend", "productcatalogservice", "retransmission"},
		}
		// The agent also sees other network namespaces of the machine. Most
		// periods lost no packets: an edge had trouble for a part of the
		// time only.
		const question = `SELECT client_service, server_service, verdict
			FROM metaflow.network_trouble_with(minutes = 15, retransmit_percent = 0.2, window_percent = 20)
			WHERE client_service IN (SELECT service_name FROM metaflow.spans) ORDER BY ALL`
		if err := wait.Poll(30*time.Second, n.server.done, n.answered(want, question)); err != nil {
			t.Errorf("%v\nWhat the agent saw:\n%s", err, n.troubles(began))
		}
	})
}

// finding is the verdict on an edge.
type finding struct{ Client, Server, Verdict string }

// network is a shop in network namespaces, an agent that observes them, and a
// server.
type network struct {
	lab    *netlab.Lab
	server *standalone
	conn   driver.Conn
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	if missing := namespaces.Missing(); missing != "" {
		t.Skip("cannot run the WebStore in network namespaces: " + missing)
	}
	if err := programs.Build("..", binaries, "./deploy/demo/service"); err != nil {
		t.Fatal(err)
	}
	port := ports.Free(t)
	var err error
	n := &network{server: startStandalone(t, t.TempDir())}
	n.conn = open(t, n.server.at.ClickHouseNative)
	if n.lab, err = netlab.Start(t.Context(), netlab.Options{Program: filepath.Join(binaries, "service"), OTLPPort: uint16(port), Output: t.Output()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.lab.Close(); err != nil {
			t.Error(err)
		}
	})
	file := filepath.Join(t.TempDir(), "agent.yaml")
	text := fmt.Sprintf("inputs:\n  integration: {enabled: true, listen_port: 0, grpc_port: %d}\n  flow: {enabled: true, dump_interval: 1s, report_interval: 10s}\n", port)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	mustCtl(t, n.server.at.HTTP, "agent-group-config", "update", "default", "-f", file)
	t.Setenv("METAFLOW_OTLP_INSECURE", "true") // the services send from other namespaces
	a := startAgent(t, t.TempDir(), n.server.at.GRPC)
	a.eventually(time.Minute, func() error { return seesNamespaces(a.http, n.lab.Namespaces()) })
	a.eventually(time.Minute, func() error { return listens(ports.Address(port)) })
	return n
}

var namespacesMetric = regexp.MustCompile(`(?m)^metaflow_capture_network_namespaces (\d+)$`)

// seesNamespaces returns nil once an agent watches at least the given number of
// network namespaces besides its own.
func seesNamespaces(agent string, want int) error {
	code, body, err := get("http://" + agent + "/metrics")
	if err != nil || code != http.StatusOK {
		return fmt.Errorf("status %d, %w", code, err)
	}
	found := namespacesMetric.FindStringSubmatch(body)
	if found == nil {
		return fmt.Errorf("capture is not running")
	}
	if got, _ := strconv.Atoi(found[1]); got <= want {
		return fmt.Errorf("%d network namespaces watched, want more than %d", got, want)
	}
	return nil
}

const (
	visitors    = 24
	concurrency = 6
	// slack is the clock tolerance of the views: trouble within this time of a
	// span counts for it.
	slack = time.Second
)

// check runs visits while the shop has trouble, and compares the verdicts. Trouble comes by
// chance, and may cost no call of a fast machine anything: then there are more visits.
func (n *network) check(t *testing.T, begin func(*netlab.Lab) error, failing bool, callee string, want []finding) {
	t.Helper()
	const attempts = 5
	for attempt := 1; ; attempt++ {
		from := time.Now()
		traceID := n.visit(t, begin, failing, callee)
		err := wait.Poll(30*time.Second, n.server.done, n.answered(want, verdicts, traceID))
		if err == nil {
			if err := n.answered(want, verdicts, n.disagree(t, traceID))(); err != nil {
				t.Errorf("with diverging clocks: %v", err)
			}
			return
		}
		got, askErr := n.ask(verdicts, traceID)
		if attempt == attempts || askErr != nil || len(got) > 0 {
			t.Fatalf("%v\nWhat the agent saw:\n%s", err, n.troubles(from))
		}
		t.Log("the trouble harmed no call of the trace; visiting again")
	}
}

// visit runs visits, and returns the trace to examine. It takes longer than slack.
func (n *network) visit(t *testing.T, begin func(*netlab.Lab) error, failing bool, callee string) (traceID string) {
	t.Helper()
	from := time.Now()
	if begin != nil {
		if err := begin(n.lab); err != nil {
			t.Fatal(err)
		}
	}
	failed, err := n.lab.Visit(visitors, concurrency)
	if err != nil || failing != (failed > 0) {
		t.Errorf("%d of %d visitors saw errors, %v", failed, visitors, err)
	}
	to := time.Now()
	n.recover(t)
	t.Logf("visited for %s, %d errors, settled after %s", to.Sub(from).Round(time.Millisecond), failed, time.Since(to).Round(time.Millisecond))
	next := time.After(slack + 100*time.Millisecond)
	traceID = n.worst(t, from, to, failing, callee)
	<-next
	return traceID
}

// recover ends all trouble and waits until all connections are closed, so that
// the next trouble gets its own.
func (n *network) recover(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := n.lab.Heal(); err != nil {
		t.Fatal(err)
	}
	for _, service := range []string{"currencyservice", "paymentservice", "checkoutservice"} {
		if err := n.lab.Command(service, "well"); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.lab.Settle(ctx); err != nil {
		t.Fatal(err)
	}
}

// worst waits until all journeys of a period are stored and returns the trace
// to examine.
func (n *network) worst(t *testing.T, from, to time.Time, failing bool, callee string) (traceID string) {
	t.Helper()
	err := wait.Poll(time.Minute, n.server.done, func() error {
		var count uint64
		if err := n.conn.QueryRow(context.Background(), `SELECT count(), argMax(trace_id, ($3 AND status_code = 'error', duration_ns))
			FROM metaflow.spans WHERE parent_span_id = '' AND toUnixTimestamp64Nano(start_time) BETWEEN $1 AND $2`, from.UnixNano(), to.UnixNano(), failing).Scan(&count, &traceID); err != nil {
			return err
		}
		if count != visitors {
			return fmt.Errorf("%d journeys stored, want %d", count, visitors)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if callee == "" {
		return traceID
	}
	if err := n.conn.QueryRow(context.Background(), `SELECT argMax(trace_id, duration_ns) FROM metaflow.spans
		WHERE kind = 'client' AND service_name = 'frontend' AND position(name, $3) > 0 AND toUnixTimestamp64Nano(start_time) BETWEEN $1 AND $2`, from.UnixNano(), to.UnixNano(), callee).Scan(&traceID); err != nil {
		t.Fatal(err)
	}
	return traceID
}

// disagree stores a copy of a trace as hosts would report it whose clocks
// differ by a few hundred milliseconds: half of them is ahead of the agent's
// clock, half behind.
func (n *network) disagree(t *testing.T, traceID string) (again string) {
	t.Helper()
	again = "c10c" + traceID[4:]
	err := n.conn.Exec(context.Background(), `INSERT INTO metaflow.spans_local SELECT * REPLACE($2 AS trace_id,
			start_time + toIntervalMillisecond(if(cityHash64(service_name) % 2 = 0, 300, -300)) AS start_time)
		FROM (SELECT * FROM metaflow.spans_local WHERE trace_id = $1)`, traceID, again)
	if err != nil {
		t.Fatal(err)
	}
	return again
}

// verdicts returns the edges of a trace with network trouble, and the trouble.
const verdicts = `
WITH names AS (SELECT ip, any(service_name) AS name FROM metaflow.spans WHERE ip != toIPv6('::') GROUP BY ip)
SELECT DISTINCT
    if(kind = 'server', n.peer_service_name, n.service_name) AS client,
    multiIf(kind = 'server', n.service_name, n.peer_service_name != '', n.peer_service_name, names.name) AS server,
    if(verdict = '', unmatched, verdict)
FROM metaflow.trace_network(trace_id = $1) AS n
LEFT JOIN names ON names.ip = n.peer_ip
WHERE kind IN ('client', 'server') AND verdict != 'network clean'
ORDER BY client, server`

// ask returns the result of a query with three columns.
func (n *network) ask(question string, args ...any) (found []finding, err error) {
	rows, err := n.conn.Query(context.Background(), question, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var f finding
		if err := rows.Scan(&f.Client, &f.Server, &f.Verdict); err != nil {
			return nil, err
		}
		found = append(found, f)
	}
	return found, rows.Err()
}

// answered returns nil once the query returns what is wanted.
func (n *network) answered(want []finding, question string, args ...any) func() error {
	return func() error {
		got, err := n.ask(question, args...)
		if err != nil {
			return err
		}
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("asked about %v (-want +got):\n%s", args, diff)
		}
		return nil
	}
}

// troubles lists the trouble that the agent saw, to explain a failure.
func (n *network) troubles(from time.Time) (list string) {
	const question = `SELECT concat(toString(time), ' ', toString(role), ' ', replaceOne(toString(ip), '::ffff:', ''), ':', toString(port), ' to ',
			replaceOne(toString(peer_ip), '::ffff:', ''), ':', toString(peer_port), ' ', toString(end_reason), ', ', toString(retransmits), ' of ', toString(segments_sent),
			' segments sent again, waited ', toString(receive_window_limited_us), ' of ', toString(busy_us), ' us\n') AS line
		FROM metaflow.flows WHERE toUnixTimestamp64Nano(time) > $1 AND startsWith(toString(ip), $2)
			AND (retransmits + connect_failures + resets + timeouts > 0 OR receive_window_limited_us > 0) ORDER BY line`
	host := n.lab.Host().As4()
	network := fmt.Sprintf("::ffff:%d.%d.%d.", host[0], host[1], host[2])
	var lines []struct {
		Line string `ch:"line"`
	}
	if err := n.conn.Select(context.Background(), &lines, question, from.UnixNano(), network); err != nil {
		return err.Error()
	}
	for _, l := range lines {
		list += l.Line
	}
	return list
}
