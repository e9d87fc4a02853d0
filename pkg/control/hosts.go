package control

import (
	"net/netip"

	"github.com/metaflowys/metaflow-server/pkg/control/fleet"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// AgentHosts returns the addresses that an agent with a stream to any replica may speak from: the one
// that its stream comes from, and those that it registered. It is nothing when there is no
// such agent, and never blocks.
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
		return nil // somebody in front of us hides where agents are
	}
	hosts := []netip.Addr{stream.Addr().Unmap()}
	for _, text := range registration.GetAddresses() {
		if a, err := netip.ParseAddr(text); err == nil {
			hosts = append(hosts, a.Unmap())
		}
	}
	return hosts
}
