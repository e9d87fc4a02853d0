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
	Enabled            bool
	ListenPort         int // 0 is not listening
	GRPCPort           int // 0 is not listening
	MaxRequestBytes    int64
	CORSAllowedOrigins []cors.Origin
	CORSAllowedHeaders []cors.Header
	Compression        Compression
	FeatureControl     FeatureControl
}

// Compression is what an agent compresses on the way to the server.
type Compression struct {
	Trace bool
}

// FeatureControl switches off what an agent takes.
type FeatureControl struct {
	TraceIntegrationDisabled bool
}

// Spool is what an agent keeps on disk while no server takes it.
type Spool struct {
	MaxBytes            int64
	DrainBytesPerSecond int64
}

// Flow is what an agent observes of TCP connections.
type Flow struct {
	Enabled        bool
	DumpInterval   time.Duration
	ReportInterval time.Duration
	ExcludeCIDRs   []netip.Prefix
	ExcludePorts   []PortRange
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
