package control

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// The addresses of an agent at one replica count at all of them, as long as the agent is
// alive.
func TestAgentHosts(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	registration := &agentv1.Registration{AgentId: "one", InstanceId: "i", Name: "one", Addresses: []string{"10.0.0.1", "2001:db8::1"}}
	tests := map[string]struct {
		session string // the peer of a stream to this replica
		status  *agentv1.AgentStatus
		want    []string
	}{
		"unknown agent":               {"", nil, nil},
		"a stream to this replica":    {"[::ffff:192.0.2.7]:4000", nil, []string{"192.0.2.7", "10.0.0.1", "2001:db8::1"}},
		"a stream to another one":     {"", &agentv1.AgentStatus{Peer: "192.0.2.8:1", Replica: "far", SeenTimeUnixNano: uint64(now.UnixNano())}, []string{"192.0.2.8", "10.0.0.1", "2001:db8::1"}},
		"a stream that has ended":     {"", &agentv1.AgentStatus{Peer: "192.0.2.8:1", SeenTimeUnixNano: uint64(now.UnixNano())}, nil},
		"lost":                        {"", &agentv1.AgentStatus{Peer: "192.0.2.8:1", Replica: "far", SeenTimeUnixNano: uint64(now.Add(-time.Hour).UnixNano())}, nil},
		"through a proxy":             {"@", nil, nil},
		"this replica's session wins": {"192.0.2.7:1", &agentv1.AgentStatus{Peer: "192.0.2.8:1", Replica: "far", SeenTimeUnixNano: uint64(now.UnixNano())}, []string{"192.0.2.7", "10.0.0.1", "2001:db8::1"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := New(DefaultConfig(), Options{Replica: "near", Now: func() time.Time { return now }})
			if err != nil {
				t.Fatal(err)
			}
			if tc.session != "" {
				c.sessions["one"] = &session{peer: tc.session, registration: registration}
			}
			if tc.status != nil {
				tc.status.Registration = registration
				c.state.Observe([]byte(schema.KeyAgent+"one"), tc.status)
			}
			var want []netip.Addr
			for _, a := range tc.want {
				want = append(want, netip.MustParseAddr(a))
			}
			if got := c.AgentHosts("one"); !slices.Equal(got, want) {
				t.Errorf("%s", cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })))
			}
		})
	}
}
