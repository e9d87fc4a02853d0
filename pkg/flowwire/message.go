package flowwire

import (
	"unicode/utf8"

	"github.com/metaflowys/metaflow-server/pkg/otlp"
)

// Head is what a request says of its sender.
type Head struct {
	AgentID, Cluster, Node []byte // point into the request
}

// Read takes the head out of a valid request.
func (h *Head) Read(req []byte) {
	*h = Head{}
	for i := 0; i < len(req); {
		tag, lo, hi := otlp.Next(req, i)
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

// Check returns otlp.ErrMalformed unless req is a valid ExportFlowsRequest.
// An empty req is valid.
func Check(req []byte) error {
	for i := 0; i < len(req); {
		tag, lo, hi := otlp.Next(req, i)
		if hi < 0 || !validOfRequest(tag, req[lo:hi]) || tag == TagRequestGroups && !validGroup(req[lo:hi]) {
			return otlp.ErrMalformed
		}
		i = hi
	}
	return nil
}

func validGroup(b []byte) bool {
	for i := 0; i < len(b); {
		tag, lo, hi := otlp.Next(b, i)
		if hi < 0 || !validOfGroup(tag, b[lo:hi]) || tag == TagGroupFlows && !validFlow(b[lo:hi]) {
			return false
		}
		i = hi
	}
	return true
}

// validFlow reports whether b is well-formed: a flow has no texts.
func validFlow(b []byte) bool {
	for i := 0; i < len(b); {
		_, _, hi := otlp.Next(b, i)
		if hi < 0 {
			return false
		}
		i = hi
	}
	return true
}

// validOfRequest reports whether a field of a request that is no group may have this value: texts are UTF-8.
func validOfRequest(tag otlp.Tag, value []byte) bool {
	switch tag {
	case TagRequestAgentID, TagRequestCluster, TagRequestNode:
		return utf8.Valid(value)
	default:
		return true
	}
}

// validOfGroup does the same for a field of a group.
func validOfGroup(tag otlp.Tag, value []byte) bool {
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
func each(b []byte, want otlp.Tag, f func([]byte)) {
	for i := 0; i < len(b); {
		tag, lo, hi := otlp.Next(b, i)
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
// flows of req from 0. It is for the few that are diverted, not for speed.
func Select(req []byte, keep func(index int) bool) ([]byte, error) {
	if err := Check(req); err != nil {
		return nil, err
	}
	index := 0
	out, _ := otlp.Filter(req, TagRequestGroups, func(group []byte) ([]byte, bool) {
		return otlp.Filter(group, TagGroupFlows, func(f []byte) ([]byte, bool) {
			wanted := keep(index)
			index++
			return f, wanted
		})
	})
	return out, nil
}
