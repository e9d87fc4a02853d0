package columns

import (
	"encoding/binary"
	"net/netip"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/pkg/inventory/index"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
)

// TableFlows is the table whose columns Flows fills.
const TableFlows = "flows_local"

const (
	roleType  = "Enum8('unknown' = 0, 'client' = 1, 'server' = 2)"
	stateType = "Enum8('unknown' = 0, 'living' = 1, 'closed' = 2)"
	endType   = "Enum8('unknown' = 0, 'orderly' = 1, 'reset' = 2, 'timed out' = 3, 'connect failed' = 4)"
)

// Flows is one block of rows of flows_local. Make it with NewFlows. It belongs to one
// goroutine, and keeps its memory over Reset.
type Flows struct {
	block
	resolve Resolver

	// The row that is appended next.
	flow             flows.Flow
	networkNamespace uint64
	ip, peerIP       [16]byte
	agentTexts       dictKeys // agent_id, cluster, node
	groupTexts       dictKeys // the texts of the flow's group
	peerTexts        dictKeys // what is known of the peer

	// The holder that peer has the keys of: most flows have the same peers, or
	// nobody knows them.
	holder     index.Holder
	holderKept bool

	// The columns that Keys reads.
	ends, namespaces, connections, ips *fixed
}

// dictKeys are columns that take one value for many rows.
type dictKeys struct {
	columns []*dict
	keys    [maxKeys]uint32 // of the next row
}

// maxKeys bounds the columns of one dictKeys.
const maxKeys = 16

// declare adds a column to the block; columns count from 0.
func (d *dictKeys) declare(b *block, name string) {
	d.columns = append(d.columns, b.key(name, &d.keys[len(d.columns)]))
}

// put makes v the value of column i in the rows that come.
func (d *dictKeys) put(i int, v []byte) { d.keys[i] = d.columns[i].key(v) }

// putText is put for a value that is a string.
func (d *dictKeys) putText(i int, v string) { d.keys[i] = d.columns[i].keyOf(v) }

// What the agent says of itself, in the order of its columns.
const agentID = 0

var agentColumns = [...]string{agentID: "agent_id", "cluster", "node"}

// The texts of a FlowGroup, in the order of their fields from pod_uid on.
const (
	podUID = iota
	podName
	podNamespace
	podWorkload
)

var groupColumns = [...]string{podUID: "pod_uid", podName: "pod", podNamespace: "namespace", podWorkload: "workload", "container_id", "container", "process"}

// peerColumns are what is known of a peer.
var peerColumns = [...]struct {
	name string
	of   func(*index.Holder) string
}{
	{"peer_node", func(h *index.Holder) string { return h.Node }},
	{"peer_namespace", func(h *index.Holder) string { return h.Namespace }},
	{"peer_pod", func(h *index.Holder) string { return nameIf(h, index.Pod) }},
	{"peer_pod_uid", func(h *index.Holder) string { return h.UID }},
	{"peer_workload", func(h *index.Holder) string { return h.Workload }},
	{"peer_service", func(h *index.Holder) string { return nameIf(h, index.Service) }},
}

// nameIf is the holder's name when it is of this kind.
func nameIf(h *index.Holder, kind index.Kind) string {
	if h.Kind != kind {
		return ""
	}
	return h.Name
}

// FlowsTable is the table of flows. Its blocks ask resolve, when it is not nil,
// for the pods and services at the ends of each flow.
func FlowsTable(resolve Resolver) Table {
	return Table{Signal: flows.Signal, Name: TableFlows, New: func() Block { return NewFlows(resolve) }, Lookup: Lookup{
		Time:   "time",
		Select: "agent_id, network_namespace, connection, toUnixTimestamp64Nano(time) AS end, ip",
		Wanted: wantedFlows,
		Found:  foundFlows,
	}}
}

// wantedFlows names flows by their addresses, which are a prefix of the sort
// key, and their connections.
func wantedFlows(keys []signal.Key) proto.Input {
	ip, connection := new(proto.ColIPv6), new(proto.ColUInt64)
	for i := range keys {
		identity := flows.IdentityOf(&keys[i])
		ip.Append(identity.IP)
		connection.Append(identity.Connection)
	}
	return proto.Input{{Name: "ip", Data: ip}, {Name: "connection", Data: connection}}
}

