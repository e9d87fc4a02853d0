package flows

import "github.com/metaflowys/metaflow-server/pkg/signal"

// Tags of the fields of a request and of a group that are read by name.
const (
	TagRequestAgentID = 1<<3 | signal.Bytes
	TagRequestCluster = 2<<3 | signal.Bytes
	TagRequestNode    = 3<<3 | signal.Bytes
	TagRequestGroups  = 4<<3 | signal.Bytes

	TagGroupNetworkNamespace = 1<<3 | signal.Varint
	TagGroupPodUID           = 2<<3 | signal.Bytes
	TagGroupPod              = 3<<3 | signal.Bytes
	TagGroupNamespace        = 4<<3 | signal.Bytes
	TagGroupWorkload         = 5<<3 | signal.Bytes
	TagGroupContainerID      = 6<<3 | signal.Bytes
	TagGroupContainer        = 7<<3 | signal.Bytes
	TagGroupProcess          = 8<<3 | signal.Bytes
	TagGroupFlows            = 9<<3 | signal.Bytes
)

// A flow has no texts.
var (
	group   = signal.NewMessage([]int{2, 3, 4, 5, 6, 7, 8}, map[int]*signal.Message{9: signal.NewMessage(nil, nil)})
	request = signal.NewMessage([]int{1, 2, 3}, map[int]*signal.Message{4: group})
)

// Head describes the sender of a request.
type Head struct {
	AgentID, Cluster, Node []byte // point into the request
}

// Read takes the head out of a valid request.
func (h *Head) Read(req []byte) {
	*h = Head{}
	for i := 0; i < len(req); {
		tag, lo, hi := signal.Next(req, i)
		if hi < 0 {
			return
		}
		switch tag {
		case TagRequestAgentID:
			h.AgentID = req[lo:hi]
		case TagRequestCluster:
			h.Cluster = req[lo:hi]
		case TagRequestNode:
			h.Node = req[lo:hi]
		}
		i = hi
	}
}

// AppendHead appends the description of a sender.
func AppendHead(b []byte, agentID, cluster, node string) []byte {
	b = appendText(b, TagRequestAgentID, agentID)
	b = appendText(b, TagRequestCluster, cluster)
	return appendText(b, TagRequestNode, node)
}

// Group is what the flows of a FlowGroup have in common.
type Group struct {
	NetworkNamespace               uint64
	PodUID, Pod, Namespace         string
	Workload, ContainerID, Process string
}

// AppendGroup appends a group with these flows, as AppendFlow wrote them, to a
// request.
func AppendGroup(b []byte, g *Group, flows []byte) []byte {
	var scratch [256]byte
	head := appendNumber(scratch[:0], TagGroupNetworkNamespace, g.NetworkNamespace)
	head = appendText(head, TagGroupPodUID, g.PodUID)
	head = appendText(head, TagGroupPod, g.Pod)
	head = appendText(head, TagGroupNamespace, g.Namespace)
	head = appendText(head, TagGroupWorkload, g.Workload)
	head = appendText(head, TagGroupContainerID, g.ContainerID)
	head = appendText(head, TagGroupProcess, g.Process)
	b = signal.AppendBytesTag(b, TagRequestGroups, len(head)+len(flows))
	return append(append(b, head...), flows...)
}

// AppendFlow appends a flow to the flows of a group.
func AppendFlow(flows, flow []byte) []byte { return appendBytes(flows, TagGroupFlows, flow) }

// appendText appends nothing for an empty text, as protobuf does.
func appendText(b []byte, tag signal.Tag, text string) []byte {
	if text == "" {
		return b
	}
	return append(signal.AppendBytesTag(b, tag, len(text)), text...)
}
