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
	rows    int
	input   proto.Input
	all     []column
	resolve Resolver

	time, start                                    fixed
	role, state, endReason                         fixed
	ip, port, peerIP, peerPort                     fixed
	networkNamespace, connection                   fixed
	connections, connectFailures, resets, timeouts fixed
	bytesSent, bytesReceived, segmentsSent         fixed
	retransmits, retransmittedBytes                fixed
	rtt, minRTT                                    fixed
	receiveWindowLimited, sendBufferLimited, busy  fixed
	agentID, cluster, node                         dict
	group                                          [groupTexts]dict
	peer                                           [peerTexts]dict

	// The holder that was put last, and its places in the dictionaries: most flows have the
	// same peers, or nobody knows them.
	holder     index.Holder
	holderKeys [peerTexts]uint32
	holderKept bool
}

// The texts of a FlowGroup, by the order of their fields from pod_uid on.
const groupTexts = 7

const (
	podUID = iota
	podName
	podNamespace
	podWorkload
)

var groupColumns = [groupTexts]string{"pod_uid", "pod", "namespace", "workload", "container_id", "container", "process"}

// What is known of a peer.
const peerTexts = 6

var peerColumns = [peerTexts]string{"peer_node", "peer_namespace", "peer_pod", "peer_pod_uid", "peer_workload", "peer_service"}

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
	for _, c := range []struct {
		name   string
		column *fixed
		typ    proto.ColumnType
		width  int
	}{
		{"time", &f.time, "DateTime64(9, 'UTC')", 8},
		{"start_time", &f.start, "DateTime64(9, 'UTC')", 8},
		{"role", &f.role, roleType, 1},
		{"ip", &f.ip, "IPv6", 16},
		{"port", &f.port, "UInt16", 2},
		{"peer_ip", &f.peerIP, "IPv6", 16},
		{"peer_port", &f.peerPort, "UInt16", 2},
		{"network_namespace", &f.networkNamespace, "UInt64", 8},
		{"connection", &f.connection, "UInt64", 8},
		{"state", &f.state, stateType, 1},
		{"end_reason", &f.endReason, endType, 1},
		{"connections", &f.connections, "UInt32", 4},
		{"connect_failures", &f.connectFailures, "UInt32", 4},
		{"resets", &f.resets, "UInt32", 4},
		{"timeouts", &f.timeouts, "UInt32", 4},
		{"bytes_sent", &f.bytesSent, "UInt64", 8},
		{"bytes_received", &f.bytesReceived, "UInt64", 8},
		{"segments_sent", &f.segmentsSent, "UInt64", 8},
		{"retransmits", &f.retransmits, "UInt64", 8},
		{"retransmitted_bytes", &f.retransmittedBytes, "UInt64", 8},
		{"rtt_us", &f.rtt, "UInt32", 4},
		{"rtt_min_us", &f.minRTT, "UInt32", 4},
		{"receive_window_limited_us", &f.receiveWindowLimited, "UInt64", 8},
		{"send_buffer_limited_us", &f.sendBufferLimited, "UInt64", 8},
		{"busy_us", &f.busy, "UInt64", 8},
	} {
		*c.column = newFixed(c.typ, c.width)
		f.add(c.name, c.column)
	}
	f.addDict("agent_id", &f.agentID)
	f.addDict("cluster", &f.cluster)
	f.addDict("node", &f.node)
	for i, name := range groupColumns {
		f.addDict(name, &f.group[i])
	}
	for i, name := range peerColumns {
		f.addDict(name, &f.peer[i])
	}
	return f
}

func (f *Flows) add(name string, c column) {
	f.input = append(f.input, proto.InputColumn{Name: name, Data: c})
	f.all = append(f.all, c)
}

func (f *Flows) addDict(name string, d *dict) {
	*d = newDict()
	f.add(name, d)
}

// Table is the table whose columns these are.
func (f *Flows) Table() string { return TableFlows }

// Rows is the number of flows in the block.
func (f *Flows) Rows() int { return f.rows }

// Bytes is the memory that the rows take, as they are sent before compression.
func (f *Flows) Bytes() int {
	n := 0
	for _, c := range f.all {
		n += c.bytes()
	}
	return n
}

// Input returns the columns with their names, valid until the next Append or Reset.
func (f *Flows) Input() proto.Input { return f.input }

// Reset empties the block and keeps its memory.
func (f *Flows) Reset() {
	f.rows, f.holderKept = 0, false
	for _, c := range f.all {
		c.reset()
	}
}

// Resolver says who held an address at a time, in nanoseconds since the Unix
// epoch. Many goroutines call it, for every flow, and it never blocks.
type Resolver func(cluster string, address netip.Addr, at uint64) index.Holder

