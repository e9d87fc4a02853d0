package otlptest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Flows makes an endless series of ExportFlowsRequest messages, as the agent of a node with thirty pods
// sends them: living connections every report interval, and short ones when they end. It
// belongs to one goroutine.
type Flows struct {
	rng  *rand.Rand
	now  time.Time
	pods []*flowPod
	next uint64 // connection
}

// flowPod is what is in one FlowGroup.
type flowPod struct {
	group   *agentv1.FlowGroup
	address []byte
}

// NewFlows returns a generator of flows that end at start or later. Zero is a fixed day in 2026. Equal
// arguments give equal requests.
func NewFlows(seed uint64, start time.Time) *Flows {
	if start.IsZero() {
		start = time.Date(2026, time.June, 1, 12, 0, 0, 0, time.UTC)
	}
	f := &Flows{rng: rand.New(rand.NewPCG(seed, 0x666c6f7773)), now: start} //nolint:gosec // repeatable is the point
	for i := range 30 {
		workload := fmt.Sprintf("service-%02d", i%11)
		uid := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, f.rng.Uint64()), f.rng.Uint64())
		f.pods = append(f.pods, &flowPod{
			group: &agentv1.FlowGroup{
				NetworkNamespace: 4_026_532_000 + uint64(i), PodUid: uuid(uid), Pod: fmt.Sprintf("%s-6b7f9c5d4-%05x", workload, i*7919),
				Namespace: "shop", Workload: workload, Container: "server",
				ContainerId: fmt.Sprintf("%064x", uid),
			},
			address: []byte{10, 1, 3, byte(i + 2)},
		})
	}
	return f
}

// Request returns the next request, with exactly that many flows. The caller owns it.
func (f *Flows) Request(flows int) *agentv1.ExportFlowsRequest {
	req := &agentv1.ExportFlowsRequest{AgentId: "0b5e2c1a-6d1f-4c67-9a3b-2f1f3c9d8e70", Cluster: "test", Node: "node-3"}
	left := flows
	for i, p := range f.pods {
		n := flows / len(f.pods)
		if i == len(f.pods)-1 {
			n = left
		}
		if left -= n; n == 0 {
			continue
		}
		group := proto.CloneOf(p.group)
		for range n {
			group.Flows = append(group.Flows, f.flow(p))
		}
		req.Groups = append(req.Groups, group)
	}
	return req
}

// RequestBytes is Request as protobuf.
func (f *Flows) RequestBytes(flows int) []byte {
	b, err := proto.Marshal(f.Request(flows))
	if err != nil {
		panic(err) // what is built here can be marshalled
	}
	return b
}

func (f *Flows) flow(p *flowPod) *agentv1.Flow {
	f.now = f.now.Add(time.Millisecond)
	f.next++
	end := uint64(f.now.UnixNano())
	flow := &agentv1.Flow{
		StartTimeUnixNano: end - uint64(10*time.Second), EndTimeUnixNano: end,
		LocalAddress: p.address, LocalPort: uint32(32768 + f.rng.IntN(28232)),
		PeerAddress: []byte{10, 1, byte(f.rng.IntN(20)), byte(2 + f.rng.IntN(100))}, PeerPort: 8080,
		Role: agentv1.FlowRole_FLOW_ROLE_CLIENT, State: agentv1.FlowState_FLOW_STATE_LIVING,
		Connection:   f.next,
		BytesSent:    f.rng.Uint64N(1 << 20),
		SegmentsSent: f.rng.Uint64N(1 << 10),
		RttUs:        200 + f.rng.Uint32N(5000),
		RttMinUs:     200,
		BusyUs:       f.rng.Uint64N(10_000_000),
	}
	flow.BytesReceived = 8 * flow.GetBytesSent()
	if f.rng.IntN(2) == 0 {
		flow.Role = agentv1.FlowRole_FLOW_ROLE_SERVER
		flow.LocalPort, flow.PeerPort = flow.GetPeerPort(), flow.GetLocalPort()
	}
	if f.rng.IntN(3) == 0 {
		flow.State, flow.End, flow.Connections = agentv1.FlowState_FLOW_STATE_CLOSED, agentv1.FlowEnd_FLOW_END_ORDERLY, 1
	}
	if f.rng.IntN(20) == 0 {
		flow.Retransmits = 1 + f.rng.Uint64N(20)
		flow.RetransmittedBytes = 1400 * flow.GetRetransmits()
		flow.ReceiveWindowLimitedUs = f.rng.Uint64N(100_000)
	}
	return flow
}
