package flows

import (
	"unicode/utf8"

	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
)

// Head is what a request says of its sender.
type Head struct {
	AgentID, Cluster, Node []byte // point into the request
}

// Read takes the head out of a valid request.
func (h *Head) Read(req []byte) {
	*h = Head{}
	for i := 0; i < len(req); {
		tag, lo, hi := traces.Next(req, i)
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
	group   = traces.NewMessage([]int{2, 3, 4, 5, 6, 7, 8}, map[int]*traces.Message{9: traces.NewMessage(nil, nil)})
	request = traces.NewMessage([]int{1, 2, 3}, map[int]*traces.Message{4: group})
)

// Check returns otlp.ErrMalformed unless req is a valid ExportFlowsRequest.
// An empty req is valid.
func Check(req []byte) error {
	if !request.Valid(req) {
		return traces.ErrMalformed
	}
	return nil
}

// Repair returns req with its texts repaired where they are not UTF-8, as otlp.Repair does
// for spans.
func Repair(dst, req []byte) (out []byte, texts int, err error) { return request.Repair(dst, req) }

// validOfRequest reports whether a field of a request that is no group may have this value: texts are UTF-8.
func validOfRequest(tag traces.Tag, value []byte) bool {
	switch tag {
	case TagRequestAgentID, TagRequestCluster, TagRequestNode:
		return utf8.Valid(value)
	default:
		return true
	}
}

// validOfGroup does the same for a field of a group.
func validOfGroup(tag traces.Tag, value []byte) bool {
	switch tag {
	case TagGroupPodUID, TagGroupPod, TagGroupNamespace, TagGroupWorkload, TagGroupContainerID, TagGroupContainer, TagGroupProcess:
		return utf8.Valid(value)
	default:
		return true
	}
}

// Flows counts the flows of a valid request.
func Flows(req []byte) int {
	n := 0
	each(req, TagRequestGroups, func(group []byte) {
		each(group, TagGroupFlows, func([]byte) { n++ })
	})
	return n
}

// each calls f with the value of every field of b that has this tag. It stops
// at what is malformed.
func each(b []byte, want traces.Tag, f func([]byte)) {
	for i := 0; i < len(b); {
		tag, lo, hi := traces.Next(b, i)
		if hi < 0 {
			return
		}
		if tag == want {
			f(b[lo:hi])
		}
		i = hi
	}
}

// Select returns a request with those flows of req for which keep is true; index counts all
// flows of req from 0. Texts are repaired as by Repair. It is for the few that are diverted, not for speed.
func Select(req []byte, keep func(index int) bool) ([]byte, error) {
	req, _, err := Repair(nil, req)
	if err != nil {
		return nil, err
	}
	index := 0
	out, _ := traces.Filter(req, TagRequestGroups, func(group []byte) ([]byte, bool) {
		return traces.Filter(group, TagGroupFlows, func(f []byte) ([]byte, bool) {
			wanted := keep(index)
			index++
			return f, wanted
		})
	})
	return out, nil
}
