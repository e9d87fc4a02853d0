package columns

import (
	"time"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// TableServices is the table of Services.
const TableServices = "services_local"

// Services is a block of rows of services_local, one for each address of a service.
// Create it with NewServices.
type Services struct{ rows[serviceRow] }

type serviceRow struct {
	*agentv1.Service
	ip        proto.IPv6
	ports     []uint16
	endpoints []proto.IPv6
	recorded  time.Time
}

// NewServices returns an empty block.
func NewServices() *Services {
	b := &Services{}
	r := &b.rows
	declare(r, "cluster", words(), func(r *serviceRow) string { return r.Cluster })
	declare(r, "ip", new(proto.ColIPv6), func(r *serviceRow) proto.IPv6 { return r.ip })
	declare(r, "namespace", words(), func(r *serviceRow) string { return r.Namespace })
	declare(r, "service", new(proto.ColStr), func(r *serviceRow) string { return r.Name })
	declare(r, "ports", new(proto.ColUInt16).Array(), func(r *serviceRow) []uint16 { return r.ports })
	declare(r, "endpoints", new(proto.ColIPv6).Array(), func(r *serviceRow) []proto.IPv6 { return r.endpoints })
	declare(r, "endpoint_count", new(proto.ColUInt32), func(r *serviceRow) uint32 { return r.EndpointCount })
	declare(r, "valid_from", moments(), func(r *serviceRow) time.Time { return moment(r.StartTimeUnixNano) })
	declare(r, "valid_to", moments(), func(r *serviceRow) time.Time { return end(r.EndTimeUnixNano) })
	declare(r, "seen", moments(), func(r *serviceRow) time.Time { return moment(r.SeenTimeUnixNano) })
	declare(r, "recorded", moments(), func(r *serviceRow) time.Time { return r.recorded })
	return b
}

// Append adds the rows of a service whose record was written at recorded.
func (b *Services) Append(s *agentv1.Service, recorded time.Time) {
	row := serviceRow{Service: s, endpoints: ipv6s(s.Endpoints), recorded: recorded}
	for _, p := range s.Ports {
		row.ports = append(row.ports, uint16(p.Port))
	}
	for _, ip := range ipv6s(s.Addresses) {
		row.ip = ip
		b.append(&row)
	}
}
