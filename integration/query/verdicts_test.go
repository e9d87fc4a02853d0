package query

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/integration/internal/shop"
	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/query"
)

// A search for a verdict that no call has says how many traces it looked at.
func TestTempoCountsInspectedTraces(t *testing.T) {
	a := newTempo(t)
	some := a.search(`{ network.verdict = "retransmission" }`)
	none := a.search(`{ network.verdict = "slow DNS" }`)
	if len(none.Traces) != 0 || none.Metrics.InspectedTraces == 0 || none.Metrics.InspectedTraces > config().MaxVerdicts {
		t.Errorf("nothing to find: %+v", none)
	}
	if len(some.Traces) == 0 || some.Metrics.InspectedTraces < len(some.Traces) {
		t.Errorf("%d traces of %d inspected", len(some.Traces), some.Metrics.InspectedTraces)
	}
}

// intercepted is a database whose queries for the network of a trace other code may answer.
type intercepted struct {
	query.DB
	network func(ctx context.Context, n int32) error // of the n-th; nil lets it pass
	asked   atomic.Int32
}

func (i *intercepted) Query(ctx context.Context, text string, row func(scan func(...any) error) error, args ...any) error {
	if strings.Contains(text, "toInt64(gap_ns)") {
		if err := i.network(ctx, i.asked.Add(1)); err != nil {
			return err
		}
	}
	return i.DB.Query(ctx, text, row, args...)
}

func findRetransmissions(t *testing.T, ctx context.Context, timeout time.Duration, network func(context.Context, int32) error) (query.Result, error) { //nolint:revive // t first, as in helpers
	t.Helper()
	_, db := reader(t, config())
	cfg := config()
	cfg.MaxExecutionTime = timeout
	r := query.NewReader(cfg, &intercepted{DB: db, network: network}, clickhouse.DefaultConfig().Database, query.Options{})
	return r.Find(ctx, query.Search{
		Range: query.Range{Start: shop.Start, End: shop.End}, Limit: 40,
		Where: query.Compare{Field: query.Field{Name: query.FieldVerdict}, Op: query.Equal, Value: query.Str("retransmission")},
	})
}

// Where the network of the traces takes too long, a search returns what it has found until
// then. The slowest calls of the shop are those whose packets were lost.
func TestSearchForVerdictsEndsInTime(t *testing.T) {
	slow := func(ctx context.Context, n int32) error {
		if n > 4 {
			<-ctx.Done()
		}
		return ctx.Err()
	}
	result, err := findRetransmissions(t, t.Context(), 40*time.Second, slow)
	if err != nil || result.Inspected != 4 || !result.Partial || len(result.Traces) == 0 {
		t.Errorf("%d of %d traces, partial: %t, %v", len(result.Traces), result.Inspected, result.Partial, err)
	}
	// The caller's deadline leaves time to read what was found.
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	result, err = findRetransmissions(t, ctx, time.Hour, slow)
	if err != nil || result.Inspected != 4 || !result.Partial || len(result.Traces) == 0 {
		t.Errorf("with a deadline: %d of %d traces, partial: %t, %v", len(result.Traces), result.Inspected, result.Partial, err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	if _, err := findRetransmissions(t, ctx, time.Hour, func(ctx context.Context, _ int32) error {
		cancel()
		return slow(ctx, 5)
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that left: %v", err)
	}
}

// A trace whose network takes more than a query may does not fail the search for others. Where
// all do, the search says why.
func TestSearchForVerdictsLeavesOutLargeTraces(t *testing.T) {
	large := fault.As(fault.Rejected, errors.New("MEMORY_LIMIT_EXCEEDED"))
	result, err := findRetransmissions(t, t.Context(), time.Minute, func(_ context.Context, n int32) error {
		if n == 1 {
			return large
		}
		return nil
	})
	if err != nil || result.Inspected == 0 || !result.Partial || len(result.Traces) == 0 {
		t.Errorf("%d of %d traces, partial: %t, %v", len(result.Traces), result.Inspected, result.Partial, err)
	}
	if _, err := findRetransmissions(t, t.Context(), time.Minute, func(context.Context, int32) error { return large }); !errors.Is(err, large) {
		t.Errorf("all are too large: %v", err)
	}
	down := fault.As(fault.Retryable, errors.New("no connection"))
	if _, err := findRetransmissions(t, t.Context(), time.Minute, func(_ context.Context, n int32) error {
		if n == 2 {
			return down
		}
		return nil
	}); !errors.Is(err, down) {
		t.Errorf("ClickHouse is down: %v", err)
	}
}