// Keys calls f with the key of every row.
func (f *Flows) Keys(each func(signal.Key)) {
	var agents []string
	for b := f.agentID.values.buf; len(b) > 0; {
		size, n := binary.Uvarint(b)
		agents = append(agents, string(b[n:n+int(size)]))
		b = b[n+int(size):]
	}
	for i := range f.rows {
		identity := flows.Identity{
			Agent:            agents[f.agentID.keys[i]],
			NetworkNamespace: binary.LittleEndian.Uint64(f.networkNamespace.buf[8*i:]),
			Connection:       binary.LittleEndian.Uint64(f.connection.buf[8*i:]),
			End:              int64(binary.LittleEndian.Uint64(f.time.buf[8*i:])),
			IP:               [16]byte(f.ip.buf[16*i:]),
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
	a.keys = flowKeys{agentID: f.agentID.key(a.head.AgentID), cluster: f.cluster.key(a.head.Cluster), node: f.node.key(a.head.Node)}
	for i := 0; i < len(value); {
		tag, lo, hi := signal.Next(value, i)
		if tag == flows.TagRequestGroups {
			a.flowGroup(value[lo:hi])
		}
		i = hi
	}
	return a.refused, nil
}

// flowAppender is one Append under way.
type flowAppender struct {
	*Flows
	src     *Source
	head    flows.Head
	cluster string // for the resolver
	keys    flowKeys
	podUID  []byte // of the group
	named   bool   // the group has its pod's name
	agent   string // id, once Skip needs it
	space   uint64 // network namespace of the group
	flow    flows.Flow
	index   int
	refused []signal.Refused
}

// flowKeys are the places in the dictionaries of what all flows of a group have in common.
type flowKeys struct {
	agentID, cluster, node uint32
	group                  [groupTexts]uint32
}

func (a *flowAppender) flowGroup(b []byte) {
	var texts [groupTexts][]byte
	var namespace uint64
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		switch {
		case tag == flows.TagGroupNetworkNamespace:
			namespace = signal.Uint64(tag, b[lo:hi])
		case tag >= flows.TagGroupPodUID && tag <= flows.TagGroupProcess && tag&7 == signal.Bytes:
			texts[tag>>3-2] = b[lo:hi]
		}
		i = hi
	}
	for i := range texts {
		a.keys.group[i] = a.group[i].key(texts[i])
	}
	a.podUID, a.named = texts[podUID], len(texts[podName]) > 0
	a.space = namespace
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
	if reason := f.Judge(a.src.Window); reason != flows.Accepted {
		a.refused = append(a.refused, signal.Refused{Index: a.index, Reason: reason.String()})
		return
	}
	ip, peer := as16(f.Local), as16(f.Peer)
	if a.src.Skip != nil && a.src.Skip(a.index, a.keyOf(f, &ip)) {
		return
	}
	a.row(f, &ip, &peer)
	a.rows++
}

func (a *flowAppender) keyOf(f *flows.Flow, ip *[16]byte) signal.Key {
	if a.agent == "" {
		a.agent = string(a.head.AgentID)
	}
	identity := flows.Identity{Agent: a.agent, NetworkNamespace: a.space, Connection: f.Connection, End: int64(f.End), IP: *ip}
	return identity.Key()
}

func (a *flowAppender) row(f *flows.Flow, ip, peer *[16]byte) {
	a.time.putUint64(f.End)
	a.start.putUint64(f.Start)
	a.role.putByte(byte(f.Role))
	a.ip.putAddress(ip)
	a.port.putUint16(uint16(f.LocalPort))
	a.peerIP.putAddress(peer)
	a.peerPort.putUint16(uint16(f.PeerPort))
	a.networkNamespace.putUint64(a.space)
	a.connection.putUint64(f.Connection)
	a.state.putByte(byte(f.State))
	a.endReason.putByte(byte(f.Reason))
	a.connections.putUint32(f.Connections)
	a.connectFailures.putUint32(f.ConnectFailures)
	a.resets.putUint32(f.Resets)
	a.timeouts.putUint32(f.Timeouts)
	a.bytesSent.putUint64(f.BytesSent)
	a.bytesReceived.putUint64(f.BytesReceived)
	a.segmentsSent.putUint64(f.SegmentsSent)
	a.retransmits.putUint64(f.Retransmits)
	a.retransmittedBytes.putUint64(f.RetransmittedBytes)
	a.rtt.putUint32(f.RTT)
	a.minRTT.putUint32(f.MinRTT)
	a.receiveWindowLimited.putUint64(f.ReceiveWindowLimited)
	a.sendBufferLimited.putUint64(f.SendBufferLimited)
	a.busy.putUint64(f.Busy)
	a.agentID.putKey(a.keys.agentID)
	a.Flows.cluster.putKey(a.keys.cluster)
	a.node.putKey(a.keys.node)
	a.owner(ip, f.End)
	a.other(peer, f.End)
}

// owner puts what is known of the end that the flow is of. Agents may know no more of a pod than its uid.
func (a *flowAppender) owner(ip *[16]byte, at uint64) {
	if a.named || a.resolve == nil {
		for i := range a.group {
			a.group[i].putKey(a.keys.group[i])
		}
		return
	}
	keys := a.keys.group
	h := a.resolve(a.cluster, netip.AddrFrom16(*ip).Unmap(), at)
	if h.Kind == index.Pod && (len(a.podUID) == 0 || string(a.podUID) == h.UID) {
		for i, text := range [...]string{podUID: h.UID, podName: h.Name, podNamespace: h.Namespace, podWorkload: h.Workload} {
			keys[i] = a.group[i].keyOf(text)
		}
	}
	for i := range a.group {
		a.group[i].putKey(keys[i])
	}
}

// other puts what is known of the other end.
func (a *flowAppender) other(peer *[16]byte, at uint64) {
	var h index.Holder
	if a.resolve != nil {
		h = a.resolve(a.cluster, netip.AddrFrom16(*peer).Unmap(), at)
	}
	if !a.holderKept || h != a.holder {
		var pod, service string
		switch h.Kind { //nolint:exhaustive // a node is nothing but a node
		case index.Pod:
			pod = h.Name
		case index.Service:
			service = h.Name
		}
		for i, text := range [peerTexts]string{h.Node, h.Namespace, pod, h.UID, h.Workload, service} {
			a.holderKeys[i] = a.peer[i].keyOf(text)
		}
		a.holder, a.holderKept = h, true
	}
	for i := range a.peer {
		a.peer[i].putKey(a.holderKeys[i])
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
