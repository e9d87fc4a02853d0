package query

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/integration/internal/shop"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/query"
	"github.com/metaflowys/metaflow-server/pkg/testkit/chtest"
)

// A search for a verdict that no call has says how many traces it looked at.
func TestTempoCountsInspectedTraces(t *testing.T) {
	a := newTempo(t)
	some := a.search(`{ network.verdict = "retransmission" }`)
	none := a.search(`{ network.verdict = "slow handshake" }`) // retransmits may show it
	if len(none.Traces) != 0 || none.Metrics.InspectedTraces == 0 || none.Metrics.InspectedTraces > config().MaxVerdicts {
		t.Errorf("nothing to find: %+v", none)
	}
	if len(some.Traces) == 0 || some.Metrics.InspectedTraces < len(some.Traces) {
		t.Errorf("%d traces of %d inspected", len(some.Traces), some.Metrics.InspectedTraces)
	}
}

// intercepted is a database whose queries for the network of traces other code may answer.
type intercepted struct {
	query.DB
	network func(ctx context.Context, n int32, text string) error // of the n-th; nil lets it pass
	asked   atomic.Int32
}

func (i *intercepted) Query(ctx context.Context, text string, row func(scan func(...any) error) error, args ...any) error {
	if strings.Contains(text, "toInt64(gap_ns)") {
		if err := i.network(ctx, i.asked.Add(1), text); err != nil {
			return err
		}
	}
	return i.DB.Query(ctx, text, row, args...)
}

func findRetransmissions(t *testing.T, ctx context.Context, timeout time.Duration, network func(context.Context, int32, string) error) (query.Result, error) { //nolint:revive // t first, as in helpers
	t.Helper()
	_, db := reader(t, config())
	cfg := config()
	cfg.MaxExecutionTime, cfg.MaxVerdicts = timeout, 1000
	cfg.MaxQueries = 2 // so that one look follows the other
	r := query.NewReader(cfg, &intercepted{DB: db, network: network}, clickhouse.DefaultConfig().Database, query.Options{})
	return r.Find(ctx, query.Search{
		Range: query.Range{Start: shop.Start, End: shop.End}, Limit: 40,
		Where: query.Compare{Field: query.Field{Name: query.FieldVerdict}, Op: query.Equal, Value: query.Str("retransmission")},
	})
}

