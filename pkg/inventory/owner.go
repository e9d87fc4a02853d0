package inventory

import (
	"fmt"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// owners are the ids of the agents that nodes are of, by the node's name.
type owners map[string]string

// owners returns whom the nodes of a cluster are of: of the agents that are connected and registered with the
// node's name, the one that came first. The caller holds mu.
func (r *Resources) owners(cluster string) owners {
	now := r.opts.Now()
	of := make(owners)
	came := make(map[string]time.Time) // the owners of nodes, by node
	for _, status := range r.index.Agents(cluster) {
		if !fleet.Alive(status, now) {
			continue
		}
		id := status.Registration.AgentId
		var joined time.Time // those of which it is not known came before it was written
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

// mayReport returns nil when the agent of a report is registered, and speaks of no node that is another's. The
// error is for now: the registration may be on its way through Kafka, and the other agent may go. The caller
// holds mu.
func (r *Resources) mayReport(report *agentv1.ReportRequest, of owners) error {
	if r.index.Agent(report.AgentId) == nil {
		return fmt.Errorf("the agent %q is not registered, or this server does not know it yet", report.AgentId)
	}
	if report.Node != "" && !of.allow(report.Node, report.AgentId) {
		return fmt.Errorf("the node %q of the cluster %q is that of the agent %q, which is connected", report.Node, report.Cluster, of[report.Node])
	}
	return nil
}

// mayMove tells whether the agent of a report may say that a pod is on its node. A pod keeps its node for life, so
// the agent of the node where it was known decides, while it is connected.
func (of owners) mayMove(known *agentv1.Pod, report *agentv1.ReportRequest) bool {
	return known == nil || known.Node == report.Node || of.allow(known.Node, report.AgentId)
}

// allow tells whether a node is an agent's, or nobody's.
func (of owners) allow(node, agent string) bool {
	owner := of[node]
	return owner == "" || owner == agent
}
