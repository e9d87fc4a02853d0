package agent

import (
	"context"
	"errors"
	"slices"

	"github.com/metaflowys/metaflow-server/pkg/agent/cgroup"
	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
)

// maxFlows bounds the flows of one request, which has then about 200 kB.
const maxFlows = 2000

// flowSender turns rows of flow data into requests and forwards them through
// the pipe of flows. It implements capture.Consumer; one goroutine calls it.
type flowSender struct {
	*pipe
	agentID, cluster, node string
	owner                  func(*flow.Row) cgroup.Owner
	process                func(*flow.Row) string
	pod                    func(uid string) (Pod, bool)
	body                   []byte
	groups                 map[ownership]*[]byte
	order                  []ownership
}

// ownership is what the rows of one FlowGroup share.
type ownership struct {
	namespace uint64
	cgroup.Owner
	process string
}

// Consume implements capture.Consumer. A rejected request does not hold back
// the others.
func (s *flowSender) Consume(ctx context.Context, rows []flow.Row) (taken int, err error) {
	for chunk := range slices.Chunk(rows, maxFlows) {
		_, refused := s.forward(ctx, s.request(chunk), len(chunk))
		if refused == nil {
			taken += len(chunk)
		}
		err = errors.Join(err, refused)
	}
	return taken, err
}

// request returns an ExportFlowsRequest, valid until the next call. Rows keep
// their order within each owner.
func (s *flowSender) request(rows []flow.Row) []byte {
	if s.groups == nil {
		s.groups = map[ownership]*[]byte{}
	}
	var one []byte
	for i := range rows {
		key := ownership{rows[i].Namespace, s.owner(&rows[i]), s.process(&rows[i])}
		if key.process == "" {
			key.process = key.Unit // the next best name, and often the same
		}
		group := s.groups[key]
		if group == nil {
			group = new([]byte)
			s.groups[key] = group
			s.order = append(s.order, key)
		}
		one = rows[i].AppendWire(one[:0])
		*group = flows.AppendFlow(*group, one)
	}
	b := flows.AppendHead(s.body[:0], s.agentID, s.cluster, s.node)
	for _, key := range s.order {
		pod := s.podOf(key.PodUID)
		b = flows.AppendGroup(b, &flows.Group{
			NetworkNamespace: key.namespace,
			PodUID:           pod.UID, Pod: pod.Name, Namespace: pod.Namespace, Workload: pod.Workload,
			ContainerID: key.ContainerID, Process: key.process,
		}, *s.groups[key])
	}
	clear(s.groups)
	s.order, s.body = s.order[:0], b
	return b
}

// podOf returns a pod, or only its UID if Kubernetes has not reported it yet.
// Servers then look the pod up by its address.
func (s *flowSender) podOf(uid string) Pod {
	if uid == "" {
		return Pod{}
	}
	if pod, ok := s.pod(uid); ok {
		return pod
	}
	return Pod{UID: uid}
}
