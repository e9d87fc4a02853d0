package agentconfig

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/cors"
)

// groupKey is the key of the agent group that a text belongs to. It is not a
// setting.
const groupKey = "agent_group_id"

// groupAlias is the predecessor's name of groupKey.
const groupAlias = "vtap_group_id"

// Key describes one setting, for documentation and completion.
type Key struct {
	Name    string   // with its sections, separated by dots
	Aliases []string // names in the predecessor
	Type    string   // for people
	Range   string   // for people; empty if the type implies it
	Default string   // in YAML
	Doc     string   // sentences without a line break
}

// Catalogue returns every setting. Settings of one section are adjacent.
func Catalogue() []Key {
	keys := make([]Key, len(settings))
	for i, s := range settings {
		keys[i] = s.Key
		keys[i].Aliases = slices.Clone(s.Aliases)
	}
	return keys
}

// setting is one key and where its value lies in a Config.
type setting struct {
	Key
	read  func(input) (any, error)
	text  func(any) string  // in YAML, as read accepts it
	at    func(*Config) any // pointer to the field
	store func(*Config, any)
	load  func(*Config) any
}

func newSetting[T any](name string, k kind[T], field func(*Config) *T, doc string, aliases ...string) setting {
	defaults := Default()
	return setting{
		Key:   Key{Name: name, Aliases: aliases, Type: k.name, Range: k.limits, Default: k.text(*field(&defaults)), Doc: doc},
		read:  func(in input) (any, error) { return k.read(in) },
		text:  func(v any) string { return k.text(v.(T)) },
		at:    func(c *Config) any { return field(c) },
		store: func(c *Config, v any) { *field(c) = v.(T) },
		load:  func(c *Config) any { return *field(c) },
	}
}

// settings is the catalogue, in its order.
var settings = []setting{
	newSetting("inputs.integration.enabled", boolean(), func(c *Config) *bool { return &c.Integration.Enabled },
		"Whether the agent takes data from other programs, on the ports below.",
		"external_agent_http_proxy_enabled"),
	newSetting("inputs.integration.listen_port", port(), func(c *Config) *int { return &c.Integration.ListenPort },
		"Port of OTLP/HTTP on every agent: POST /v1/traces and /api/v1/otel/trace. 0 closes it.",
		"external_agent_http_proxy_port"),
	newSetting("inputs.integration.grpc_port", port(), func(c *Config) *int { return &c.Integration.GRPCPort },
		"Port of OTLP/gRPC on every agent, usually 4317. 0 closes it."),
	newSetting("inputs.integration.max_request_bytes", size(64<<10, 512<<20), func(c *Config) *int64 { return &c.Integration.MaxRequestBytes },
		"Largest request after decompression; a larger one is rejected. Agents hold a request in memory, so a large limit takes memory from the host."),
	newSetting("inputs.integration.cors_allowed_origins", list(origin()), func(c *Config) *[]cors.Origin { return &c.Integration.CORSAllowedOrigins },
		"Origins of web pages that may send traces over OTLP/HTTP, such as https://app.example.com, https://*.example.com for its subdomains, or '*' in quotes for every page. An empty list rejects all web pages."),
	newSetting("inputs.integration.cors_allowed_headers", list(header()), func(c *Config) *[]cors.Header { return &c.Integration.CORSAllowedHeaders },
		"Headers that those pages may send besides Content-Type and Content-Encoding, such as X-Api-Key."),
	newSetting("inputs.integration.compression.trace", boolean(), func(c *Config) *bool { return &c.Integration.Compression.Trace },
		"Whether traces are compressed on the way to the server. It saves network and costs CPU on the host.",
		"static_config.external-agent-http-proxy-compressed"),
	newSetting("inputs.integration.feature_control.trace_integration_disabled", boolean(),
		func(c *Config) *bool { return &c.Integration.FeatureControl.TraceIntegrationDisabled },
		"Whether agents reject traces, with an error that names this key, while the ports stay open.",
		"static_config.external-trace-integration-disabled"),
	newSetting("inputs.flow.enabled", boolean(), func(c *Config) *bool { return &c.Flow.Enabled },
		"Whether the agent observes the TCP connections of its host."),
	newSetting("inputs.flow.dump_interval", duration(time.Second, 5*time.Minute), func(c *Config) *time.Duration { return &c.Flow.DumpInterval },
		"Interval between dumps of all connections. A shorter interval sees more of short connections and costs CPU on the host."),
	newSetting("inputs.flow.report_interval", duration(10*time.Second, 10*time.Minute), func(c *Config) *time.Duration { return &c.Flow.ReportInterval },
		"Interval between rows of a living connection. A shorter interval makes more rows."),
	newSetting("inputs.flow.exclude_cidrs", list(cidr()), func(c *Config) *[]netip.Prefix { return &c.Flow.ExcludeCIDRs },
		"Connections with a local or peer address in one of these networks are not observed. The default excludes connections of a host to itself."),
	newSetting("inputs.flow.exclude_ports", list(portRange()), func(c *Config) *[]PortRange { return &c.Flow.ExcludePorts },
		"Connections with a local or peer port in one of these ranges are not observed."),
	newSetting("inputs.flow.dns_enabled", boolean(), func(c *Config) *bool { return &c.Flow.DNSEnabled },
		"Whether the agent also observes DNS over UDP: the packets of port 53, which a filter in the kernel selects, and no others. The kernel runs the filter for every packet."),
	newSetting("inputs.flow.conntrack_enabled", boolean(), func(c *Config) *bool { return &c.Flow.ConntrackEnabled },
		"Whether the agent reads from the kernel's connection tracking how addresses of connections are translated. The kernel then reports every new connection to a filter, which passes the translated ones."),
	newSetting("outputs.spool.max_bytes", size(1<<20, 1<<40), func(c *Config) *int64 { return &c.Spool.MaxBytes },
		"Disk space of each agent for requests that no server accepts. When it is full, senders are asked to retry later."),
	newSetting("outputs.spool.drain_bytes_per_second", size(64<<10, 10<<30), func(c *Config) *int64 { return &c.Spool.DrainBytesPerSecond },
		"Rate at which each agent sends spooled requests once a server accepts them again, in addition to live traffic."),
	newSetting("outputs.limits.spans_per_second", count(1e9), func(c *Config) *int64 { return &c.Limits.SpansPerSecond },
		"Spans per second that each server accepts from all agents of the group together; 0 means no limit. Servers ask agents to send the rest later, so it waits in their spools."),
	newSetting("outputs.limits.bytes_per_second", size(0, 1<<40), func(c *Config) *int64 { return &c.Limits.BytesPerSecond },
		"Bytes of spans and flow data per second that each server accepts from all agents of the group together, before compression; 0 means no limit."),
}

// names maps every name of a key to its setting, and the group's names to nil.
var names = func() map[string]*setting {
	m := map[string]*setting{groupKey: nil, groupAlias: nil}
	for i := range settings {
		m[settings[i].Name] = &settings[i]
		for _, alias := range settings[i].Aliases {
			m[alias] = &settings[i]
		}
	}
	return m
}()

// sections holds every section that contains a name of names.
var sections = func() map[string]bool {
	m := map[string]bool{}
	for name := range names {
		for i, c := range name {
			if c == '.' {
				m[name[:i]] = true
			}
		}
	}
	return m
}()

// knownNames are the candidates for a misspelt name.
var knownNames = slices.AppendSeq(slices.Collect(maps.Keys(names)), maps.Keys(sections))
