package gateway_test

import (
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/gateway"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
)

// quotas are the limits of groups, each with one agent of its name.
type quotas map[string]agentconfig.Limits

func (q quotas) AgentLimits(id string) (groupID, groupName string, limits agentconfig.Limits, ok bool) {
	limits, ok = q[id]
	return "g-" + id, id, limits, ok
}

// tenFlows is a request of an agent.
func tenFlows(t *testing.T, agent string) signal.Request {
	t.Helper()
	return signal.Request{Body: flowsOf(t, agent, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10), Agent: agent}
}

// For a minute, an agent sends ten times what its group may, and others send as before:
// the group gets its rate and no more, and nobody else is refused.
func TestQuotasHoldTheRate(t *testing.T) {
	at := now
	reg := prometheus.NewRegistry()
	groups := quotas{"agent-1": {BytesPerSecond: 10_000}, "agent-2": {BytesPerSecond: 10_000}, "agent-3": {}}
	g, err := gateway.New(gateway.DefaultConfig(), flows.Signal, &log{}, gateway.Options{
		MaxRecordBytes: 1 << 20, Now: func() time.Time { return now }, Quotas: gateway.NewQuotas(groups, reg, func() time.Time { return at }),
	})
	if err != nil {
		t.Fatal(err)
	}
	taken, refused := map[string]int{}, 0
	send := func(agent string) {
		request := tenFlows(t, agent)
		_, err := g.Consume(t.Context(), request)
		if err == nil {
			taken[agent] += len(request.Body)
			return
		}
		var quota *gateway.QuotaError
		if fault.ClassOf(err) != fault.Overload || !errors.As(err, &quota) || quota.Group != "agent-1" || quota.Key != "outputs.limits.bytes_per_second" ||
			quota.ExhaustedFor() <= 0 || quota.ExhaustedFor() > 30*time.Second {
			t.Fatalf("%s: %v", agent, err)
		}
		refused++
	}
	const seconds = 60
	size := len(tenFlows(t, "agent-1").Body)
	for range seconds {
		for range 100_000 / size {
			send("agent-1")
		}
		for range 8_000 / size {
			send("agent-2")
		}
		send("agent-3")
		send("unknown")
		at = at.Add(time.Second)
	}
	// The burst at the beginning, and a request on top of the credit.
	if most, least := (seconds+2)*10_000+2*size, (seconds-1)*10_000; taken["agent-1"] > most || taken["agent-1"] < least {
		t.Errorf("took %d bytes in %d seconds, want %d to %d", taken["agent-1"], seconds, least, most)
	}
	if want := 8_000 / size * size * seconds; taken["agent-2"] != want || taken["agent-3"] != seconds*size {
		t.Errorf("took %v of the others, want %d and %d", taken, want, seconds*size)
	}
	if got := prom.Value(t, reg, "metaflow_gateway_quota_refused_requests_total", "agent-1", "outputs.limits.bytes_per_second"); refused == 0 || got != float64(refused) {
		t.Errorf("counted %v of %d", got, refused)
	}
}

// A request above the credit passes; the group then waits for as long as it took.
func TestQuotaTakesALargeRequest(t *testing.T) {
	at := now
	groups := quotas{"agent-1": {BytesPerSecond: 100}}
	g, err := gateway.New(gateway.DefaultConfig(), flows.Signal, &log{}, gateway.Options{
		MaxRecordBytes: 1 << 20, Now: func() time.Time { return now }, Quotas: gateway.NewQuotas(groups, nil, func() time.Time { return at }),
	})
	if err != nil {
		t.Fatal(err)
	}
	request := tenFlows(t, "agent-1")
	if _, err := g.Consume(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	debt := time.Duration(len(request.Body)-200) * time.Second / 100
	var quota *gateway.QuotaError
	if _, err := g.Consume(t.Context(), request); !errors.As(err, &quota) || quota.After < debt || quota.After > debt+time.Second {
		t.Errorf("after %d bytes: %v, want a wait of %s", len(request.Body), err, debt)
	}
	at = at.Add(debt + 10*time.Millisecond)
	if _, err := g.Consume(t.Context(), request); err != nil {
		t.Errorf("after the wait: %v", err)
	}
}

// A limit of spans counts spans, whatever the size of the requests, and no flow data.
func TestSpansLimit(t *testing.T) {
	at := now
	groups := quotas{"agent-1": {SpansPerSecond: 100}}
	shared := gateway.NewQuotas(groups, nil, func() time.Time { return at })
	open := func(sig *signal.Signal) *gateway.Gateway {
		t.Helper()
		g, err := gateway.New(gateway.DefaultConfig(), sig, &log{}, gateway.Options{
			MaxRecordBytes: 1 << 20, Now: func() time.Time { return now }, Quotas: shared,
		})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	spans, flowData := open(traces.Signal), open(flows.Signal)
	const seconds, perRequest = 60, 20
	var list []*tracepb.Span
	for i := range byte(perRequest) {
		list = append(list, span(1, 1+i))
	}
	taken, refused := 0, 0
	for range seconds {
		for range 50 { // ten times the limit
			_, err := spans.Consume(t.Context(), signal.Request{Body: request(t, list...), Agent: "agent-1"})
			var quota *gateway.QuotaError
			switch {
			case err == nil:
				taken += perRequest
			case errors.As(err, &quota) && quota.Key == "outputs.limits.spans_per_second":
				refused++
			default:
				t.Fatal(err)
			}
		}
		at = at.Add(time.Second)
	}
	if most, least := (seconds+2)*100+perRequest, (seconds-1)*100; taken > most || taken < least || refused == 0 {
		t.Errorf("took %d spans in %d seconds and refused %d requests, want %d to %d spans", taken, seconds, refused, least, most)
	}
	at = at.Add(time.Minute)
	for range 50 {
		if _, err := flowData.Consume(t.Context(), tenFlows(t, "agent-1")); err != nil {
			t.Fatalf("flow data under a limit of spans: %v", err)
		}
	}
}
