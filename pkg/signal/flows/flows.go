package flows

import (
	"encoding/binary"

	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Signal is the signal of the flows of agents. A request is an
// ExportFlowsRequest of metaflow.agent.v1.
var Signal = &signal.Signal{
	Name: "flows", Item: "flow", Items: "flows", Prefix: "flows_",
	Request: "ExportFlowsRequest",
	Method:  agentv1.FlowService_ExportFlows_FullMethodName,
	Topic:   schema.TopicFlows,
	Message: request,
	Path:    []signal.Tag{TagRequestGroups, TagGroupFlows},

	Envelope: true, // who the agent is
	Sender:   sender,
	Judge:    judge, Rules: rules, Describe: describe,
	Around: "request and group",
	// An agent's requests have some 200 kB and become at most six times as much,
	// where every flow goes to another partition than its neighbours.
	Repeats: 2, Spare: 2 << 20,
}

func sender(req []byte) []byte {
	var head Head
	head.Read(req)
	return head.AgentID
}

// Identity is what makes two flows the same one.
type Identity struct {
	Agent            string
	NetworkNamespace uint64
	Connection       uint64
	End              int64    // nanoseconds since the Unix epoch
	IP               [16]byte // the local address, IPv4 as v4-mapped
}

// Key returns the key of the flow with this identity.
func (i *Identity) Key() signal.Key {
	k := signal.Key{Time: i.End, Source: i.Agent}
	copy(k.ID[:], i.IP[:])
	binary.BigEndian.PutUint64(k.ID[16:], i.Connection)
	binary.BigEndian.PutUint64(k.ID[24:], i.NetworkNamespace)
	return k
}

// IdentityOf returns the identity of the flow whose key is k.
func IdentityOf(k *signal.Key) Identity {
	return Identity{
		Agent: k.Source, End: k.Time, IP: [16]byte(k.ID[:16]),
		Connection: binary.BigEndian.Uint64(k.ID[16:]), NetworkNamespace: binary.BigEndian.Uint64(k.ID[24:]),
	}
}
