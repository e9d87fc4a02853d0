package agent

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/metaflowys/metaflow-server/pkg/agent/cgroup"
	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// Fields of ExportFlowsRequest and FlowGroup in metaflow.agent.v1/flow.proto.
const (
	requestAgentID = 1
	requestCluster = 2
	requestNode    = 3
	requestGroups  = 4

	groupNamespace   = 1
	groupPodUID      = 2
	groupPod         = 3
	groupK8sSpace    = 4
	groupWorkload    = 5
	groupContainerID = 6
	groupProcess     = 8
	groupFlows       = 9

	tagGroups = signal.Tag(requestGroups)<<3 | signal.Bytes
	tagFlows  = signal.Tag(groupFlows)<<3 | signal.Bytes
)

// maxFlows bounds one request: about 200 kB of flows.
const maxFlows = 2000

// flowSender makes requests of rows of flow data and takes them into the pipe of
// flows. It implements capture.Consumer; one goroutine calls it.
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

// ownership is what the rows of one FlowGroup have in common.
type ownership struct {
	namespace uint64
	cgroup.Owner
	process string
}

// Consume implements capture.Consumer. A request that is refused is no reason to keep back the others.
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

// request returns an ExportFlowsRequest, valid until the next call. Rows keep their
// order within each owner.
func (s *flowSender) request(rows []flow.Row) []byte {
	if s.groups == nil {
		s.groups = map[ownership]*[]byte{}
	}
	var one []byte
	for i := range rows {
		key := ownership{rows[i].Namespace, s.owner(&rows[i]), s.process(&rows[i])}
		if key.process == "" {
			key.process = key.Unit // which is the next best name, and often the same
		}
		flows := s.groups[key]
		if flows == nil {
			flows = new([]byte)
			s.groups[key] = flows
			s.order = append(s.order, key)
		}
		one = rows[i].AppendWire(one[:0])
		*flows = protowire.AppendBytes(protowire.AppendTag(*flows, groupFlows, protowire.BytesType), one)
	}
	b := s.body[:0]
	b = appendText(b, requestAgentID, s.agentID)
	b = appendText(b, requestCluster, s.cluster)
	b = appendText(b, requestNode, s.node)
	for _, key := range s.order {
		head := protowire.AppendVarint(protowire.AppendTag(one[:0], groupNamespace, protowire.VarintType), key.namespace)
		pod := s.podOf(key.PodUID)
		head = appendText(head, groupPodUID, pod.UID)
		head = appendText(head, groupPod, pod.Name)
		head = appendText(head, groupK8sSpace, pod.Namespace)
		head = appendText(head, groupWorkload, pod.Workload)
		head = appendText(head, groupContainerID, key.ContainerID)
		head = appendText(head, groupProcess, key.process)
		flows := *s.groups[key]
		b = protowire.AppendTag(b, requestGroups, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(len(head)+len(flows)))
		b = append(append(b, head...), flows...)
		one = head
	}
	clear(s.groups)
	s.order, s.body = s.order[:0], b
	return b
}

// podOf is what is known of a pod: its uid at least. Servers find out more by its address where Kubernetes has not
// said anything here yet.
func (s *flowSender) podOf(uid string) Pod {
	if uid == "" {
		return Pod{}
	}
	if pod, ok := s.pod(uid); ok {
		return pod
	}
	return Pod{UID: uid}
}

func appendText(b []byte, field protowire.Number, text string) []byte {
	if text == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), text)
}

// countFlows counts the flows of a request that this program has made.
func countFlows(request []byte) int {
	n := 0
	each(request, tagGroups, func(group []byte) {
		each(group, tagFlows, func([]byte) { n++ })
	})
	return n
}

// each calls f with every field of b that has this tag.
func each(b []byte, tag signal.Tag, f func([]byte)) {
	for i := 0; i < len(b); {
		t, lo, hi := signal.Next(b, i)
		if hi < 0 {
			return
		}
		if t == tag {
			f(b[lo:hi])
		}
		i = hi
	}
}
