package flow

import (
	"net/netip"
	"slices"
	"time"
)

// PortRange is the ports from First to Last, both included.
type PortRange struct{ First, Last uint16 }

// Config says what a Table reports and how much it remembers.
type Config struct {
	// ReportInterval is how often a living connection is reported. It is looked at with each dump.
	ReportInterval time.Duration
	// Exclude leaves out connections with an end within one of these networks, and ExcludePorts those
	// with a port of theirs at either end.
	Exclude      []netip.Prefix
	ExcludePorts []PortRange
	// ExcludeLoopback leaves out connections of a host, or pod, with itself over loopback addresses.
	ExcludeLoopback bool
	// MaxConnections bounds the connections that are remembered, of all namespaces together; about 400
	// bytes each. Those beyond it are reported when they end, not before. 0 is 65,536.
	MaxConnections int
	// MaxRows bounds the rows that wait for Take. When they are that many, living connections are not
	// reported, which loses nothing, and the rows of those that ended are dropped. 0
	// is 65,536.
	MaxRows int
}

const (
	defaultMaxConnections = 65536
	defaultMaxRows        = 65536
)

func (c Config) maxConnections() int {
	if c.MaxConnections <= 0 {
		return defaultMaxConnections
	}
	return c.MaxConnections
}

func (c Config) maxRows() int {
	if c.MaxRows <= 0 {
		return defaultMaxRows
	}
	return c.MaxRows
}

// excludes reports whether connections between these ends are left out.
func (c *Config) excludes(local, peer netip.AddrPort) bool {
	if c.ExcludeLoopback && peer.Addr().IsLoopback() {
		return true
	}
	for _, r := range c.ExcludePorts {
		if in(local.Port(), r) || in(peer.Port(), r) {
			return true
		}
	}
	for _, p := range c.Exclude {
		if p.Contains(local.Addr()) || p.Contains(peer.Addr()) {
			return true
		}
	}
	return false
}

// unmapPrefixes returns the networks as the addresses that they are compared with: never v4-mapped.
func unmapPrefixes(networks []netip.Prefix) []netip.Prefix {
	const before = 96 // bits of a mapped address before those of IPv4
	networks = slices.Clone(networks)
	for i, p := range networks {
		if p.Addr().Is4In6() && p.Bits() >= before {
			networks[i] = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-before)
		}
	}
	return networks
}

func in(port uint16, r PortRange) bool {
	return r.First <= port && port <= r.Last && port != 0
}

// sameExclusions reports whether both leave out the same, as far as can be seen at a glance.
func (c *Config) sameExclusions(o *Config) bool {
	if c.ExcludeLoopback != o.ExcludeLoopback || len(c.Exclude) != len(o.Exclude) || len(c.ExcludePorts) != len(o.ExcludePorts) {
		return false
	}
	for i := range c.Exclude {
		if c.Exclude[i] != o.Exclude[i] {
			return false
		}
	}
	for i := range c.ExcludePorts {
		if c.ExcludePorts[i] != o.ExcludePorts[i] {
			return false
		}
	}
	return true
}