// Where the network of the traces takes too long, a search returns what it has found until
// then. The slowest calls of the shop are those whose packets were lost.
func TestSearchForVerdictsEndsInTime(t *testing.T) {
	slow := func(ctx context.Context, n int32, _ string) error {
		if n > 1 {
			<-ctx.Done()
		}
		return ctx.Err()
	}
	result, err := findRetransmissions(t, t.Context(), 20*time.Second, slow)
	if err != nil || result.Inspected == 0 || !result.Partial || len(result.Traces) == 0 {
		t.Errorf("%d of %d traces, partial: %t, %v", len(result.Traces), result.Inspected, result.Partial, err)
	}
	// The caller's deadline leaves time to read what was found.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	result, err = findRetransmissions(t, ctx, time.Hour, slow)
	if err != nil || result.Inspected == 0 || !result.Partial || len(result.Traces) == 0 {
		t.Errorf("with a deadline: %d of %d traces, partial: %t, %v", len(result.Traces), result.Inspected, result.Partial, err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	if _, err := findRetransmissions(t, ctx, time.Hour, func(ctx context.Context, _ int32, text string) error {
		cancel()
		return slow(ctx, 2, text)
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that left: %v", err)
	}
}

// Traces whose network takes more together than a query may are looked at by themselves. One
// that still does is left out and does not fail the search for others. Where all do, the search
// says why.
func TestSearchForVerdictsLeavesOutLargeTraces(t *testing.T) {
	all, err := findRetransmissions(t, t.Context(), time.Minute, func(context.Context, int32, string) error { return nil })
	if err != nil || all.Partial || len(all.Traces) < 2 {
		t.Fatalf("%d of %d traces, partial: %t, %v", len(all.Traces), all.Inspected, all.Partial, err)
	}
	tooLarge := fault.As(fault.Rejected, errors.New("MEMORY_LIMIT_EXCEEDED"))
	result, err := findRetransmissions(t, t.Context(), time.Minute, func(_ context.Context, _ int32, text string) error {
		if strings.Contains(text, all.Traces[0].TraceID) {
			return tooLarge
		}
		return nil
	})
	if err != nil || result.Inspected != all.Inspected-1 || !result.Partial || len(result.Traces) != len(all.Traces)-1 || result.Traces[0].TraceID != all.Traces[1].TraceID {
		t.Errorf("%d of %d traces, partial: %t, %v", len(result.Traces), result.Inspected, result.Partial, err)
	}
	if _, err := findRetransmissions(t, t.Context(), time.Minute, func(context.Context, int32, string) error { return tooLarge }); !errors.Is(err, tooLarge) {
		t.Errorf("all are too large: %v", err)
	}
	down := fault.As(fault.Retryable, errors.New("no connection"))
	if _, err := findRetransmissions(t, t.Context(), time.Minute, func(_ context.Context, n int32, _ string) error {
		if n == 2 {
			return down
		}
		return nil
	}); !errors.Is(err, down) {
		t.Errorf("ClickHouse is down: %v", err)
	}
}

// A search for a verdict finds every trace that the views say it of: what is left out before
// their network is looked at had no trouble.
func TestSearchForVerdictsMissesNone(t *testing.T) {
	conn := chtest.Open(t, engine)
	during := fmt.Sprintf("start_time >= fromUnixTimestamp64Nano(%d) AND start_time < fromUnixTimestamp64Nano(%d)", shop.Start.UnixNano(), shop.End.UnixNano())
	var ids []string
	if err := conn.QueryRow(t.Context(), "SELECT groupUniqArray(trace_id) FROM metaflow.spans WHERE "+during).Scan(&ids); err != nil {
		t.Fatal(err)
	}
	var want []string
	if err := conn.QueryRow(t.Context(), "SELECT arraySort(groupUniqArray(trace_id)) FROM metaflow.traces_network(trace_ids = ['"+strings.Join(ids, "', '")+"']) WHERE verdict = 'retransmission'").Scan(&want); err != nil {
		t.Fatal(err)
	}
	result, err := findRetransmissions(t, t.Context(), time.Minute, func(context.Context, int32, string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, trace := range result.Traces {
		got = append(got, trace.TraceID)
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" || len(want) == 0 {
		t.Errorf("of %d traces, %d were inspected (-views +search):\n%s", len(ids), result.Inspected, diff)
	}
}

// A pod's spans say its IPv4 address and its flows are of IPv6: the pod tells that they belong
// together, also before the network is looked at. Trouble at another time, or of another pod,
// makes nobody suspect.
func TestSearchForVerdictsByPod(t *testing.T) {
	conn := chtest.Open(t, engine)
	at := shop.Start.Add(-3 * time.Hour)
	exec := func(sql string) {
		t.Helper()
		if err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	const bad, later, others = "0000000000000000000000000000f0d1", "0000000000000000000000000000f0d2", "0000000000000000000000000000f0d3"
	for trace, from := range map[string]struct {
		pod string
		at  time.Time
	}{bad: {"dual-1", at}, later: {"dual-1", at.Add(20 * time.Minute)}, others: {"dual-2", at}} {
		exec(fmt.Sprintf(`INSERT INTO metaflow.spans_local (trace_id, span_id, service_name, name, kind, start_time, duration_ns, ip, pod, peer_port, origin, attributes)
			VALUES ('%s', 'c1c1c1c1c1c1c1c1', 'dual', 'call', 'client', fromUnixTimestamp64Nano(%d), 500000000, toIPv6('10.66.0.1'), '%s', 80, '{"pod_uid":"uid-%[3]s"}', map('server.address', 'cart'))`,
			trace, from.at.UnixNano(), from.pod))
	}
	exec(fmt.Sprintf(`INSERT INTO metaflow.flows_local (time, start_time, role, ip, port, peer_ip, peer_port, peer_name, pod, pod_uid, connections, segments_sent, retransmits, retransmitted_bytes, busy_us)
		VALUES (fromUnixTimestamp64Nano(%d), fromUnixTimestamp64Nano(%d), 'client', toIPv6('fd00::1'), 40000, toIPv6('fd00::2'), 80, 'cart', 'dual-1', 'uid-dual-1', 1, 100, 20, 28000, 1000)`,
		at.Add(50*time.Second).UnixNano(), at.Add(-10*time.Second).UnixNano()))
	r, _ := reader(t, config())
	result, err := r.Find(t.Context(), query.Search{
		Range: query.Range{Start: at.Add(-time.Minute), End: at.Add(time.Hour)}, Limit: 40,
		Where: query.Compare{Field: query.Field{Name: query.FieldVerdict}, Op: query.Equal, Value: query.Str("retransmission")},
	})
	if err != nil || len(result.Traces) != 1 || result.Traces[0].TraceID != bad || result.Inspected != 1 {
		t.Errorf("%+v, %v", result, err)
	}
}

// Calls that were refused fail at once: among more slow ones than a search examines, traces with
// an error come first.
func TestSearchForVerdictsOfFastFailures(t *testing.T) {
	conn := chtest.Open(t, engine)
	at := shop.Start.Add(-5 * time.Hour)
	for _, sql := range []string{
		`INSERT INTO metaflow.spans_local (trace_id, span_id, service_name, name, kind, start_time, duration_ns, status_code, ip, peer_ip, peer_port)
			SELECT leftPad(lower(hex(number + 1)), 32, '0'), 'c2c2c2c2c2c2c2c2', 'hasty', 'call', 'client', fromUnixTimestamp64Nano(toInt64(%d + number)), if(number = 0, 100000, 900000000), if(number = 0, 'error', 'unset'),
				toIPv6('10.67.0.1'), toIPv6('10.67.0.2'), if(number = 0, 81, 80) FROM numbers(300)`,
		`INSERT INTO metaflow.flows_local (time, start_time, role, ip, port, peer_ip, peer_port, connect_failures, refused)
			VALUES (fromUnixTimestamp64Nano(%[1]d), fromUnixTimestamp64Nano(%[1]d), 'client', toIPv6('10.67.0.1'), 40000, toIPv6('10.67.0.2'), 81, 1, 1)`,
	} {
		if err := conn.Exec(t.Context(), fmt.Sprintf(sql, at.UnixNano())); err != nil {
			t.Fatal(err)
		}
	}
	r, _ := reader(t, config())
	result, err := r.Find(t.Context(), query.Search{
		Range: query.Range{Start: at.Add(-time.Minute), End: at.Add(time.Minute)}, Limit: 1,
		Where: query.Compare{Field: query.Field{Name: query.FieldVerdict}, Op: query.Equal, Value: query.Str("connect refused")},
	})
	if err != nil || len(result.Traces) != 1 || result.Traces[0].TraceID != "00000000000000000000000000000001" {
		t.Errorf("%+v, %v", result, err)
	}
}

// A host's spans say one of its addresses and its flows are of another.
func TestSearchForVerdictsByHost(t *testing.T) {
	conn := chtest.Open(t, engine)
	at := shop.Start.Add(-7 * time.Hour)
	const id = "0000000000000000000000000000f0e1"
	if err := conn.Exec(t.Context(), fmt.Sprintf(`INSERT INTO metaflow.spans_local (trace_id, span_id, service_name, name, kind, start_time, duration_ns, ip, peer_ip, peer_port)
		VALUES ('%s', 'c1c1c1c1c1c1c1c1', 'host', 'call', 'client', fromUnixTimestamp64Nano(%d), 500000000, toIPv6('10.77.0.1'), toIPv6('fd77::2'), 80)`, id, at.UnixNano())); err != nil {
		t.Fatal(err)
	}
	for _, connection := range []string{"toIPv6('10.77.0.1'), toIPv6('10.77.0.9'), 0, 0", "toIPv6('fd77::1'), toIPv6('fd77::2'), 20, 28000"} {
		if err := conn.Exec(t.Context(), fmt.Sprintf(`INSERT INTO metaflow.flows_local (time, start_time, role, port, peer_port, connections, segments_sent, busy_us, agent_id, network_namespace, ip, peer_ip, retransmits, retransmitted_bytes)
			VALUES (fromUnixTimestamp64Nano(%d), fromUnixTimestamp64Nano(%d), 'client', 40000, 80, 1, 100, 1000, 'host', 77, %s)`,
			at.Add(50*time.Second).UnixNano(), at.Add(-10*time.Second).UnixNano(), connection)); err != nil {
			t.Fatal(err)
		}
	}
	r, _ := reader(t, config())
	result, err := r.Find(t.Context(), query.Search{
		Range: query.Range{Start: at.Add(-time.Minute), End: at.Add(time.Hour)}, Limit: 40,
		Where: query.Compare{Field: query.Field{Name: query.FieldVerdict}, Op: query.Equal, Value: query.Str("retransmission")},
	})
	if err != nil || len(result.Traces) != 1 || result.Traces[0].TraceID != id {
		t.Errorf("%+v, %v", result, err)
	}
}

// A search for any trouble examines slow calls also among more failed ones than it examines in
// all. It says of each trace the worst verdict.
func TestSearchForAnyVerdict(t *testing.T) {
	conn := chtest.Open(t, engine)
	at := shop.Start.Add(-17 * time.Hour)
	for _, sql := range []string{
		`INSERT INTO metaflow.spans_local (trace_id, span_id, service_name, name, kind, start_time, duration_ns, status_code, ip, peer_ip, peer_port)
			SELECT concat('5ea0', leftPad(lower(hex(number + 1)), 28, '0')), 'c3c3c3c3c3c3c3c3', 'mixed', 'call', 'client', fromUnixTimestamp64Nano(toInt64(%d + number)), if(number = 0, 900000000, 100000), if(number = 0, 'unset', 'error'),
				toIPv6('10.68.0.1'), toIPv6('10.68.0.2'), if(number = 0, 80, 81) FROM numbers(300)`,
		`INSERT INTO metaflow.flows_local (time, start_time, role, ip, port, peer_ip, peer_port, connect_failures, refused)
			VALUES (fromUnixTimestamp64Nano(%[1]d), fromUnixTimestamp64Nano(%[1]d), 'client', toIPv6('10.68.0.1'), 40000, toIPv6('10.68.0.2'), 81, 1, 1)`,
		`INSERT INTO metaflow.flows_local (time, start_time, role, ip, port, peer_ip, peer_port, connections, segments_sent, retransmits, retransmitted_bytes, busy_us)
			VALUES (fromUnixTimestamp64Nano(%[1]d + 1000000000), fromUnixTimestamp64Nano(%[1]d), 'client', toIPv6('10.68.0.1'), 40001, toIPv6('10.68.0.2'), 80, 1, 100, 20, 28000, 1000)`,
	} {
		if err := conn.Exec(t.Context(), fmt.Sprintf(sql, at.UnixNano())); err != nil {
			t.Fatal(err)
		}
	}
	cfg := config()
	cfg.MaxTraces = cfg.MaxVerdicts
	r, _ := reader(t, cfg)
	result, err := r.Find(t.Context(), query.Search{
		Range: query.Range{Start: at.Add(-time.Minute), End: at.Add(time.Minute)}, Limit: cfg.MaxVerdicts,
		Where: query.Compare{Field: query.Field{Name: query.FieldVerdict}, Op: query.NotEqual, Value: query.Str(query.Clean)},
	})
	if err != nil || result.Inspected != cfg.MaxVerdicts || !result.Partial {
		t.Fatalf("%d traces of %d inspected, partial: %t, %v", len(result.Traces), result.Inspected, result.Partial, err)
	}
	found := map[string]int{}
	for _, trace := range result.Traces {
		found[trace.Network]++
	}
	if want := map[string]int{"retransmission": 1, "connect refused": cfg.MaxVerdicts - 1}; !maps.Equal(found, want) {
		t.Errorf("found %v, want %v", found, want)
	}
}
