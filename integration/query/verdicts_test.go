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
		Where: verdictIs(query.Equal, "retransmission"),
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

// execute runs a statement as the engine's administrator.
func execute(t *testing.T, sql string) {
	t.Helper()
	if err := chtest.Open(t, engine).Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

// verdictIs is the condition on a verdict.
func verdictIs(op query.Op, verdict string) query.Expr {
	return query.Compare{Field: query.Field{Name: query.FieldVerdict}, Op: op, Value: query.Str(verdict)}
}

// A pod's spans say its IPv4 address and its flows are of IPv6: the pod tells that they belong
// together, also before the network is looked at. Trouble at another time, or of another pod,
// makes nobody suspect.
func TestSearchForVerdictsByPod(t *testing.T) {
	at := shop.Start.Add(-3 * time.Hour)
	const bad, later, others = "0000000000000000000000000000f0d1", "0000000000000000000000000000f0d2", "0000000000000000000000000000f0d3"
	for trace, from := range map[string]struct {
		pod string
		at  time.Time
	}{bad: {"dual-1", at}, later: {"dual-1", at.Add(20 * time.Minute)}, others: {"dual-2", at}} {
		execute(t, fmt.Sprintf(`INSERT INTO metaflow.spans_local (trace_id, span_id, service_name, name, kind, start_time, duration_ns, ip, pod, peer_port, origin, attributes)
			VALUES ('%s', 'c1c1c1c1c1c1c1c1', 'dual', 'call', 'client', fromUnixTimestamp64Nano(%d), 500000000, toIPv6('10.66.0.1'), '%s', 80, '{"pod_uid":"uid-%[3]s"}', map('server.address', 'cart'))`,
			trace, from.at.UnixNano(), from.pod))
	}
	execute(t, fmt.Sprintf(`INSERT INTO metaflow.flows_local (time, start_time, role, ip, port, peer_ip, peer_port, peer_name, pod, pod_uid, connections, segments_sent, retransmits, retransmitted_bytes, busy_us)
		VALUES (fromUnixTimestamp64Nano(%d), fromUnixTimestamp64Nano(%d), 'client', toIPv6('fd00::1'), 40000, toIPv6('fd00::2'), 80, 'cart', 'dual-1', 'uid-dual-1', 1, 100, 20, 28000, 1000)`,
		at.Add(50*time.Second).UnixNano(), at.Add(-10*time.Second).UnixNano()))
	r, _ := reader(t, config())
	result, err := r.Find(t.Context(), query.Search{
		Range: query.Range{Start: at.Add(-time.Minute), End: at.Add(time.Hour)}, Limit: 40,
		Where: verdictIs(query.Equal, "retransmission"),
	})
	if err != nil || len(result.Traces) != 1 || result.Traces[0].TraceID != bad || result.Inspected != 1 {
		t.Errorf("%+v, %v", result, err)
	}
}

// Calls that were refused fail at once: among more slow ones than a search examines, traces with
// an error come first.
func TestSearchForVerdictsOfFastFailures(t *testing.T) {
	at := shop.Start.Add(-5 * time.Hour)
	for _, sql := range []string{
		`INSERT INTO metaflow.spans_local (trace_id, span_id, service_name, name, kind, start_time, duration_ns, status_code, ip, peer_ip, peer_port)
			SELECT leftPad(lower(hex(number + 1)), 32, '0'), 'c2c2c2c2c2c2c2c2', 'hasty', 'call', 'client', fromUnixTimestamp64Nano(toInt64(%d + number)), if(number = 0, 100000, 900000000), if(number = 0, 'error', 'unset'),
				toIPv6('10.67.0.1'), toIPv6('10.67.0.2'), if(number = 0, 81, 80) FROM numbers(300)`,
		`INSERT INTO metaflow.flows_local (time, start_time, role, ip, port, peer_ip, peer_port, connect_failures, refused)
			VALUES (fromUnixTimestamp64Nano(%[1]d), fromUnixTimestamp64Nano(%[1]d), 'client', toIPv6('10.67.0.1'), 40000, toIPv6('10.67.0.2'), 81, 1, 1)`,
	} {
		execute(t, fmt.Sprintf(sql, at.UnixNano()))
	}
	r, _ := reader(t, config())
	result, err := r.Find(t.Context(), query.Search{
		Range: query.Range{Start: at.Add(-time.Minute), End: at.Add(time.Minute)}, Limit: 1,
		Where: verdictIs(query.Equal, "connect refused"),
	})
	if err != nil || len(result.Traces) != 1 || result.Traces[0].TraceID != "00000000000000000000000000000001" {
		t.Errorf("%+v, %v", result, err)
	}
}

// A host's spans say one of its addresses and its flows are of another.
func TestSearchForVerdictsByHost(t *testing.T) {
	at := shop.Start.Add(-7 * time.Hour)
	const id = "0000000000000000000000000000f0e1"
	execute(t, fmt.Sprintf(`INSERT INTO metaflow.spans_local (trace_id, span_id, service_name, name, kind, start_time, duration_ns, ip, peer_ip, peer_port)
		VALUES ('%s', 'c1c1c1c1c1c1c1c1', 'host', 'call', 'client', fromUnixTimestamp64Nano(%d), 500000000, toIPv6('10.77.0.1'), toIPv6('fd77::2'), 80)`, id, at.UnixNano()))
	for _, connection := range []string{"toIPv6('10.77.0.1'), toIPv6('10.77.0.9'), 0, 0", "toIPv6('fd77::1'), toIPv6('fd77::2'), 20, 28000"} {
		execute(t, fmt.Sprintf(`INSERT INTO metaflow.flows_local (time, start_time, role, port, peer_port, connections, segments_sent, busy_us, agent_id, network_namespace, ip, peer_ip, retransmits, retransmitted_bytes)
			VALUES (fromUnixTimestamp64Nano(%d), fromUnixTimestamp64Nano(%d), 'client', 40000, 80, 1, 100, 1000, 'host', 77, %s)`,
			at.Add(50*time.Second).UnixNano(), at.Add(-10*time.Second).UnixNano(), connection))
	}
	r, _ := reader(t, config())
	result, err := r.Find(t.Context(), query.Search{
		Range: query.Range{Start: at.Add(-time.Minute), End: at.Add(time.Hour)}, Limit: 40,
		Where: verdictIs(query.Equal, "retransmission"),
	})
	if err != nil || len(result.Traces) != 1 || result.Traces[0].TraceID != id {
		t.Errorf("%+v, %v", result, err)
	}
}

// A search for any trouble examines slow calls also among more failed ones than it examines in
// all. It says of each trace the worst verdict.
func TestSearchForAnyVerdict(t *testing.T) {
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
		execute(t, fmt.Sprintf(sql, at.UnixNano()))
	}
	cfg := config()
	cfg.MaxTraces = cfg.MaxVerdicts
	r, _ := reader(t, cfg)
	result, err := r.Find(t.Context(), query.Search{
		Range: query.Range{Start: at.Add(-time.Minute), End: at.Add(time.Minute)}, Limit: cfg.MaxVerdicts,
		Where: verdictIs(query.NotEqual, query.Clean),
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

// spansOf are rows of spans_local.
const spansOf = "INSERT INTO metaflow.spans_local (trace_id, span_id, parent_span_id, service_name, name, kind, start_time, duration_ns, ip, peer_ip, peer_port) "

// lossyFlow stores flow data of 2,000 lost segments between two addresses.
func lossyFlow(t *testing.T, from, to string, start, end time.Time) {
	t.Helper()
	if err := chtest.Open(t, engine).Exec(t.Context(), fmt.Sprintf(`INSERT INTO metaflow.flows_local (time, start_time, role, ip, port, peer_ip, peer_port, connections, segments_sent, retransmits, retransmitted_bytes, busy_us)
		VALUES (fromUnixTimestamp64Nano(%d), fromUnixTimestamp64Nano(%d), 'client', toIPv6('%s'), 40000, toIPv6('%s'), 80, 1, 10000, 2000, 2800000, 1000)`, end.UnixNano(), start.UnixNano(), from, to)); err != nil {
		t.Fatal(err)
	}
}

// Four traces of 5,000 lossy calls each take more than a query may together, and the ids of their
// calls more than the text of one.
func TestSearchForVerdictsOfLargeTraces(t *testing.T) {
	at := shop.Start.Add(-9 * time.Hour)
	if err := chtest.Open(t, engine).Exec(t.Context(), fmt.Sprintf(spansOf+`SELECT leftPad(lower(hex(61440 + intDiv(number, 5000))), 32, '0'), leftPad(lower(hex(number + 1)), 16, '0'), '', 'large', if(number %% 5000 = 7, 'seventh', 'call'), 'client',
		fromUnixTimestamp64Nano(toInt64(%d + number)), 900000000, toIPv6('10.73.0.1'), toIPv6('10.73.0.2'), 80 FROM numbers(20000)`, at.UnixNano())); err != nil {
		t.Fatal(err)
	}
	lossyFlow(t, "10.73.0.1", "10.73.0.2", at.Add(-time.Second), at.Add(5*time.Second))
	cfg := config()
	cfg.MaxResultRows, cfg.MaxSpans = 11_000, 10_000
	r, _ := reader(t, cfg)
	lossy := verdictIs(query.Equal, "retransmission")
	for name, tc := range map[string]struct {
		where   query.Expr
		matched int
	}{
		"all calls": {lossy, 5000},
		"one call":  {query.And{lossy, query.Compare{Field: query.Field{Name: query.FieldName}, Op: query.Equal, Value: query.Str("seventh")}}, 1},
	} {
		result, err := r.Find(t.Context(), query.Search{Range: query.Range{Start: at.Add(-time.Minute), End: at.Add(time.Minute)}, Limit: 10, Where: tc.where})
		if err != nil || len(result.Traces) != 4 || result.Inspected != 4 || result.Partial {
			t.Errorf("%s: %d traces of %d, partial: %t, %v", name, len(result.Traces), result.Inspected, result.Partial, err)
		}
		for _, trace := range result.Traces {
			if trace.Matched != tc.matched || len(trace.Matches) != min(tc.matched, 3) || trace.Matches[0].Verdict != "retransmission" {
				t.Errorf("%s: %d calls of %s: %+v", name, trace.Matched, trace.TraceID, trace.Matches)
			}
		}
	}
}

// Span ids are unique within a trace only, and there both ends of a call may have one: the other
// conditions are about the span that has the verdict.
func TestSearchForVerdictsOfSharedSpanIDs(t *testing.T) {
	at := shop.Start.Add(-13 * time.Hour)
	start := fmt.Sprintf("fromUnixTimestamp64Nano(%d)", at.UnixNano())
	const lossy, shared = "0000000000000000000000000000f0a1", "0000000000000000000000000000f0a2"
	// The server of the shared id has an address that no flow data is of.
	if err := chtest.Open(t, engine).Exec(t.Context(), spansOf+`VALUES
		('`+lossy+`', 'c1c1c1c1c1c1c1c1', '', 'one', 'wanted', 'client', `+start+`, 500000000, toIPv6('10.69.0.1'), toIPv6('10.69.0.2'), 80),
		('`+shared+`', 'c1c1c1c1c1c1c1c1', '', 'one', 'wanted', 'server', `+start+`, 100000000, toIPv6('10.69.0.8'), toIPv6('10.69.0.9'), 0),
		('`+shared+`', 'c1c1c1c1c1c1c1c1', '', 'one', 'other', 'producer', `+start+`, 500000000, toIPv6('10.69.0.1'), toIPv6('10.69.0.2'), 80),
		('`+shared+`', 'c2c2c2c2c2c2c2c2', '', 'one', 'other', 'client', `+start+`, 500000000, toIPv6('10.69.0.1'), toIPv6('10.69.0.2'), 80)`); err != nil {
		t.Fatal(err)
	}
	lossyFlow(t, "10.69.0.1", "10.69.0.2", at.Add(-time.Second), at.Add(5*time.Second))
	r, _ := reader(t, config())
	for name, want := range map[string][]string{"wanted": {lossy}, "other": {shared}} {
		result, err := r.Find(t.Context(), query.Search{Range: query.Range{Start: at.Add(-time.Minute), End: at.Add(time.Minute)}, Where: query.And{
			verdictIs(query.Equal, "retransmission"),
			query.Compare{Field: query.Field{Name: query.FieldName}, Op: query.Equal, Value: query.Str(name)},
		}})
		var got []string
		for _, trace := range result.Traces {
			got = append(got, trace.TraceID)
		}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
}

// A search finds calls at both ends of its range whose flow data ended before, or began after.
func TestSearchForVerdictsAtTheEndsOfTheRange(t *testing.T) {
	at := shop.Start.Add(-15 * time.Hour)
	end := at.Add(time.Minute)
	nanos := func(at time.Time) string { return fmt.Sprintf("fromUnixTimestamp64Nano(%d)", at.UnixNano()) }
	const first, last = "0000000000000000000000000000f0b1", "0000000000000000000000000000f0b2"
	if err := chtest.Open(t, engine).Exec(t.Context(), spansOf+`VALUES
		('`+first+`', 'c1c1c1c1c1c1c1c1', '', 'ends', 'first', 'client', `+nanos(at)+`, 500000000, toIPv6('10.70.0.1'), toIPv6('10.70.0.2'), 80),
		('`+last+`', 'c1c1c1c1c1c1c1c1', '', 'ends', 'last', 'client', `+nanos(end.Add(-time.Millisecond))+`, 240000000000, toIPv6('10.70.0.3'), toIPv6('10.70.0.4'), 80)`); err != nil {
		t.Fatal(err)
	}
	lossyFlow(t, "10.70.0.1", "10.70.0.2", at.Add(-time.Minute), at.Add(-500*time.Millisecond))
	lossyFlow(t, "10.70.0.3", "10.70.0.4", end.Add(3*time.Minute), end.Add(12*time.Minute))
	r, _ := reader(t, config())
	result, err := r.Find(t.Context(), query.Search{
		Range: query.Range{Start: at, End: end},
		Where: verdictIs(query.Equal, "retransmission"),
	})
	if err != nil || len(result.Traces) != 2 || result.Traces[0].TraceID != last || result.Traces[1].TraceID != first {
		t.Errorf("%+v, %v", result, err)
	}
}

// The flow data of a lossy hop may not name a caller's address or pod: it is the other side of a
// proxy, or the address was translated. A search finds the caller's span nevertheless.
func TestSearchForVerdictsOfHopsWithoutTheCaller(t *testing.T) {
	at := shop.Start.Add(-19 * time.Hour)
	nanos := func(at time.Time) string { return fmt.Sprintf("fromUnixTimestamp64Nano(%d)", at.UnixNano()) }
	const translated, proxied = "0000000000000000000000000000f0c1", "0000000000000000000000000000f0c2"
	for _, sql := range []string{
		`spans_local (trace_id, span_id, parent_span_id, service_name, name, kind, start_time, duration_ns, ip, port, peer_ip, peer_port, pod) VALUES
			('` + translated + `', 'c1c1c1c1c1c1c1c1', '', 'caller', 'call', 'client', ` + nanos(at) + `, 300000000, toIPv6('10.71.0.1'), 0, toIPv6('10.71.0.2'), 80, 'caller-1'),
			('` + proxied + `', 'c1c1c1c1c1c1c1c1', '', 'caller', 'call', 'client', ` + nanos(at) + `, 300000000, toIPv6('10.72.0.1'), 0, toIPv6('10.72.0.2'), 80, 'caller-2'),
			('` + proxied + `', 'd1d1d1d1d1d1d1d1', 'c1c1c1c1c1c1c1c1', 'callee', 'call', 'server', ` + nanos(at) + `, 10000000, toIPv6('10.72.0.7'), 3000, toIPv6('10.72.0.2'), 0, 'callee-2')`,
		`flows_local (role, ip, port, peer_ip, peer_port, translated_ip, translated_port, pod, peer_pod, retransmits, retransmitted_bytes, time, start_time, connections, segments_sent, network_namespace)
			SELECT *, retransmits * 1400, ` + nanos(at.Add(50*time.Second)) + `, ` + nanos(at.Add(-10*time.Second)) + `, 1, 100, cityHash64(ip) FROM VALUES('role String, ip IPv6, port UInt16, peer_ip IPv6, peer_port UInt16, translated_ip IPv6, translated_port UInt16, pod String, peer_pod String, retransmits UInt64',
			('client', '10.71.0.1', 40000, '10.71.0.2', 80, '10.71.8.8', 30000, 'caller-1', 'callee-1', 0), ('server', '10.71.0.2', 80, '10.71.8.8', 30000, '::', 0, 'callee-1', 'node', 5),
			('client', '10.72.0.1', 40000, '10.72.0.2', 80, '::', 0, 'caller-2', 'proxy', 0), ('server', '10.72.0.2', 80, '10.72.0.1', 40000, '::', 0, 'proxy', 'caller-2', 0),
			('client', '10.72.0.2', 50000, '10.72.0.7', 3000, '::', 0, 'proxy', 'callee-2', 0), ('server', '10.72.0.7', 3000, '10.72.0.2', 50000, '::', 0, 'callee-2', 'proxy', 5))`,
	} {
		execute(t, "INSERT INTO metaflow."+sql)
	}
	r, _ := reader(t, config())
	result, err := r.Find(t.Context(), query.Search{Range: query.Range{Start: at.Add(-time.Minute), End: at.Add(time.Hour)}, Where: query.And{
		verdictIs(query.Equal, "retransmission"),
		query.Compare{Field: query.Field{Scope: query.Resource, Name: "service.name"}, Op: query.Equal, Value: query.Str("caller")},
	}})
	var got []string
	for _, trace := range result.Traces {
		got = append(got, trace.TraceID)
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{translated, proxied}, got); diff != "" || err != nil {
		t.Errorf("%d inspected, %v\n%s", result.Inspected, err, diff)
	}
}
