package agent

import (
	"crypto/rand"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/zeebo/xxh3"
)

// Identity is who an agent is.
type Identity struct {
	ID        string   // the same over restarts, and of no other agent
	Instance  string   // of this start of the program
	Name      string   // what operators call it
	Host      string   // the kernel's host name
	Addresses []string // of the host, loopback and link-local ones left out
	Cluster   string   // Kubernetes cluster; empty on plain hosts
	Group     string   // agent group by id or name; empty is the group "default"
}

// Complete fills in from the machine what is still empty; Cluster and Group stay.
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

// derivedID is the same as long as its three parts are: a restart keeps it, and
// needs no file for that. Two hosts of one name differ by the machine's id; where that
// cannot be read (in a container), the cluster and the node's name are unique.
func derivedID(cluster, name, machine string) string {
	h := xxh3.HashString128(cluster + "\x00" + name + "\x00" + machine).Bytes()
	return hex.EncodeToString(h[:8])
}

// machineID is the id that systemd or dbus gave to the installation of the host.
func machineID() string {
	for _, name := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		if text, err := os.ReadFile(name); err == nil {
			return strings.TrimSpace(string(text))
		}
	}
	return ""
}

// outboundAddress is the address by which this host reaches a server: what others
// see of it. It sends nothing. The zero Addr means that it cannot be told.
func outboundAddress(server string) netip.Addr {
	conn, err := net.Dial("udp", server) //nolint:noctx // resolves a name at most; connecting UDP sends nothing
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
