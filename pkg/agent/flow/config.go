package flow

import (
	"net/netip"
	"slices"
	"time"
)

// PortRange holds the ports from First to Last, both included.
type PortRange struct{ First, Last uint16 }

// Config controls what a Table reports and how much it remembers.
type Config struct {
	// ReportInterval is the time between two rows of a living connection. It is
	// checked at the end of each dump.
	ReportInterval time.Duration
	// Exclude drops connections with either end inside one of these networks.
	// ExcludePorts drops those with one of these ports at either end.
	Exclude      []netip.Prefix
	ExcludePorts []PortRange
	// ExcludeLoopback drops connections of a host or pod with itself over
	// loopback addresses.
	ExcludeLoopback bool
	// Describe returns what is known of the ends of a connection. The table asks
	// when it first sees the connection, and again with each row until something
	// is known. nil knows nothing.
	Describe func(namespace uint64, local, peer netip.AddrPort) Description
	// MaxConnections bounds the connections remembered over all namespaces, at
	// about 500 bytes each. Connections beyond it are reported when they end,
	// not before. 0 means 65,536.
	MaxConnections int
	// MaxRows bounds the rows that wait for Take. At the bound, rows of living
	// connections are delayed, which loses nothing, and rows of ended
	// connections are dropped and counted. 0 means 65,536.
	MaxRows int
}

// Description is what other sources know of a connection. Empty fields are
// unknown.
type Description struct {
	// PeerName is the name that the namespace resolved to the peer's address.
	PeerName string
	// Translated is the local end as the peer sees it, TranslatedPeer the peer
	// behind a translated address.
	Translated, TranslatedPeer netip.AddrPort
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

// Excludes reports whether a connection between these ends is dropped.
func (c *Config) Excludes(local, peer netip.AddrPort) bool {
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

// unmapPrefixes returns a copy of networks in which v4-mapped prefixes are
// IPv4, because the addresses they are compared with are never v4-mapped.
func unmapPrefixes(networks []netip.Prefix) []netip.Prefix {
	const mappedBits = 96 // bits of a mapped address before those of IPv4
	networks = slices.Clone(networks)
	for i, p := range networks {
		if p.Addr().Is4In6() && p.Bits() >= mappedBits {
			networks[i] = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mappedBits)
		}
	}
	return networks
}

func in(port uint16, r PortRange) bool {
	return r.First <= port && port <= r.Last && port != 0
}

// sameExclusions reports whether c and o list the same exclusions in the same
// order.
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
