package gateway_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/delivery"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/gateway"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// hosts are the agents that are connected.
type hosts map[string][]netip.Addr

func (h hosts) AgentHosts(id string) []netip.Addr { return h[id] }

func newFlows(t *testing.T, l *log, agents gateway.Agents) (*gateway.Gateway, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewRegistry()
	f, err := gateway.New(gateway.DefaultConfig(), flows.Signal, l, gateway.Options{
		Agents: agents, MaxRecordBytes: 1 << 20, Now: func() time.Time { return now }, Registerer: reg,
	})
	if err != nil {
		t.Fatal(err)
	}
	return f, reg
}

// flowRequest is a request of agent-1 with flows of these connections; 0 is none that is acceptable.
func flowRequest(t *testing.T, connections ...uint64) []byte {
	t.Helper()
	return flowsOf(t, "agent-1", connections...)
}

func flowsOf(t *testing.T, agent string, connections ...uint64) []byte {
	t.Helper()
	group := &agentv1.FlowGroup{NetworkNamespace: 1}
	for _, c := range connections {
		group.Flows = append(group.Flows, &agentv1.Flow{
			StartTimeUnixNano: uint64(now.UnixNano()), EndTimeUnixNano: uint64(now.UnixNano()), Connection: c,
			LocalAddress: []byte{10, 0, 0, 1}, LocalPort: uint32(1000 + c), PeerAddress: []byte{10, 0, 0, 2}, PeerPort: 80,
		})
	}
	b, err := proto.Marshal(&agentv1.ExportFlowsRequest{AgentId: agent, Groups: []*agentv1.FlowGroup{group}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFlowsAreProducedByPartition(t *testing.T) {
	l := &log{}
	f, _ := newFlows(t, l, nil)
	var connections []uint64
	for i := range uint64(40) {
		connections = append(connections, i+1)
	}
	res, err := f.Consume(t.Context(), signal.Request{Body: flowRequest(t, connections...), Agent: "agent-1", Resend: true})
	if err != nil || res.Rejected != 0 {
		t.Fatalf("Consume = %+v, %v", res, err)
	}
	total := 0
	for _, r := range l.records {
		var meta delivery.Meta
		for _, h := range r.Headers {
			meta.Set(h.Key, h.Value)
		}
		if meta.Agent != "agent-1" || !meta.Resend || !meta.Received.Equal(now) || meta.Hash != delivery.HashOf(r.Value) {
			t.Errorf("headers say %+v", meta)
		}
		var req agentv1.ExportFlowsRequest
		if err := proto.Unmarshal(r.Value, &req); err != nil {
			t.Fatal(err)
		}
		for _, fl := range req.GetGroups()[0].GetFlows() {
			local := netip.AddrPortFrom(netip.AddrFrom4([4]byte(fl.GetLocalAddress())), uint16(fl.GetLocalPort()))
			if p := int(flows.Hash(local, netip.MustParseAddrPort("10.0.0.2:80")) % 4); p != r.Partition {
				t.Errorf("a flow of partition %d in a record of %d", p, r.Partition)
			}
			total++
		}
	}
	if total != 40 || len(l.records) != 4 {
		t.Errorf("%d flows produced in %d records", total, len(l.records))
	}
}

func TestFlowsAnswers(t *testing.T) {
	away := errors.New("broker away")
	here, there := netip.MustParseAddr("10.9.9.1"), netip.MustParseAddr("10.9.9.2")
	tests := map[string]struct {
		body     []byte
		agent    string
		agents   hosts
		produce  error
		rejected int64
		class    fault.Class
		wantErr  string
	}{
		"all good":                        {body: flowRequest(t, 1)},
		"one flow of three":               {body: flowRequest(t, 1, 0, 2), rejected: 1},
		"only bad flows":                  {body: flowRequest(t, 0), rejected: 1},
		"garbage":                         {body: []byte("garbage"), wantErr: "malformed", class: fault.Rejected},
		"Kafka is away":                   {body: flowRequest(t, 1), produce: away, wantErr: "away", class: fault.Retryable},
		"Kafka is full":                   {body: flowRequest(t, 1), produce: fault.As(fault.Overload, away), wantErr: "away", class: fault.Overload},
		"of another agent":                {body: flowRequest(t, 1), agent: "agent-2", wantErr: `"agent-2"`, class: fault.Rejected},
		"of nobody":                       {body: []byte{}, wantErr: "empty", class: fault.Rejected},
		"an id without an end":            {body: flowsOf(t, strings.Repeat("a", 1<<20)), wantErr: "1048576 bytes", class: fault.Rejected},
		"an agent that nobody knows":      {body: flowRequest(t, 1), agents: hosts{"agent-2": {there}}},
		"an agent where it should be":     {body: flowRequest(t, 1), agents: hosts{"agent-1": {there, here}}},
		"an agent that is somewhere else": {body: flowRequest(t, 1), agents: hosts{"agent-1": {there}}, wantErr: "connected from", class: fault.Rejected},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			f, _ := newFlows(t, &log{err: tc.produce}, tc.agents)
			if tc.agent == "" {
				tc.agent = "agent-1"
			}
			res, err := f.Consume(t.Context(), signal.Request{Body: tc.body, Agent: tc.agent, Peer: netip.AddrPortFrom(here, 5555)})
			if (err != nil) != (tc.wantErr != "") || err != nil && (fault.ClassOf(err) != tc.class || !strings.Contains(err.Error(), tc.wantErr)) {
				t.Fatalf("error %v of class %v", err, fault.ClassOf(err))
			}
			if res.Rejected != tc.rejected || (res.Message != "") != (tc.rejected > 0) {
				t.Errorf("result %+v, want %d rejected", res, tc.rejected)
			}
		})
	}
}

func TestCountersOfFlowsAddUp(t *testing.T) {
	l := &log{}
	f, reg := newFlows(t, l, nil)
	// Both signals have one registry in a server.
	if _, err := gateway.New(gateway.DefaultConfig(), traces.Signal, l, gateway.Options{MaxRecordBytes: 1000, Registerer: reg}); err != nil {
		t.Fatal(err)
	}
	consume := func(agent string, body []byte) {
		_, _ = f.Consume(t.Context(), signal.Request{Body: body, Agent: agent})
	}
	consume("agent-1", flowRequest(t, 1, 0, 3))
	l.err = errors.New("broker away")
	consume("agent-1", flowRequest(t, 1))
	consume("agent-1", []byte("garbage"))
	consume("agent-2", flowRequest(t, 1))
	for name, want := range map[string]float64{
		"metaflow_gateway_flows_received_total":           4,
		"metaflow_gateway_flows_produced_total":           2,
		"metaflow_gateway_flows_rejected_total":           1,
		"metaflow_gateway_flows_failed_total":             1,
		"metaflow_gateway_flows_requests_malformed_total": 1,
		"metaflow_gateway_flows_requests_foreign_total":   1,
		"metaflow_gateway_spans_received_total":           0,
	} {
		if got := prom.Value(t, reg, name); got != want {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("metrics lint: %v %v", problems, err)
	}
}
