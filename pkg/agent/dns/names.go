package dns

import (
	"net/netip"
	"time"
)

const (
	// nameGrace is how long a name stays valid after its TTL: clients keep
	// addresses for longer than they should.
	nameGrace = 10 * time.Minute
	// maxTTL bounds the TTL that is believed.
	maxTTL = 24 * time.Hour
	// maxNames bounds the addresses remembered over all namespaces, at about 120
	// bytes each with their names; maxNamesPerSpace those of one namespace.
	maxNames         = 65536
	maxNamesPerSpace = 8192
)

// resolved is the name that an address was last resolved from.
type resolved struct {
	name  string
	until int64
}

// learn remembers the name of the addresses in an answer. When a namespace has
// too many addresses, some other one is forgotten.
func (t *Table) learn(sp *space, p *Packet) {
	m := &p.Message
	until := p.Time + int64(min(time.Duration(m.TTL)*time.Second, maxTTL)+nameGrace)
	for _, a := range m.Addresses {
		if _, known := sp.names[a]; !known {
			if len(sp.names) >= maxNamesPerSpace || t.stats.Names >= maxNames && len(sp.names) > 0 {
				for old := range sp.names {
					delete(sp.names, old)
					t.stats.Names--
					t.stats.ForgottenNames++
					break
				}
			}
			if t.stats.Names >= maxNames {
				t.stats.ForgottenNames++
				continue
			}
			t.stats.Names++
		}
		sp.names[a] = resolved{m.Name, until}
	}
}

// Name returns the name that the namespace last resolved to an address, or "".
func (t *Table) Name(now time.Time, namespace uint64, a netip.Addr) string {
	sp := t.spaces[namespace]
	if sp == nil {
		return ""
	}
	if n := sp.names[a]; n.until >= now.UnixNano() {
		return n.name
	}
	return ""
}

// expireNames forgets names that are no longer valid.
func (t *Table) expireNames(sp *space, now int64) {
	for a, n := range sp.names {
		if n.until < now {
			delete(sp.names, a)
			t.stats.Names--
		}
	}
}
