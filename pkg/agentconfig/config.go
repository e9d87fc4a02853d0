package agentconfig

import (
	"net/netip"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/cors"
)

// Config is a complete configuration: every key has a value. Its fields are
// named after the keys; Catalogue describes them.
type Config struct {
	Integration Integration // inputs.integration
	Spool       Spool       // outputs.spool
	Limits      Limits      // outputs.limits
	Flow        Flow        // inputs.flow
}

// Integration configures how an agent receives data from other programs.
type Integration struct {
	// Enabled: Whether the agent takes data from other programs, on the
	// ports below.
	Enabled bool
	// ListenPort: Port of OTLP/HTTP on every agent: POST /v1/traces and
	// /api/v1/otel/trace. 0 closes it.
	ListenPort int
	// GRPCPort: Port of OTLP/gRPC on every agent, usually 4317. 0 closes
	// it.
	GRPCPort int
	// MaxRequestBytes: Largest request after decompression; a larger one is
	// rejected. Agents hold a request in memory, so a large limit takes
	// memory from the host.
	MaxRequestBytes int64
	// CORSAllowedOrigins: Origins of web pages that may send traces over
	// OTLP/HTTP, such as https://app.example.com, https://*.example.com for
	// its subdomains, or '*' in quotes for every page. An empty list
	// rejects all web pages.
	CORSAllowedOrigins []cors.Origin
	// CORSAllowedHeaders: Headers that those pages may send besides
	// Content-Type and Content-Encoding, such as X-Api-Key.
	CORSAllowedHeaders []cors.Header
	Compression        Compression
	FeatureControl     FeatureControl
}

// Compression selects what an agent compresses on the way to the server.
type Compression struct {
	// Trace: Whether traces are compressed on the way to the server. It
	// saves network and costs CPU on the host.
	Trace bool
}

// FeatureControl turns off kinds of data.
type FeatureControl struct {
	// TraceIntegrationDisabled: Whether agents reject traces, with an error
	// that names this key, while the ports stay open.
	TraceIntegrationDisabled bool
}

// Spool configures what an agent keeps on disk while no server accepts it.
type Spool struct {
	// MaxBytes: Disk space of each agent for requests that no server
	// accepts. When it is full, senders are asked to retry later.
	MaxBytes int64
	// DrainBytesPerSecond: Rate at which each agent sends spooled requests
	// once a server accepts them again, in addition to live traffic.
	DrainBytesPerSecond int64
}

// Limits bound what a server accepts of all agents of a group together.
type Limits struct {
	// SpansPerSecond: Spans per second that each server accepts from all
	// agents of the group together; 0 means no limit. Servers ask agents to
	// send the rest later, so it waits in their spools.
	SpansPerSecond int64
	// BytesPerSecond: Bytes of spans and flow data per second that each
	// server accepts from all agents of the group together, before
	// compression; 0 means no limit.
	BytesPerSecond int64
}

// Flow configures how an agent observes TCP connections.
type Flow struct {
	// Enabled: Whether the agent observes the TCP connections of its host.
	Enabled bool
	// DumpInterval: Interval between dumps of all connections. A shorter
	// interval sees more of short connections and costs CPU on the host.
	DumpInterval time.Duration
	// ReportInterval: Interval between rows of a living connection. A
	// shorter interval makes more rows.
	ReportInterval time.Duration
	// ExcludeCIDRs: Connections with a local or peer address in one of
	// these networks are not observed. The default excludes connections of
	// a host to itself.
	ExcludeCIDRs []netip.Prefix
	// ExcludePorts: Connections with a local or peer port in one of these
	// ranges are not observed.
	ExcludePorts []PortRange
	// DNSEnabled: Whether the agent also observes DNS over UDP: the packets
	// of port 53, which a filter in the kernel selects, and no others. The
	// kernel runs the filter for every packet.
	DNSEnabled bool
	// ConntrackEnabled: Whether the agent reads from the kernel's
	// connection tracking how addresses of connections are translated. The
	// kernel then reports every new connection to a filter, which passes
	// the translated ones.
	ConntrackEnabled bool
}

// PortRange holds the ports from First to Last, both included.
type PortRange struct{ First, Last uint16 }

// Contains reports whether port is in the range.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

// Default returns the configuration of an agent whose group sets nothing.
func Default() Config {
	return Config{
		Integration: Integration{
			// Collectors that were set up for the predecessor send to 38086.
			ListenPort: 38086,
			// Four times the default maximum of a collector, 8192 spans of 2
			// KiB.
			MaxRequestBytes: 64 << 20,
		},
		Spool: Spool{
			MaxBytes: 1 << 30,
			// Empties a full spool in a minute, at a load that the server can
			// take in addition to live traffic.
			DrainBytesPerSecond: 16 << 20,
		},
		Flow: Flow{
			DumpInterval: 5 * time.Second, ReportInterval: time.Minute,
			DNSEnabled: true, ConntrackEnabled: true,
			ExcludeCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		},
	}
}
