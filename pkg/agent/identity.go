package agent

import (
	"crypto/rand"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Identity identifies an agent.
type Identity struct {
	ID        string   // unique to the agent and stable over restarts
	Instance  string   // unique to this run of the program
	Name      string   // the name that operators see
	Host      string   // the kernel's host name
	Addresses []string // addresses of the host, without loopback and link-local ones
	Cluster   string   // Kubernetes cluster; empty on plain hosts
	Group     string   // agent group by id or name; empty is the group "default"
}

// Complete fills empty fields from the machine, except Cluster and Group.
func (id Identity) Complete() (Identity, error) {
	var err error
	if id.Host, err = os.Hostname(); err != nil {
		return id, err
	}
	if id.Name == "" {
		id.Name = id.Host
	}
	if id.ID == "" {
		id.ID = derivedID(id.Cluster, id.Name, machineID())
	}
	id.Instance = rand.Text()
	id.Addresses, err = hostAddresses()
	return id, err
}

// Registration returns what the agent tells a server about itself.
func (id Identity) Registration(version string) *agentv1.Registration {
	return &agentv1.Registration{
		AgentId: id.ID, InstanceId: id.Instance, Name: id.Name, Host: id.Host, Addresses: id.Addresses,
		Version: version, Cluster: id.Cluster, Group: id.Group, StartTimeUnixNano: uint64(time.Now().UnixNano()),
	}
}

// derivedID hashes its arguments, so that restarts keep the id without a file.
// The machine's id distinguishes two hosts of one name. In a container it
// cannot be read, but there the cluster and the node's name are unique.
func derivedID(cluster, name, machine string) string {
	h := xxh3.HashString128(cluster + "\x00" + name + "\x00" + machine).Bytes()
	return hex.EncodeToString(h[:8])
}

// machineID returns the id that systemd or D-Bus assigned to the host's
// installation, or "".
func machineID() string {
	for _, name := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		if text, err := os.ReadFile(name); err == nil {
			return strings.TrimSpace(string(text))
		}
	}
	return ""
}

// ownAddress returns the address of this host that other hosts see: the local
// address of the route to a server or, if that is loopback because the server is
// on this host, of the default route, or else the first address of an interface.
// It sends nothing. It returns the zero Addr if the host has no such address.
func ownAddress(server string, addresses []string) netip.Addr {
	// 192.0.2.1 and 2001:db8::1 are for documentation and belong to nobody.
	for _, to := range []string{server, "192.0.2.1:9", "[2001:db8::1]:9"} {
		if local := outboundAddress(to); local.IsValid() && !local.IsLoopback() {
			return local
		}
	}
	for _, text := range addresses {
		if a, err := netip.ParseAddr(text); err == nil {
			return a
		}
	}
	return netip.Addr{}
}

// outboundAddress returns the local address of the route to an address, or the
// zero Addr. It sends nothing.
func outboundAddress(to string) netip.Addr {
	conn, err := net.Dial("udp", to) //nolint:noctx // resolves a name at most; connecting UDP sends nothing
	if err != nil {
		return netip.Addr{}
	}
	defer func() { _ = conn.Close() }()
	local, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}
	}
	return local.AddrPort().Addr().Unmap()
}

func hostAddresses() ([]string, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			found = append(found, n.IP.String())
		}
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}
