package columns

import (
	"time"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// TablePods is the table of Pods.
const TablePods = "pods_local"

// Pods is a block of rows of pods_local, one for each address of a pod. Create it with
// NewPods.
type Pods struct{ rows[podRow] }

type podRow struct {
	*agentv1.Pod
	address  *agentv1.PodAddress
	ip       proto.IPv6
	recorded time.Time
}

// NewPods returns an empty block.
func NewPods() *Pods {
	b := &Pods{}
	r := &b.rows
	declare(r, "cluster", words(), func(r *podRow) string { return r.Cluster })
	declare(r, "ip", new(proto.ColIPv6), func(r *podRow) proto.IPv6 { return r.ip })
	declare(r, "uid", new(proto.ColStr), func(r *podRow) string { return r.Uid })
	declare(r, "pod", new(proto.ColStr), func(r *podRow) string { return r.Name })
	declare(r, "namespace", words(), func(r *podRow) string { return r.Namespace })
	declare(r, "node", words(), func(r *podRow) string { return r.Node })
	declare(r, "workload", words(), func(r *podRow) string { return r.Workload })
	declare(r, "workload_kind", words(), func(r *podRow) string { return r.WorkloadKind })
	declare(r, "host_network", new(proto.ColBool), func(r *podRow) bool { return r.HostNetwork })
	declare(r, "valid_from", moments(), func(r *podRow) time.Time { return moment(r.address.ValidFromUnixNano) })
	declare(r, "valid_to", moments(), func(r *podRow) time.Time { return end(r.address.ValidToUnixNano) })
	declare(r, "seen", moments(), func(r *podRow) time.Time { return moment(r.SeenTimeUnixNano) })
	declare(r, "recorded", moments(), func(r *podRow) time.Time { return r.recorded })
	return b
}

// Append adds the rows of a pod whose record was written at recorded.
func (b *Pods) Append(p *agentv1.Pod, recorded time.Time) {
	for _, a := range p.Addresses {
		if ip, ok := ipv6(a.Address); ok {
			b.append(&podRow{Pod: p, address: a, ip: ip, recorded: recorded})
		}
	}
}
