package columns

import (
	"net/netip"
	"time"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// TableAgents is the table of Agents.
const TableAgents = "agents_local"

// Agents is a block of rows of agents_local. Create it with NewAgents.
type Agents struct{ rows[agentRow] }

type agentRow struct {
	id           string
	status       *agentv1.AgentStatus // nil if the agent was deleted
	registration *agentv1.Registration
	heartbeat    *agentv1.Heartbeat
	addresses    []proto.IPv6
	recorded     time.Time
}

// NewAgents returns an empty block.
func NewAgents() *Agents {
	b := &Agents{}
	r := &b.rows
	declare(r, "agent_id", new(proto.ColStr), func(r *agentRow) string { return r.id })
	declare(r, "name", new(proto.ColStr), func(r *agentRow) string { return r.registration.GetName() })
	declare(r, "host", new(proto.ColStr), func(r *agentRow) string { return r.registration.GetHost() })
	declare(r, "addresses", new(proto.ColIPv6).Array(), func(r *agentRow) []proto.IPv6 { return r.addresses })
	declare(r, "agent_version", words(), func(r *agentRow) string { return r.registration.GetVersion() })
	declare(r, "cluster", words(), func(r *agentRow) string { return r.registration.GetCluster() })
	declare(r, "group_id", words(), func(r *agentRow) string { return r.status.GetGroupId() })
	declare(r, "revision", new(proto.ColUInt64), func(r *agentRow) uint64 { return r.heartbeat.GetRevision() })
	declare(r, "exceptions", new(proto.ColStr).Array(), func(r *agentRow) []string { return r.heartbeat.GetExceptions() })
	declare(r, "started", moments(), func(r *agentRow) time.Time { return moment(r.registration.GetStartTimeUnixNano()) })
	declare(r, "seen", moments(), func(r *agentRow) time.Time { return moment(r.status.GetSeenTimeUnixNano()) })
	declare(r, "connected", new(proto.ColBool), func(r *agentRow) bool { return r.status.GetReplica() != "" })
	declare(r, "deleted", new(proto.ColBool), func(r *agentRow) bool { return r.status == nil })
	declare(r, "recorded", moments(), func(r *agentRow) time.Time { return r.recorded })
	return b
}

// Append adds the row of an agent whose record was written at recorded. A nil status
// means that the agent was deleted.
func (b *Agents) Append(id string, status *agentv1.AgentStatus, recorded time.Time) {
	row := agentRow{id: id, status: status, registration: status.GetRegistration(), heartbeat: status.GetHeartbeat(), recorded: recorded}
	for _, text := range row.registration.GetAddresses() {
		if a, err := netip.ParseAddr(text); err == nil {
			row.addresses = append(row.addresses, proto.IPv6(a.As16()))
		}
	}
	b.append(&row)
}
