package columns

import (
	"encoding/binary"
	"net/netip"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/pkg/inventory/index"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/flows"
)

// TableFlows is the table of Flows.
const TableFlows = "flows_local"

const (
	roleType  = "Enum8('unknown' = 0, 'client' = 1, 'server' = 2)"
	stateType = "Enum8('unknown' = 0, 'living' = 1, 'closed' = 2)"
	endType   = "Enum8('unknown' = 0, 'orderly' = 1, 'reset' = 2, 'timed out' = 3, 'connect failed' = 4)"

	protocolType = "Enum8('tcp' = 0, 'dns' = 1)"
)

// Flows is a block of rows of flows_local. Create it with NewFlows. It is not safe for
// concurrent use, and Reset keeps its memory.
type Flows struct {
	block
	resolve Resolver

	// The row to append next.
	flow             flows.Flow
	networkNamespace uint64
	ip, peerIP       [16]byte
	translated       [16]byte
	translatedPeer   [16]byte
	agentTexts       dictKeys // agent_id, cluster, node
	groupTexts       dictKeys // texts of the flow's group
	peerTexts        dictKeys // the peer's holder

	// The holder whose keys are in peerTexts: consecutive flows often have the same peer,
	// or an unknown one.
	holder     index.Holder
	holderKept bool

	// Columns read by Keys.
	ends, namespaces, connections, ips *fixed
}

// dictKeys are columns that have one value for many rows.
type dictKeys struct {
	columns []*dict
	keys    [maxKeys]uint32 // of the next row
}

// maxKeys bounds the columns of one dictKeys.
const maxKeys = 16

// declare adds a column to the block. Columns count from 0.
func (d *dictKeys) declare(b *block, name string) {
	d.columns = append(d.columns, b.key(name, &d.keys[len(d.columns)]))
}

// put sets the value of column i for the following rows.
func (d *dictKeys) put(i int, v []byte) { d.keys[i] = d.columns[i].key(v) }

// putText is put for a string.
func (d *dictKeys) putText(i int, v string) { d.keys[i] = d.columns[i].keyOfString(v) }

// The agent's texts, in column order.
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

// peerColumns are the columns of the peer's holder.
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

// nameIf returns the holder's name if it is of this kind.
func nameIf(h *index.Holder, kind index.Kind) string {
	if h.Kind != kind {
		return ""
	}
	return h.Name
}

// FlowsTable returns the table of flows. Its blocks call resolve, unless it is nil, for
// the pods and services at the ends of each flow.
func FlowsTable(resolve Resolver) Table {
	return Table{Signal: flows.Signal, Name: TableFlows, New: func() Block { return NewFlows(resolve) }, Lookup: Lookup{
		Time:   "time",
		Select: "agent_id, network_namespace, connection, toUnixTimestamp64Nano(time) AS end, ip",
		Wanted: wantedFlows,
		Found:  foundFlows,
	}}
}

// wantedFlows identifies flows by their addresses, a prefix of the sorting key, and their
// connections.
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
	results := proto.Results{
		{Name: "agent_id", Data: agent},
		{Name: "network_namespace", Data: &namespace},
		{Name: "connection", Data: &connection},
		{Name: "end", Data: &end},
		{Name: "ip", Data: &ip},
	}
	return results, func(f func(signal.Key)) error {
		for i := range end.Rows() {
			identity := flows.Identity{
				Agent: agent.Row(i), NetworkNamespace: namespace.Row(i), Connection: connection.Row(i), End: end.Row(i), IP: ip.Row(i),
			}
			f(identity.Key())
		}
		return nil
	}
}

