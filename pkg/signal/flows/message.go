package flows

import (
	"unicode/utf8"

	"github.com/metaflowys/metaflow-server/pkg/signal"
)

// Head is what a request says of its sender.
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

// A flow has no texts.
var (
	group   = signal.NewMessage([]int{2, 3, 4, 5, 6, 7, 8}, map[int]*signal.Message{9: signal.NewMessage(nil, nil)})
	request = signal.NewMessage([]int{1, 2, 3}, map[int]*signal.Message{4: group})
)

// validOfRequest reports whether a field of a request that is no group may have this value: texts are UTF-8.
func validOfRequest(tag signal.Tag, value []byte) bool {
	switch tag {
	case TagRequestAgentID, TagRequestCluster, TagRequestNode:
		return utf8.Valid(value)
	default:
		return true
	}
}

// validOfGroup does the same for a field of a group.
func validOfGroup(tag signal.Tag, value []byte) bool {
	switch tag {
	case TagGroupPodUID, TagGroupPod, TagGroupNamespace, TagGroupWorkload, TagGroupContainerID, TagGroupContainer, TagGroupProcess:
		return utf8.Valid(value)
	default:
		return true
	}
}