func foundFlows() (proto.Results, func(func(signal.Key)) error) {
	var (
		agent                 = new(proto.ColStr).LowCardinality()
		namespace, connection proto.ColUInt64
		end                   proto.ColInt64
		ip                    proto.ColIPv6
	)
	return proto.Results{
			{Name: "agent_id", Data: agent},
			{Name: "network_namespace", Data: &namespace},
			{Name: "connection", Data: &connection},
			{Name: "end", Data: &end},
			{Name: "ip", Data: &ip},
		}, func(f func(signal.Key)) error {
			for i := range end.Rows() {
				identity := flows.Identity{
					Agent: agent.Row(i), NetworkNamespace: namespace.Row(i), Connection: connection.Row(i), End: end.Row(i), IP: ip.Row(i),
				}
				f(identity.Key())
			}
			return nil
		}
}

// NewFlows returns an empty block that asks resolve, when it is not nil, who
// held the peer's address, and the local one where the agent does not name its
// pod.
func NewFlows(resolve Resolver) *Flows {
	f := &Flows{resolve: resolve}
	f.ends = f.time("time", &f.flow.End)
	f.time("start_time", &f.flow.Start)
	f.enum("role", roleType, &f.flow.Role)
	f.ips = f.address("ip", &f.ip)
	f.port("port", &f.flow.LocalPort)
	f.address("peer_ip", &f.peerIP)
	f.port("peer_port", &f.flow.PeerPort)
	f.namespaces = f.uint64("network_namespace", &f.networkNamespace)
	f.connections = f.uint64("connection", &f.flow.Connection)
	f.enum("state", stateType, &f.flow.State)
	f.enum("end_reason", endType, &f.flow.Reason)
	f.uint32("connections", &f.flow.Connections)
	f.uint32("connect_failures", &f.flow.ConnectFailures)
	f.uint32("resets", &f.flow.Resets)
	f.uint32("timeouts", &f.flow.Timeouts)
	f.uint64("bytes_sent", &f.flow.BytesSent)
	f.uint64("bytes_received", &f.flow.BytesReceived)
	f.uint64("segments_sent", &f.flow.SegmentsSent)
	f.uint64("retransmits", &f.flow.Retransmits)
	f.uint64("retransmitted_bytes", &f.flow.RetransmittedBytes)
	f.uint32("rtt_us", &f.flow.RTT)
	f.uint32("rtt_min_us", &f.flow.MinRTT)
	f.uint64("receive_window_limited_us", &f.flow.ReceiveWindowLimited)
	f.uint64("send_buffer_limited_us", &f.flow.SendBufferLimited)
	f.uint64("busy_us", &f.flow.Busy)
	for _, name := range agentColumns {
		f.agentTexts.declare(&f.block, name)
	}
	for _, name := range groupColumns {
		f.groupTexts.declare(&f.block, name)
	}
	for _, c := range peerColumns {
		f.peerTexts.declare(&f.block, c.name)
	}
	return f
}

// Table is the table whose columns these are.
func (f *Flows) Table() string { return TableFlows }

// Reset empties the block and keeps its memory.
func (f *Flows) Reset() {
	f.reset()
	f.holderKept = false
}

// Join appends the rows of another block of flows.
func (f *Flows) Join(o Block) {
	f.join(&o.(*Flows).block)
}

// Resolver says who held an address at a time, in nanoseconds since the Unix
// epoch. Many goroutines call it, for every flow, and it never blocks.
type Resolver func(cluster string, address netip.Addr, at uint64) index.Holder

// Keys calls f with the key of every row.
func (f *Flows) Keys(each func(signal.Key)) {
	var agents []string
	ids := f.agentTexts.columns[agentID]
	for b := ids.values.buf; len(b) > 0; {
		size, n := binary.Uvarint(b)
		agents = append(agents, string(b[n:n+int(size)]))
		b = b[n+int(size):]
	}
	for i := range f.rows {
		identity := flows.Identity{
			Agent:            agents[ids.keys[i]],
			NetworkNamespace: binary.LittleEndian.Uint64(f.namespaces.buf[8*i:]),
			Connection:       binary.LittleEndian.Uint64(f.connections.buf[8*i:]),
			End:              int64(binary.LittleEndian.Uint64(f.ends.buf[8*i:])),
			IP:               [16]byte(f.ips.buf[16*i:]),
		}
		each(identity.Key())
	}
}

