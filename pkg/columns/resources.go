package columns

import (
	"net/netip"
	"time"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Tables of what is known of pods, services and agents.
const (
	TablePods     = "pods_local"
	TableServices = "services_local"
	TableAgents   = "agents_local"
)

// endless is the end of what has not ended: the last second that a DateTime can tell, so that
// valid_to converts to one.
var endless = time.Unix(1<<32-1, 0).UTC()

// Pods is one block of rows of pods_local: a row for each address of a pod. Make it with
// NewPods. These blocks are small and rare, so their columns are the library's.
type Pods struct {
	cluster, namespace, node, workload, kind *proto.ColLowCardinality[string]
	ip                                       proto.ColIPv6
	uid, pod                                 proto.ColStr
	hostNetwork                              proto.ColBool
	from, to, seen, recorded                 *proto.ColDateTime64
}

// NewPods returns an empty block.
func NewPods() *Pods {
	return &Pods{
		cluster: words(), namespace: words(), node: words(), workload: words(), kind: words(),
		from: moments(), to: moments(), seen: moments(), recorded: moments(),
	}
}

// Append adds the rows of a pod, whose record was written at a time.
func (b *Pods) Append(p *agentv1.Pod, recorded time.Time) {
	for _, a := range p.Addresses {
		ip, ok := ipv6(a.Address)
		if !ok {
			continue
		}
		b.cluster.Append(p.Cluster)
		b.ip.Append(ip)
		b.uid.Append(p.Uid)
		b.pod.Append(p.Name)
		b.namespace.Append(p.Namespace)
		b.node.Append(p.Node)
		b.workload.Append(p.Workload)
		b.kind.Append(p.WorkloadKind)
		b.hostNetwork.Append(p.HostNetwork)
		b.from.Append(moment(a.ValidFromUnixNano))
		b.to.Append(end(a.ValidToUnixNano))
		b.seen.Append(moment(p.SeenTimeUnixNano))
		b.recorded.Append(recorded)
	}
}

// Rows is the number of rows.
func (b *Pods) Rows() int { return b.ip.Rows() }

// Input returns the columns with their names.
func (b *Pods) Input() proto.Input {
	return proto.Input{
		{Name: "cluster", Data: b.cluster},
		{Name: "ip", Data: &b.ip},
		{Name: "uid", Data: &b.uid},
		{Name: "pod", Data: &b.pod},
		{Name: "namespace", Data: b.namespace},
		{Name: "node", Data: b.node},
		{Name: "workload", Data: b.workload},
		{Name: "workload_kind", Data: b.kind},
		{Name: "host_network", Data: &b.hostNetwork},
		{Name: "valid_from", Data: b.from},
		{Name: "valid_to", Data: b.to},
		{Name: "seen", Data: b.seen},
		{Name: "recorded", Data: b.recorded},
	}
}

// Services is one block of rows of services_local: a row for each address of a service. Make it
// with NewServices.
type Services struct {
	cluster, namespace       *proto.ColLowCardinality[string]
	ip                       proto.ColIPv6
	service                  proto.ColStr
	ports                    *proto.ColArr[uint16]
	endpoints                *proto.ColArr[proto.IPv6]
	from, to, seen, recorded *proto.ColDateTime64
}

// NewServices returns an empty block.
func NewServices() *Services {
	return &Services{
		cluster: words(), namespace: words(), ports: new(proto.ColUInt16).Array(), endpoints: new(proto.ColIPv6).Array(),
		from: moments(), to: moments(), seen: moments(), recorded: moments(),
	}
}

// Append adds the rows of a service, whose record was written at a time.
func (b *Services) Append(s *agentv1.Service, recorded time.Time) {
	ports := make([]uint16, 0, len(s.Ports))
	for _, p := range s.Ports {
		ports = append(ports, uint16(p.Port))
	}
	endpoints := make([]proto.IPv6, 0, len(s.Endpoints))
	for _, e := range s.Endpoints {
		if ip, ok := ipv6(e); ok {
			endpoints = append(endpoints, ip)
		}
	}
	for _, a := range s.Addresses {
		ip, ok := ipv6(a)
		if !ok {
			continue
		}
		b.cluster.Append(s.Cluster)
		b.ip.Append(ip)
		b.namespace.Append(s.Namespace)
		b.service.Append(s.Name)
		b.ports.Append(ports)
		b.endpoints.Append(endpoints)
		b.from.Append(moment(s.StartTimeUnixNano))
		b.to.Append(end(s.EndTimeUnixNano))
		b.seen.Append(moment(s.SeenTimeUnixNano))
		b.recorded.Append(recorded)
	}
}

// Rows is the number of rows.
func (b *Services) Rows() int { return b.ip.Rows() }

// Input returns the columns with their names.
func (b *Services) Input() proto.Input {
	return proto.Input{
		{Name: "cluster", Data: b.cluster},
		{Name: "ip", Data: &b.ip},
		{Name: "namespace", Data: b.namespace},
		{Name: "service", Data: &b.service},
		{Name: "ports", Data: b.ports},
		{Name: "endpoints", Data: b.endpoints},
		{Name: "valid_from", Data: b.from},
		{Name: "valid_to", Data: b.to},
		{Name: "seen", Data: b.seen},
		{Name: "recorded", Data: b.recorded},
	}
}

// Agents is one block of rows of agents_local. Make it with NewAgents.
type Agents struct {
	id, name, host          proto.ColStr
	addresses               *proto.ColArr[proto.IPv6]
	version, cluster, group *proto.ColLowCardinality[string]
	revision                proto.ColUInt64
	exceptions              *proto.ColArr[string]
	started, seen, recorded *proto.ColDateTime64
	connected, deleted      proto.ColBool
}

// NewAgents returns an empty block.
func NewAgents() *Agents {
	return &Agents{
		addresses: new(proto.ColIPv6).Array(), version: words(), cluster: words(), group: words(), exceptions: new(proto.ColStr).Array(),
		started: moments(), seen: moments(), recorded: moments(),
	}
}

// Append adds the row of an agent, whose record was written at a time. A nil status says that it was deleted.
func (b *Agents) Append(id string, status *agentv1.AgentStatus, recorded time.Time) {
	r, h := status.GetRegistration(), status.GetHeartbeat()
	var addresses []proto.IPv6
	for _, text := range r.GetAddresses() {
		if a, err := netip.ParseAddr(text); err == nil {
			addresses = append(addresses, proto.IPv6(a.As16()))
		}
	}
	b.id.Append(id)
	b.name.Append(r.GetName())
	b.host.Append(r.GetHost())
	b.addresses.Append(addresses)
	b.version.Append(r.GetVersion())
	b.cluster.Append(r.GetCluster())
	b.group.Append(status.GetGroupId())
	b.revision.Append(h.GetRevision())
	b.exceptions.Append(h.GetExceptions())
	b.started.Append(moment(r.GetStartTimeUnixNano()))
	b.seen.Append(moment(status.GetSeenTimeUnixNano()))
	b.connected.Append(status.GetReplica() != "")
	b.deleted.Append(status == nil)
	b.recorded.Append(recorded)
}

// Rows is the number of rows.
func (b *Agents) Rows() int { return b.id.Rows() }

// Input returns the columns with their names.
func (b *Agents) Input() proto.Input {
	return proto.Input{
		{Name: "agent_id", Data: &b.id},
		{Name: "name", Data: &b.name},
		{Name: "host", Data: &b.host},
		{Name: "addresses", Data: b.addresses},
		{Name: "agent_version", Data: b.version},
		{Name: "cluster", Data: b.cluster},
		{Name: "group_id", Data: b.group},
		{Name: "revision", Data: &b.revision},
		{Name: "exceptions", Data: b.exceptions},
		{Name: "started", Data: b.started},
		{Name: "seen", Data: b.seen},
		{Name: "connected", Data: &b.connected},
		{Name: "deleted", Data: &b.deleted},
		{Name: "recorded", Data: b.recorded},
	}
}

func words() *proto.ColLowCardinality[string] { return new(proto.ColStr).LowCardinality() }

func moments() *proto.ColDateTime64 {
	return new(proto.ColDateTime64).WithPrecision(proto.PrecisionNano).WithLocation(time.UTC)
}

// moment is a time of a message; what is beyond the years that ClickHouse knows is cut.
func moment(nanos uint64) time.Time {
	return time.Unix(0, int64(min(nanos, uint64(endless.UnixNano())))).UTC()
}

func end(nanos uint64) time.Time {
	if nanos == 0 {
		return endless
	}
	return moment(nanos)
}

func ipv6(b []byte) (proto.IPv6, bool) {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return proto.IPv6{}, false
	}
	return proto.IPv6(a.As16()), true
}
