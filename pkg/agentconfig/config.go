package agentconfig

import (
	"net/netip"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/cors"
)

// Config is the configuration in force: every key has a value. Its fields are named as
// the keys are; Catalogue tells their meaning.
type Config struct {
	Integration Integration // inputs.integration
	Spool       Spool       // outputs.spool
	Flow        Flow        // inputs.flow
}

// Integration is how an agent takes data from other programs.
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
	// refused. Agents hold a request in memory, so a large limit takes
	// memory from the host.
	MaxRequestBytes int64
	// CORSAllowedOrigins: Origins of web pages that may send traces over
	// OTLP/HTTP, such as https://app.example.com, https://*.example.com for
	// its subdomains, or '*' in quotes for every page. None refuses all web
	// pages.
	CORSAllowedOrigins []cors.Origin
	// CORSAllowedHeaders: Headers that those pages may send besides
	// Content-Type and Content-Encoding, such as X-Api-Key.
	CORSAllowedHeaders []cors.Header
	Compression        Compression
	FeatureControl     FeatureControl
}

// Compression is what an agent compresses on the way to the server.
type Compression struct {
	// Trace: Whether traces are compressed on the way to the server. It
	// saves network and costs CPU on the host.
	Trace bool
}

// FeatureControl switches off what an agent takes.
type FeatureControl struct {
	// TraceIntegrationDisabled: Whether traces are refused, with a status
	// that says so, while the ports stay open.
	TraceIntegrationDisabled bool
}

// Spool is what an agent keeps on disk while no server takes it.
type Spool struct {
	// MaxBytes: Disk that each agent may use to keep what no server takes.
	// When it is full, senders are told to come again later.
	MaxBytes int64
	// DrainBytesPerSecond: How fast each agent sends what it kept once a
	// server takes it again, beside live traffic.
	DrainBytesPerSecond int64
}

// Flow is what an agent observes of TCP connections.
type Flow struct {
	// Enabled: Whether the agent observes the TCP connections of its host.
	Enabled bool
	// DumpInterval: How often all connections are looked at. A shorter
	// interval sees more of short connections and costs CPU on the host.
	DumpInterval time.Duration
	// ReportInterval: How often a living connection is reported. A shorter
	// interval makes more rows.
	ReportInterval time.Duration
	// ExcludeCIDRs: Connections with a local or peer address in one of
	// these networks are not observed. The default leaves out what a host
	// says to itself.
	ExcludeCIDRs []netip.Prefix
	// ExcludePorts: Connections with a local or peer port in one of these
	// ranges are not observed.
	ExcludePorts []PortRange
}

// PortRange is all ports from First to Last, both of them included.
type PortRange struct{ First, Last uint16 }

// Contains says whether port is one of the range.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

// Default returns the configuration of an agent whose group sets nothing.
func Default() Config {
	return Config{
		Integration: Integration{
			// 38086 is where collectors that were set up for the predecessor send to.
			ListenPort: 38086,
			// Four times what a collector sends at most by default: 8192 spans of 2 KiB.
			MaxRequestBytes: 64 << 20,
		},
		Spool: Spool{
			MaxBytes: 1 << 30,
			// A full spool is empty after a minute, at a load that the server bears beside
			// live traffic.
			DrainBytesPerSecond: 16 << 20,
		},
		Flow: Flow{
			DumpInterval: 10 * time.Second, ReportInterval: time.Minute,
			ExcludeCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		},
	}
}
