package inventory

import (
	"fmt"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// owners maps the names of nodes to the ids of their agents.
type owners map[string]string

// keptFor is how long an agent keeps its node after its last heartbeat: several restarts,
// so that no other agent takes the node over meanwhile.
const keptFor = 10 * time.Minute

// owners returns the owners of a cluster's nodes: of the agents that registered with the
// node's name and were connected within keptFor, the one that registered first. The
// caller holds mu.
func (r *Resources) owners(cluster string) owners {
	now := r.opts.Now()
	of := make(owners)
	came := make(map[string]time.Time) // when the owners registered, by node
	for _, status := range r.index.Agents(cluster) {
		if now.Sub(fleet.Seen(status)) > keptFor {
			continue
		}
		id := status.Registration.AgentId
		var joined time.Time // zero if unknown: then it registered before servers recorded that
		if r.opts.Joined != nil {
			joined, _ = r.opts.Joined(id)
		}
		for _, node := range []string{status.Registration.Name, status.Registration.Host} {
			other, first := of[node], came[node]
			if other == "" || joined.Before(first) || joined.Equal(first) && id < other {
				of[node], came[node] = id, joined
			}
		}
	}
	return of
}

// mayReport returns nil if the agent of a report is registered in the report's cluster and
// does not report for another agent's node. The error is temporary: the registration may
// be in flight through Kafka, and the other agent may disconnect. The caller holds mu.
func (r *Resources) mayReport(report *agentv1.ReportRequest, of owners) error {
	status := r.index.Agent(report.AgentId)
	if status == nil {
		return fmt.Errorf("the agent %q is not registered, or its registration has not reached this server yet", report.AgentId)
	}
	if registered := status.Registration.GetCluster(); registered != report.Cluster {
		return fmt.Errorf("the agent %q is registered in the cluster %q, not in %q", report.AgentId, registered, report.Cluster)
	}
	if report.Node != "" && !of.allow(report.Node, report.AgentId) {
		return fmt.Errorf("the node %q of the cluster %q belongs to the agent %q, which is or was just connected; 'metaflow-ctl agent release' frees it", report.Node, report.Cluster, of[report.Node])
	}
	return nil
}

// mayMove reports whether the agent of a report may place a pod on its node. A pod keeps
// its node for life, so while the pod's known node has an agent, that agent decides.
func (of owners) mayMove(known *agentv1.Pod, report *agentv1.ReportRequest) bool {
	return known == nil || known.Node == report.Node || of.allow(known.Node, report.AgentId)
}

// allow reports whether a node belongs to the agent or to none.
func (of owners) allow(node, agent string) bool {
	owner := of[node]
	return owner == "" || owner == agent
}