// Append decodes an ExportFlowsRequest and appends its flows. The resolver
// decides about no row, so it may answer differently when the same flows are
// appended again.
func (f *Flows) Append(value []byte, src Source) ([]signal.Refused, error) {
	// Checked as a whole first, so that nothing has to be undone and no
	// decoder below has to doubt what it reads.
	value, _, err := flows.Signal.Repair(nil, value)
	if err != nil {
		return nil, err
	}
	a := flowAppender{Flows: f, src: &src}
	a.head.Read(value)
	if f.resolve != nil {
		a.cluster = string(a.head.Cluster)
	}
	for i, text := range [len(agentColumns)][]byte{a.head.AgentID, a.head.Cluster, a.head.Node} {
		f.agentTexts.put(i, text)
	}
	for i := 0; i < len(value); {
		tag, lo, hi := signal.Next(value, i)
		if tag == flows.TagRequestGroups {
			a.flowGroup(value[lo:hi])
		}
		i = hi
	}
	f.flow = flows.Flow{} // it points into value
	return a.refused, nil
}

// flowAppender is one Append under way.
type flowAppender struct {
	*Flows
	src     *Source
	head    flows.Head
	cluster string // for the resolver
	podUID  []byte // of the group
	named   bool   // the group has its pod's name
	agent   string // id, once Skip needs it
	index   int
	refused []signal.Refused
}

func (a *flowAppender) flowGroup(b []byte) {
	var texts [len(groupColumns)][]byte
	a.networkNamespace = 0
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		switch {
		case tag == flows.TagGroupNetworkNamespace:
			a.networkNamespace = signal.Uint64(tag, b[lo:hi])
		case tag >= flows.TagGroupPodUID && tag <= flows.TagGroupProcess && tag&7 == signal.Bytes:
			texts[tag>>3-2] = b[lo:hi]
		}
		i = hi
	}
	for i := range texts {
		a.groupTexts.put(i, texts[i])
	}
	a.podUID, a.named = texts[podUID], len(texts[podName]) > 0
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		if tag == flows.TagGroupFlows {
			a.flowOf(b[lo:hi])
			a.index++
		}
		i = hi
	}
}

func (a *flowAppender) flowOf(b []byte) {
	f := &a.flow
	f.Read(b) // it has been checked
	if reason := f.Judge(a.src.Window); reason != signal.Accepted {
		a.refused = append(a.refused, signal.Refused{Index: a.index, Reason: flows.Signal.Label(reason)})
		return
	}
	a.ip, a.peerIP = as16(f.Local), as16(f.Peer)
	if a.src.Skip != nil && a.src.Skip(a.index, a.rowKey()) {
		return
	}
	a.lookUpPeer()
	group := a.groupTexts.keys
	a.lookUpPod()
	a.putRow()
	a.groupTexts.keys = group
}

// rowKey is the key of the row that is appended next.
func (a *flowAppender) rowKey() signal.Key {
	if a.agent == "" {
		a.agent = string(a.head.AgentID)
	}
	identity := flows.Identity{Agent: a.agent, NetworkNamespace: a.networkNamespace, Connection: a.flow.Connection, End: int64(a.flow.End), IP: a.ip}
	return identity.Key()
}

// lookUpPod finds the pod of the end that the flow is of, where the agent does
// not name it. Agents may know no more of a pod than its uid.
func (a *flowAppender) lookUpPod() {
	if a.named || a.resolve == nil {
		return
	}
	h := a.resolve(a.cluster, netip.AddrFrom16(a.ip).Unmap(), a.flow.End)
	if h.Kind == index.Pod && (len(a.podUID) == 0 || string(a.podUID) == h.UID) {
		for i, text := range [...]string{podUID: h.UID, podName: h.Name, podNamespace: h.Namespace, podWorkload: h.Workload} {
			a.groupTexts.putText(i, text)
		}
	}
}

// lookUpPeer finds what is known of the other end.
func (a *flowAppender) lookUpPeer() {
	var h index.Holder
	if a.resolve != nil {
		h = a.resolve(a.cluster, netip.AddrFrom16(a.peerIP).Unmap(), a.flow.End)
	}
	if a.holderKept && h == a.holder {
		return
	}
	a.holder, a.holderKept = h, true
	for i, c := range peerColumns {
		a.peerTexts.putText(i, c.of(&a.holder))
	}
}

// as16 is an address as the column has it: IPv4 as v4-mapped, and :: where it is unknown.
func as16(b []byte) (a [16]byte) {
	if len(b) == 4 {
		if binary.NativeEndian.Uint32(b) == 0 {
			return a
		}
		a[10], a[11] = 0xff, 0xff
		copy(a[12:], b)
	} else {
		copy(a[:], b)
	}
	return a
}
