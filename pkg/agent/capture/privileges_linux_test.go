package capture

import (
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/agent/netns"
)

// Every source answers with what it found or with what is missing; listing one's
// own connections needs no privilege.
func TestSources(t *testing.T) {
	names := map[string]bool{}
	for _, s := range Sources(netns.Options{}) {
		names[s.Name] = true
		if s.Err == nil && s.Detail == "" {
			t.Errorf("source %+v", s)
		}
		if s.Name == "netlink" && s.Err != nil {
			t.Errorf("netlink: %v", s.Err)
		}
	}
	for _, name := range []string{"netlink", "namespaces", "conntrack", "packet"} {
		if !names[name] {
			t.Errorf("source %s is missing", name)
		}
	}
}
