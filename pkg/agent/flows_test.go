package agent

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/pkg/agent/cgroup"
	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// flowsRig returns a sender of flows with fake servers and a real spool.
func flowsRig(t *testing.T) (*flowSender, *rig) {
	t.Helper()
	r := newRig(t, 8<<20)
	r.metrics, r.signal, r.foreign = newPipeMetrics(nil, flows.Signal), flows.Signal, false
	return &flowSender{
		pipe: r.pipe, agentID: "a", cluster: "c", node: "n",
		owner:   func(row *flow.Row) cgroup.Owner { return cgroup.Owner{PodUID: []string{"", "pod-1"}[row.Cookie%2]} },
		process: func(*flow.Row) string { return "" },
		pod:     noPods{}.Pod,
	}, r
}

func rows(n int) []flow.Row {
	all := make([]flow.Row, n)
	for i := range all {
		all[i] = flow.Row{
			Start: 1, End: 2, Namespace: uint64(i % 3), Cookie: uint64(i), Role: flow.RoleClient,
			Local: netip.MustParseAddrPort("10.0.0.1:40000"), Peer: netip.MustParseAddrPort("10.0.0.2:80"),
		}
	}
	return all
}

// protobuf reads the hand-encoded request: every row once, under its owner.
func TestRowsBecomeRequests(t *testing.T) {
	s, _ := flowsRig(t)
	for range 2 { // memory is reused
		body := s.request(rows(100))
		if n := flows.Signal.Count(body); n != 100 {
			t.Errorf("counted %d flows", n)
		}
		var req agentv1.ExportFlowsRequest
		if err := proto.Unmarshal(body, &req); err != nil {
			t.Fatal(err)
		}
		if req.AgentId != "a" || req.Cluster != "c" || req.Node != "n" || len(req.Groups) != 6 {
			t.Errorf("agent %q, cluster %q, node %q, %d groups", req.AgentId, req.Cluster, req.Node, len(req.Groups))
		}
		seen := map[uint64]bool{}
		for _, g := range req.Groups {
			for _, f := range g.Flows {
				want := []string{"", "pod-1"}[f.Connection%2]
				if f.Connection%3 != g.NetworkNamespace || g.PodUid != want || seen[f.Connection] {
					t.Errorf("flow %d is in namespace %d of pod %q, seen before: %t", f.Connection, g.NetworkNamespace, g.PodUid, seen[f.Connection])
				}
				seen[f.Connection] = true
			}
		}
		if len(seen) != 100 {
			t.Errorf("%d distinct flows", len(seen))
		}
	}
}

// A pod's flows carry what Kubernetes reports of it; for a static pod also the
// UID, which its control groups lack. Pods that Kubernetes has not reported yet
// have only the UID.
func TestRowsOfPods(t *testing.T) {
	s, _ := flowsRig(t)
	s.owner = func(row *flow.Row) cgroup.Owner { return cgroup.Owner{PodUID: []string{"hash", "young"}[row.Cookie%2]} }
	s.pod = func(uid string) (Pod, bool) {
		return Pod{UID: "static", Namespace: "kube-system", Name: "etcd-n1", Workload: "etcd"}, uid == "hash"
	}
	var req agentv1.ExportFlowsRequest
	if err := proto.Unmarshal(s.request(rows(2)), &req); err != nil {
		t.Fatal(err)
	}
	for i, want := range []*agentv1.FlowGroup{
		{PodUid: "static", Namespace: "kube-system", Pod: "etcd-n1", Workload: "etcd"},
		{PodUid: "young", NetworkNamespace: 1},
	} {
		got := req.Groups[i]
		got.Flows = nil
		if !proto.Equal(got, want) {
			t.Errorf("group %d is %v, want %v", i, got, want)
		}
	}
}

// A process has its own name, or else that of its systemd unit.
func TestRowsOfProcesses(t *testing.T) {
	s, _ := flowsRig(t)
	s.owner = func(*flow.Row) cgroup.Owner { return cgroup.Owner{Unit: "web.service"} }
	s.process = func(row *flow.Row) string { return []string{"", "nginx"}[row.Cookie] }
	var req agentv1.ExportFlowsRequest
	if err := proto.Unmarshal(s.request(rows(2)), &req); err != nil {
		t.Fatal(err)
	}
	if len(req.Groups) != 2 || req.Groups[0].Process != "web.service" || req.Groups[1].Process != "nginx" {
		t.Errorf("groups %v", req.Groups)
	}
}

// Rows are spooled while no server is reachable; rejected rows are an error,
// for capture to count.
func TestFlowsAreSpooled(t *testing.T) {
	s, r := flowsRig(t)
	r.servers.set(0, true)
	if taken, err := s.Consume(context.Background(), rows(2*maxFlows+1)); err != nil || taken != 2*maxFlows+1 || r.disk.Len() != 3 {
		t.Errorf("Consume = %d, %v, %d requests in the spool, want 3", taken, err, r.disk.Len())
	}
	r.servers.set(0, false)
	r.servers.refuse = fault.As(fault.Rejected, errors.New("no"))
	if taken, err := s.Consume(context.Background(), rows(maxFlows+1)); err == nil || taken != 0 || r.servers.refused != 2 {
		t.Errorf("Consume of rejected rows = %d, %v, in %d requests, want 2", taken, err, r.servers.refused)
	}
}
