package capture

import (
	"errors"
	"fmt"

	"github.com/metaflowys/metaflow-server/pkg/agent/conntrack"
	"github.com/metaflowys/metaflow-server/pkg/agent/flow"
	"github.com/metaflowys/metaflow-server/pkg/agent/netns"
	"github.com/metaflowys/metaflow-server/pkg/agent/packet"
	"github.com/metaflowys/metaflow-server/pkg/agent/sockdiag"
)

// Exceptions about one source of flow data.
const (
	dnsException     = "Flow data lacks DNS and the names of peers: reading packets of port 53 needs the capability CAP_NET_RAW (securityContext.capabilities.add: [NET_RAW], or AmbientCapabilities of the systemd unit); inputs.flow.dns_enabled turns it off."
	trackedException = "Flow data lacks translated addresses (services, masqueraded connections): reading connection tracking needs the capability CAP_NET_ADMIN; inputs.flow.conntrack_enabled turns it off."
)

// Source is a source of flow data.
type Source struct {
	Name   string
	Detail string // what was found, if Err is nil
	Err    error  // what flow data lacks, and which privilege is missing
}

// sentence is an error for an operator.
type sentence string

func (s sentence) Error() string { return string(s) }

// Sources tries every source of flow data once with the privileges of this
// process. It watches nothing.
func Sources(opts netns.Options) []Source {
	list := []Source{connections(), namespaces(opts)}
	tracking, err := conntrack.Open(trackedBuffer)
	switch {
	case err == nil:
		tracking.Close()
		list = append(list, Source{Name: "conntrack", Detail: "translated addresses can be read"})
	case errors.Is(err, conntrack.ErrAbsent):
		list = append(list, Source{Name: "conntrack", Detail: "this host translates no addresses"})
	case errors.Is(err, conntrack.ErrPermission):
		list = append(list, Source{Name: "conntrack", Err: sentence(trackedException)})
	default:
		list = append(list, Source{Name: "conntrack", Err: err})
	}
	packets, err := packet.Open(defaultReceiveBuffer)
	switch {
	case err == nil:
		packets.Close()
		list = append(list, Source{Name: "packet", Detail: "DNS can be read"})
	case errors.Is(err, packet.ErrPermission):
		list = append(list, Source{Name: "packet", Err: sentence(dnsException)})
	default:
		list = append(list, Source{Name: "packet", Err: err})
	}
	return list
}

// connections lists the connections of this network namespace.
func connections() Source {
	found := Source{Name: "netlink"}
	conn, err := sockdiag.Open()
	if err != nil {
		found.Err = err
		return found
	}
	defer conn.Close()
	n := 0
	found.Err = conn.Dump(sockdiag.NewBuffer(), sockdiag.Set(flow.StateEstablished), func(*flow.Socket) { n++ })
	found.Detail = fmt.Sprintf("%d open TCP connections in the agent's network namespace", n)
	return found
}

// namespaces enters every network namespace that the process can see.
func namespaces(opts netns.Options) Source {
	result := Source{Name: "namespaces"}
	list, missing, err := netns.NewScanner(opts).Scan()
	if err != nil {
		result.Err = err
		return result
	}
	for _, m := range missing {
		result.Err = errors.Join(result.Err, sentence(m.Hint()))
	}
	entered := 0
	for i := range list {
		err := netns.Do(list[i], func() error { return nil })
		var lacking *netns.MissingError
		switch {
		case err == nil:
			entered++
		case errors.As(err, &lacking):
			result.Err = errors.Join(result.Err, sentence(lacking.Hint()))
			return result
		}
	}
	result.Detail = fmt.Sprintf("%d network namespaces", entered)
	return result
}