// NewFlows returns an empty block. It calls resolve, unless nil, for the holder of the
// peer's address, and of the local address if the agent does not name its pod.
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
	f.enum("protocol", protocolType, &f.flow.Protocol)
	f.word("peer_name", &f.flow.PeerName)
	f.address("translated_ip", &f.translated)
	f.port("translated_port", &f.flow.TranslatedPort)
	f.address("translated_peer_ip", &f.translatedPeer)
	f.port("translated_peer_port", &f.flow.TranslatedPeerPort)
	f.uint32("rtt_usual_us", &f.flow.UsualRTT)
	f.uint32("rtt_max_us", &f.flow.MaxRTT)
	f.uint32("queue_us", &f.flow.Queue)
	f.uint32("refused", &f.flow.Refused)
	f.uint32("gave_up", &f.flow.GaveUp)
	f.uint32("accept_queue_full", &f.flow.AcceptQueueFull)
	f.uint64("unread_bytes", &f.flow.UnreadBytes)
	f.uint64("unsent_bytes", &f.flow.UnsentBytes)
	f.uint64("retransmit_timeout_us", &f.flow.RetransmitTimeout)
	f.uint32("queries", &f.flow.Queries)
	f.uint32("query_failures", &f.flow.QueryFailures)
	f.uint32("queries_unanswered", &f.flow.QueriesUnanswered)
	f.uint64("query_time_us", &f.flow.QueryTime)
	f.uint32("query_time_max_us", &f.flow.MaxQueryTime)
	f.word("query_code", &f.flow.QueryCode)
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

// Table returns the name of the table.
func (f *Flows) Table() string { return TableFlows }

// Reset empties the block and keeps its memory.
func (f *Flows) Reset() {
	f.reset()
	f.holderKept = false
}

// Join makes the rows of another block of flows follow.
func (f *Flows) Join(o Block) {
	f.join(&o.(*Flows).block)
}

// Resolver returns who held an address at a time, in nanoseconds since the Unix epoch. It
// is called concurrently, for every flow, and must not block.
type Resolver func(cluster string, address netip.Addr, at uint64) index.Holder

// Keys calls each with the key of every row.
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

// Append decodes an ExportFlowsRequest and appends its flows. The resolver does not
// affect which rows are stored, so it may answer differently when the same flows are
// appended again.
func (f *Flows) Append(value []byte, src Source) ([]signal.Refused, error) {
	// Validate the whole request first, so that nothing has to be undone and the decoders
	// below need not check their input.
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
	f.flow = flows.Flow{} // it references value
	return a.refused, nil
}

// flowAppender is the state of one Append.
type flowAppender struct {
	*Flows
	src     *Source
	head    flows.Head
	cluster string // for the resolver
	podUID  []byte // of the group
	named   bool   // the group has the name of its pod
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
	f.Read(b) // already validated
	if reason := f.Judge(a.src.Window); reason != signal.Accepted {
		a.refused = append(a.refused, signal.Refused{Index: a.index, Reason: flows.Signal.Label(reason)})
		return
	}
	a.ip, a.peerIP = as16(f.Local), as16(f.Peer)
	a.translated, a.translatedPeer = as16(f.Translated), as16(f.TranslatedPeer)
	if a.src.Skip != nil && a.src.Skip(a.index, a.rowKey()) {
		return
	}
	a.lookUpPeer()
	group := a.groupTexts.keys
	a.lookUpPod()
	a.putRow()
	a.groupTexts.keys = group
}

// rowKey returns the key of the row to append next.
func (a *flowAppender) rowKey() signal.Key {
	if a.agent == "" {
		a.agent = string(a.head.AgentID)
	}
	identity := flows.Identity{Agent: a.agent, NetworkNamespace: a.networkNamespace, Connection: a.flow.Connection, End: int64(a.flow.End), IP: a.ip}
	return identity.Key()
}

// lookUpPod resolves the pod of the flow's local end if the agent does not name it.
// Agents may know no more than a pod's uid.
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

// lookUpPeer resolves the holder of the peer's address.
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

// as16 returns an address in the column's form: IPv4 as v4-mapped, and :: if unknown.
func as16(b []byte) (a [16]byte) {
	switch len(b) {
	case 0:
	case 4:
		if binary.NativeEndian.Uint32(b) == 0 {
			return a
		}
		a[10], a[11] = 0xff, 0xff
		copy(a[12:], b)
	default:
		copy(a[:], b)
	}
	return a
}
