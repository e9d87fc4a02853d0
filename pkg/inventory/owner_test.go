package inventory

import (
	"net/netip"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/inventory/index"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Another agent ends the pods of a node and claims them for its own: under an id that is
// not registered, and under a registered one, also with the node's name.
func TestPodsBelongToTheAgentOfTheirNode(t *testing.T) {
	w := newWorld(t)
	one := w.replica("one", nil)
	joined := map[string]time.Time{"a-n1": time.Unix(1000, 0), "stranger": time.Unix(2000, 0), "a-new": time.Unix(3000, 0)}
	one.opts.Joined = func(id string) (time.Time, bool) { at, ok := joined[id]; return at, ok }
	report(t, one, w.complete("n1", w.pod("a", "10.0.0.1")))
	holder := func() index.Holder { return one.Resolve("prod", netip.MustParseAddr("10.0.0.1"), w.nanos()) }
	from := func(id, node string, pods ...*agentv1.Pod) *agentv1.ReportRequest {
		r := w.complete(node, pods...)
		r.AgentId = id
		return r
	}
	for _, registered := range []string{"", "n2", "n1"} {
		w.advance(time.Second)
		if registered != "" {
			register(t, one, "stranger", registered)
		}
		if _, _, err := one.Report(t.Context(), from("stranger", "n1")); err == nil {
			t.Errorf("registered with %q, another agent ends pods of n1", registered)
		}
		rejected, _, err := one.Report(t.Context(), from("stranger", "n2", w.pod("a", "10.0.0.1")))
		if err == nil && rejected != 1 {
			t.Errorf("registered with %q, another agent moves a pod of n1", registered)
		}
		if h := holder(); h.UID != "a" || h.Node != "n1" {
			t.Errorf("the address is held by %+v", h)
		}
	}
	report(t, one, w.complete("n1", w.pod("a", "10.0.0.1")))

	for _, cluster := range []string{"", "test"} {
		r := from("a-n1", "n9", w.pod("b", "10.0.0.9"))
		r.Cluster = cluster
		if _, _, err := one.Report(t.Context(), r); err == nil {
			t.Errorf("an agent of prod reports for the cluster %q", cluster)
		}
	}

	// The node's agent restarts, and another takes its name meanwhile. The new id becomes
	// the node's when the former one has been away for long.
	register(t, one, "a-new", "n1")
	if _, _, err := one.Report(t.Context(), from("a-new", "n1")); err == nil {
		t.Error("two agents report for a node at once")
	}
	w.advance(2 * time.Minute)
	register(t, one, "a-new", "n1")
	if _, _, err := one.Report(t.Context(), from("a-new", "n1")); err == nil {
		t.Error("another agent takes a node over while its own restarts")
	}
	w.advance(keptFor)
	register(t, one, "a-new", "n1")
	if _, _, err := one.Report(t.Context(), from("a-new", "n1")); err != nil {
		t.Errorf("the node's new agent: %v", err)
	}
	w.advance(time.Minute)
	if h := holder(); h.Kind != index.Nobody {
		t.Errorf("the ended pod is still the holder: %+v", h)
	}
}
