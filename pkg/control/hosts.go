package control

import (
	"net/netip"

	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// AgentHosts returns the addresses that an agent with a stream to any replica may send
// from: the peer of its stream and those that it registered. It returns nil if there is
// no such agent. It never blocks on I/O.
func (c *Control) AgentHosts(id string) []netip.Addr {
	c.mu.Lock()
	var peer string
	var registration *agentv1.Registration
	if s := c.sessions[id]; s != nil {
		peer, registration = s.peer, s.registration
	} else if status := c.state.Status(id); fleet.Alive(status, c.opts.Now()) {
		peer, registration = status.Peer, status.Registration
	}
	c.mu.Unlock()
	stream, err := netip.ParseAddrPort(peer)
	if err != nil {
		return nil // a proxy hides the agents' addresses
	}
	hosts := []netip.Addr{stream.Addr().Unmap()}
	for _, text := range registration.GetAddresses() {
		if a, err := netip.ParseAddr(text); err == nil {
			hosts = append(hosts, a.Unmap())
		}
	}
	return hosts
}
