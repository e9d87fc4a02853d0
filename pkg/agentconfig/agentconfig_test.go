package agentconfig_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/cors"
	"github.com/metaflowys/metaflow-server/pkg/testkit/golden"
)

var update = flag.Bool("update", false, "rewrite golden files")

var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

var compareOrigins = cmp.Comparer(func(a, b cors.Origin) bool { return a == b })

func parse(t *testing.T, text string) agentconfig.Document {
	t.Helper()
	doc, _, err := agentconfig.Parse([]byte(text))
	if err != nil {
		t.Fatalf("parse %q: %v", text, err)
	}
	return doc
}

// integrationGuide is the configuration that the integration guide's commands
// write.
const integrationGuide = `vtap_group_id: ${VTAP_GROUP_ID}
external_agent_http_proxy_enabled: 1
external_agent_http_proxy_port: 38086
`

func TestParse(t *testing.T) {
	tests := map[string]struct {
		text  string
		group string
		want  func(*agentconfig.Config)
	}{
		"nothing":                  {text: ""},
		"only comments":            {text: "# agent_group_id: g-1\n---\n# nothing\n"},
		"a section commented out":  {text: "inputs:\n  integration:\n  #  enabled: true\n"},
		"the integration guide's":  {text: integrationGuide, want: func(c *agentconfig.Config) { c.Integration.Enabled = true }},
		"the group by id":          {text: "agent_group_id: g-abc\n", group: "g-abc"},
		"by the predecessor's key": {text: "vtap_group_id: g-abc", group: "g-abc"},
		"by a variable in quotes":  {text: "agent_group_id: '$GROUP'"},
		"by nothing":               {text: "agent_group_id:\n"},
		"the first generation": {
			text: `external_agent_http_proxy_enabled: true
external_agent_http_proxy_port: 1
static_config:
  external-agent-http-proxy-compressed: 1
  external-trace-integration-disabled: true
`,
			want: func(c *agentconfig.Config) {
				c.Integration = agentconfig.Integration{
					Enabled: true, ListenPort: 1, MaxRequestBytes: c.Integration.MaxRequestBytes,
					Compression: agentconfig.Compression{Trace: true}, FeatureControl: agentconfig.FeatureControl{TraceIntegrationDisabled: true},
				}
			},
		},
		"names with dots": {
			text: "inputs.integration:\n  enabled: true\ninputs.integration.grpc_port: 4317\nstatic_config.external-trace-integration-disabled: true",
			want: func(c *agentconfig.Config) {
				c.Integration.Enabled, c.Integration.GRPCPort = true, 4317
				c.Integration.FeatureControl.TraceIntegrationDisabled = true
			},
		},
		"ports closed": {
			text: "inputs: {integration: {listen_port: 0, grpc_port: 0}}",
			want: func(c *agentconfig.Config) { c.Integration.ListenPort = 0 },
		},
		"sizes": {
			text: "inputs: {integration: {max_request_bytes: 1000000}}\noutputs: {spool: {max_bytes: '1.5 gib', drain_bytes_per_second: 1MB}}",
			want: func(c *agentconfig.Config) {
				c.Integration.MaxRequestBytes, c.Spool.MaxBytes, c.Spool.DrainBytesPerSecond = 1e6, 3<<29, 1e6
			},
		},
		"the edges of ranges": {
			text: "inputs: {integration: {max_request_bytes: 512MiB, listen_port: 65535}, flow: {dump_interval: 1s, report_interval: 10m}}\noutputs: {spool: {max_bytes: 1TiB, drain_bytes_per_second: 64KiB}}",
			want: func(c *agentconfig.Config) {
				c.Integration.MaxRequestBytes, c.Integration.ListenPort = 512<<20, 65535
				c.Flow.DumpInterval, c.Flow.ReportInterval = time.Second, 10*time.Minute
				c.Spool = agentconfig.Spool{MaxBytes: 1 << 40, DrainBytesPerSecond: 64 << 10}
			},
		},
		"lists": {
			text: "inputs:\n  flow:\n    exclude_cidrs:\n    - 10.0.0.0/8\n    - fd00::/8\n    - \"::1/128\"\n    exclude_ports: [22, 8000-8099, '1 - 2']\n",
			want: func(c *agentconfig.Config) {
				c.Flow.ExcludeCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("::1/128")}
				c.Flow.ExcludePorts = []agentconfig.PortRange{{First: 22, Last: 22}, {First: 8000, Last: 8099}, {First: 1, Last: 2}}
			},
		},
		"web pages": {
			text: "inputs: {integration: {cors_allowed_origins: [https://App.example.com, 'https://*.example.com', 'http://[::1]:3000', '*'], cors_allowed_headers: [X-Api-Key, a'b]}}",
			want: func(c *agentconfig.Config) {
				for _, text := range []string{"https://app.example.com", "https://*.example.com", "http://[::1]:3000", "*"} {
					o, _ := cors.ParseOrigin(text)
					c.Integration.CORSAllowedOrigins = append(c.Integration.CORSAllowedOrigins, o)
				}
				c.Integration.CORSAllowedHeaders = []cors.Header{"x-api-key", "a'b"}
			},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			doc, group, err := agentconfig.Parse([]byte(tc.text))
			if err != nil {
				t.Fatal(err)
			}
			want := agentconfig.Default()
			if tc.want != nil {
				tc.want(&want)
			}
			if diff := cmp.Diff(want, doc.Config(), comparePrefixes, compareOrigins); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if group != tc.group {
				t.Errorf("group %q, want %q", group, tc.group)
			}
			again, group, err := agentconfig.Parse(doc.YAML(tc.group))
			if err != nil || !again.Equal(doc) || group != tc.group {
				t.Errorf("the canonical text parses as another document: group %q, %v\n%s", group, err, doc.YAML(tc.group))
			}
		})
	}
}

func TestParseReportsEveryProblem(t *testing.T) {
	tests := map[string]struct {
		text string
		want []string
	}{
		"wrong types": {
			text: `inputs:
  integration:
    enabled: "true"
    listen_port: "38086"
    grpc_port: 4317.0
    max_request_bytes: [1]
    compression: true
    feature_control:
      trace_integration_disabled: 1
  flow:
    enabled: yes
    dump_interval: 10
    report_interval:
    exclude_cidrs: 10.0.0.0/8
    exclude_ports: {from: 1}
    dns_enabled: 1
    conntrack_enabled: [true]
outputs:
  spool:
    max_bytes: 1.5
    drain_bytes_per_second: true
`,
			want: []string{
				`line 3: inputs.integration.enabled: the text "true" where true or false is expected`,
				`line 4: inputs.integration.listen_port: the text "38086" where a whole number is expected`,
				`line 5: inputs.integration.grpc_port: the number 4317.0 where a whole number is expected`,
				`line 6: inputs.integration.max_request_bytes: a list where a size such as 64MiB is expected`,
				`line 7: inputs.integration.compression: true where a section of keys is expected`,
				`line 9: inputs.integration.feature_control.trace_integration_disabled: the number 1 where true or false is expected`,
				`line 11: inputs.flow.enabled: the text "yes" where true or false is expected`,
				`line 12: inputs.flow.dump_interval: the number 10 where a duration such as 10s, 5m, 1h30m or 30d is expected`,
				`line 13: inputs.flow.report_interval: has no value; leave the key out if it is not to be set`,
				`line 14: inputs.flow.exclude_cidrs: the text "10.0.0.0/8" where a list is expected`,
				`line 15: inputs.flow.exclude_ports: a section of keys where a list is expected`,
				`line 16: inputs.flow.dns_enabled: the number 1 where true or false is expected`,
				`line 17: inputs.flow.conntrack_enabled: a list where true or false is expected`,
				`line 20: outputs.spool.max_bytes: the number 1.5 where a size such as 64MiB is expected`,
				`line 21: outputs.spool.drain_bytes_per_second: true where a size such as 64MiB is expected`,
			},
		},
		"values that are refused": {
			text: `inputs:
  integration:
    listen_port: 65536
    grpc_port: -1
    max_request_bytes: 1KiB
  flow:
    dump_interval: 10 s
    report_interval: 1s
    exclude_cidrs: [10.0.0.1/8, 10.0.0.1, 7, {}]
    exclude_ports: [0, 99999, 9-8, http, [1], 1-2-3, 010]
outputs:
  spool:
    max_bytes: 99999999999999999999TiB
    drain_bytes_per_second: 64 megs
external_agent_http_proxy_enabled: 2
inputs.integration.cors_allowed_origins: [app.example.com, https://a/, 7]
inputs.integration.cors_allowed_headers: [a b, null]
`,
			want: []string{
				`line 3: inputs.integration.listen_port: "65536" is out of range, 0 to 65535`,
				`line 4: inputs.integration.grpc_port: "-1" is out of range, 0 to 65535`,
				`line 5: inputs.integration.max_request_bytes: "1KiB" is out of range, 64KiB to 512MiB`,
				`line 7: inputs.flow.dump_interval: "10 s" is not a duration such as 10s, 5m, 1h30m or 30d`,
				`line 8: inputs.flow.report_interval: "1s" is out of range, 10s to 10m`,
				`line 9: inputs.flow.exclude_cidrs: "10.0.0.1/8" has bits set beyond its length; the network is 10.0.0.0/8`,
				`line 9: inputs.flow.exclude_cidrs: the text "10.0.0.1" where a CIDR such as 10.0.0.0/8 is expected`,
				`line 9: inputs.flow.exclude_cidrs: the number 7 where a CIDR such as 10.0.0.0/8 is expected`,
				`line 9: inputs.flow.exclude_cidrs: a section of keys where a CIDR such as 10.0.0.0/8 is expected`,
				`line 10: inputs.flow.exclude_ports: "0" is out of range, 1 to 65535`,
				`line 10: inputs.flow.exclude_ports: "99999" is out of range, 1 to 65535`,
				`line 10: inputs.flow.exclude_ports: "9-8" ends before it begins`,
				`line 10: inputs.flow.exclude_ports: "http" is not a port or a range of ports such as 8000-8099`,
				`line 10: inputs.flow.exclude_ports: a list where a port or a range of ports such as 8000-8099 is expected`,
				`line 10: inputs.flow.exclude_ports: "1-2-3" is not a port or a range of ports such as 8000-8099`,
				`line 10: inputs.flow.exclude_ports: "010" is not a port or a range of ports such as 8000-8099`,
				`line 13: outputs.spool.max_bytes: "99999999999999999999TiB" is out of range, 1MiB to 1TiB`,
				`line 14: outputs.spool.drain_bytes_per_second: "64 megs" is not a size such as 64MiB, 900KiB or 1000000`,
				`line 15: external_agent_http_proxy_enabled: the number 2 where true or false is expected`,
				`line 16: inputs.integration.cors_allowed_origins: "app.example.com" is not an origin such as https://app.example.com or http://localhost:3000`,
				`line 16: inputs.integration.cors_allowed_origins: "https://a/" has a path; an origin ends with its host or port`,
				`line 16: inputs.integration.cors_allowed_origins: the number 7 where an origin such as https://app.example.com is expected`,
				`line 17: inputs.integration.cors_allowed_headers: "a b" is not the name of a header such as X-Api-Key`,
				`line 17: inputs.integration.cors_allowed_headers: nothing where the name of a header is expected`,
			},
		},
		"a number that is eight": {
			text: "inputs: {integration: {listen_port: 010}}",
			want: []string{`line 1: inputs.integration.listen_port: 010 is not a number in plain decimal digits`},
		},
		"misspelt keys": {
			text: `inptus:
  x: 1
inputs:
  integration:
    listen_prot: 1
  integraton: {enabled: true}
  bogus: 1
listen_port: 1
external_agent_http_proxy_enable: 1
vtap_group: g-1
zzz: 1
? [a]
: 1
`,
			want: []string{
				"line 1: inptus: unknown key; did you mean inputs?",
				"line 5: inputs.integration.listen_prot: unknown key; did you mean inputs.integration.listen_port?",
				"line 6: inputs.integraton: unknown key; did you mean inputs.integration?",
				"line 7: inputs.bogus: unknown key",
				"line 8: listen_port: unknown key; did you mean inputs.integration.listen_port?",
				"line 9: external_agent_http_proxy_enable: unknown key; did you mean external_agent_http_proxy_enabled?",
				"line 10: vtap_group: unknown key; did you mean vtap_group_id?",
				"line 11: zzz: unknown key",
				"line 12: a list where a key is expected",
			},
		},
		"the predecessor's other keys": {
			text: `max_cpus: 1
l4_log_collect_nps_threshold: 10000
static_config:
  external-agent-http-proxy-compresed: true
  os-proc-root: /proc
global:
  communication: {proxy_controller_ip: 1.2.3.4}
outputs:
  flow_log: {throttles: {l4_throttle: 1}}
inputs:
  integration:
    compression: {profile: true}
`,
			want: []string{
				"line 1: max_cpus: is a key of the predecessor that has no meaning here; remove it",
				"line 2: l4_log_collect_nps_threshold: is a key of the predecessor that has no meaning here; remove it",
				"line 4: static_config.external-agent-http-proxy-compresed: unknown key; did you mean static_config.external-agent-http-proxy-compressed?",
				"line 5: static_config.os-proc-root: is a key of the predecessor that has no meaning here; remove it",
				"line 6: global: is a key of the predecessor that has no meaning here; remove it",
				"line 9: outputs.flow_log: is a key of the predecessor that has no meaning here; remove it",
				"line 12: inputs.integration.compression.profile: is a key of the predecessor that has no meaning here; remove it",
			},
		},
		"keys twice": {
			text: "external_agent_http_proxy_port: 1\nexternal_agent_http_proxy_port: 1\ninputs: {integration: {listen_port: 1}}\nagent_group_id: a\nvtap_group_id: a\ninputs.flow.enabled: true\ninputs: {flow: {enabled: true}}\n",
			want: []string{
				"line 2: external_agent_http_proxy_port: set twice, first in line 1; was the file appended to?",
				"line 3: inputs.integration.listen_port: the same as external_agent_http_proxy_port in line 1; keep one of them",
				"line 5: vtap_group_id: the same as agent_group_id in line 4; keep one of them",
				"line 7: inputs.flow.enabled: set twice, first in line 6; was the file appended to?",
			},
		},
		"a group that is a number": {text: "agent_group_id: 7", want: []string{"line 1: agent_group_id: the number 7 where the id or the name of an agent group is expected"}},
		"anchors": {
			text: "a: &a {enabled: true}\ninputs:\n  integration: *a\n  flow:\n    <<: *a\n    dump_interval: *a\n    exclude_ports: [*a]\n",
			want: []string{
				"line 1: a: unknown key",
				"line 3: inputs.integration: an alias where a section of keys is expected",
				"line 5: inputs.flow.<<: anchors are not supported; write the keys out",
				"line 6: inputs.flow.dump_interval: an alias where a duration such as 10s, 5m, 1h30m or 30d is expected",
				"line 7: inputs.flow.exclude_ports: an alias where a port or a range of ports such as 8000-8099 is expected",
			},
		},
		"a type of its own": {text: "inputs: {flow: {enabled: !!python/object x}}", want: []string{`line 1: inputs.flow.enabled: "x" where true or false is expected`}},
		"too many values":   {text: "inputs: {flow: {exclude_ports: [" + strings.Repeat("1,", 257) + "]}}", want: []string{"line 1: inputs.flow.exclude_ports: 257 values are more than the 256 that a list may have"}},
		"a long value":      {text: "inputs: {flow: {dump_interval: " + strings.Repeat("é", 50) + "}}", want: []string{`line 1: inputs.flow.dump_interval: "` + strings.Repeat("é", 30) + `..." is not a duration such as 10s, 5m, 1h30m or 30d`}},
		"a table of a list": {text: "NAME                  AGENT_GROUP_ID\ndefault               g-default000\n", want: []string{"line 1: this is the table that 'agent-group-config list' prints, and not a configuration; 'agent-group-config list -o yaml' prints one"}},
		"a table of groups": {text: "\nNAME     ID  \n", want: []string{"line 1: this is the table that 'agent-group-config list' prints, and not a configuration; 'agent-group-config list -o yaml' prints one"}},
		"not YAML":          {text: "ok: 1\na: [", want: []string{"line 2: not YAML: did not find expected node content"}},
		"tabs":              {text: "inputs:\n\tflow: 1", want: []string{"line 2: not YAML: a tab in the indentation, where YAML allows only spaces"}},
		"two documents":     {text: "{}\n---\n{}\n", want: []string{"more than one YAML document; a configuration is one"}},
		"broken at the end": {text: "{}\n---\n[", want: []string{"line 3: not YAML: did not find expected node content"}},
		"a list":            {text: "- a", want: []string{"line 1: a list where keys with values are expected"}},
		"text":              {text: "hello", want: []string{`line 1: the text "hello" where keys with values are expected`}},
		"binary":            {text: "\x00\xff", want: []string{"not YAML: control characters are not allowed"}},
		"more than a file":  {text: strings.Repeat("#", agentconfig.MaxTextBytes+1), want: []string{"the text has 1048577 bytes, more than the 1048576 that a configuration may have"}},
		"an anchor's bomb":  {text: "a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]\n", want: []string{"line 1: a: unknown key", "line 2: b: unknown key", "line 3: c: unknown key"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			doc, _, err := agentconfig.Parse([]byte(tc.text))
			var wrong *agentconfig.Error
			if !errors.As(err, &wrong) {
				t.Fatalf("%v is not an Error", err)
			}
			if diff := cmp.Diff(tc.want, strings.Split(err.Error(), "\n")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !doc.Empty() {
				t.Errorf("keys are set despite the error: %s", doc.YAML(""))
			}
		})
	}
}

// A text with a hundred thousand mistakes yields a short error at once, and its
// valid keys are still found.
func TestProblemsAreBounded(t *testing.T) {
	text := []byte(strings.Repeat("zzz: 1\n", 100_000) + "external_agent_http_proxy_enabled: 1\n")
	_, _, err := agentconfig.Parse(text)
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 101 || lines[100] != "and 99900 more problems" {
		t.Errorf("%d problems, the last one %q", len(lines), lines[len(lines)-1])
	}
	doc, ignored, err := agentconfig.ParseLenient(text)
	if err != nil || len(ignored) != 101 || !doc.Config().Integration.Enabled {
		t.Errorf("%d ignored, %v, set: %s", len(ignored), err, doc.YAML(""))
	}
}

func TestGroupIsReturnedWithError(t *testing.T) {
	_, group, err := agentconfig.Parse([]byte("bogus: 1\nagent_group_id: g-1\n"))
	if err == nil || group != "g-1" {
		t.Errorf("group %q, %v", group, err)
	}
}

// An agent older than the server applies the keys that it understands.
func TestParseLenient(t *testing.T) {
	doc, ignored, err := agentconfig.ParseLenient([]byte(`agent_group_id: g-1
inputs:
  integration: {enabled: true, listen_port: 70000, grpc_port: 1, grpc_port: 2}
  weather: {enabled: true}
  flow: {exclude_cidrs: [10.0.0.0/8, moon]}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`line 3: inputs.integration.listen_port: "70000" is out of range, 0 to 65535`,
		`line 3: inputs.integration.grpc_port: set twice, first in line 3; was the file appended to?`,
		`line 4: inputs.weather: unknown key`,
		`line 5: inputs.flow.exclude_cidrs: the text "moon" where a CIDR such as 10.0.0.0/8 is expected`,
	}
	if diff := cmp.Diff(want, ignored); diff != "" {
		t.Errorf("ignored (-want +got):\n%s", diff)
	}
	if got, want := string(doc.YAML("")), "inputs:\n  integration:\n    enabled: true\n    grpc_port: 1\n"; got != want {
		t.Errorf("set:\n%s\nwant:\n%s", got, want)
	}
	for _, text := range []string{"a: [", "- 1", "{}\n---\n{}", "NAME ID\n"} {
		if doc, ignored, err := agentconfig.ParseLenient([]byte(text)); err == nil || !doc.Empty() || ignored != nil {
			t.Errorf("%q: %v, %v, %v", text, doc, ignored, err)
		}
	}
}

func TestMerge(t *testing.T) {
	old := parse(t, "inputs: {integration: {enabled: true, listen_port: 1}, flow: {exclude_ports: [1, 2]}}")
	patch := parse(t, "inputs: {integration: {listen_port: 2}, flow: {exclude_ports: [3]}}\noutputs: {spool: {max_bytes: 2MiB}}")
	const want = `agent_group_id: "12"
inputs:
  integration:
    enabled: true
    listen_port: 2
  flow:
    exclude_ports: [3]
outputs:
  spool:
    max_bytes: 2MiB
`
	if diff := cmp.Diff(want, string(old.Merge(patch).YAML("12"))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !old.Equal(parse(t, "inputs: {integration: {enabled: true, listen_port: 1}, flow: {exclude_ports: [1, 2]}}")) {
		t.Error("Merge changed its receiver")
	}
	var zero agentconfig.Document
	if !zero.Empty() || !zero.Merge(patch).Equal(patch) || !patch.Merge(zero).Equal(patch) || len(zero.YAML("")) != 0 {
		t.Error("merging with the zero document changes a document")
	}
}

func TestDiff(t *testing.T) {
	before := parse(t, "inputs: {integration: {enabled: true}, flow: {exclude_ports: [1, 2-3]}}\noutputs: {spool: {max_bytes: 2MiB}}")
	after := parse(t, "outputs: {spool: {max_bytes: 3000000}}\ninputs: {integration: {enabled: true, listen_port: 38086}, flow: {dump_interval: 90s, exclude_cidrs: [10.0.0.0/8, '::/0']}}")
	want := []agentconfig.Change{
		{Key: "inputs.flow.dump_interval", Old: "5s", New: "1m30s"},
		{Key: "inputs.flow.exclude_cidrs", Old: `[127.0.0.0/8, "::1/128"]`, New: `[10.0.0.0/8, "::/0"]`},
		{Key: "inputs.flow.exclude_ports", Old: "[1, 2-3]", New: "[]"},
		{Key: "outputs.spool.max_bytes", Old: "2MiB", New: "3000000"},
	}
	if diff := cmp.Diff(want, agentconfig.Diff(before, after)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if changes := agentconfig.Diff(agentconfig.Document{}, parse(t, "inputs: {integration: {listen_port: 38086}}")); changes != nil {
		t.Errorf("setting a default counts as a change: %v", changes)
	}
}

func TestValues(t *testing.T) {
	values := parse(t, "external_agent_http_proxy_port: 1").Values()
	if n := len(agentconfig.Catalogue()); len(values) != n {
		t.Fatalf("%d values of %d keys", len(values), n)
	}
	want := []agentconfig.Value{
		{Key: "inputs.integration.enabled", Value: "false"},
		{Key: "inputs.integration.listen_port", Value: "1", Set: true},
	}
	if diff := cmp.Diff(want, values[:2]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestExample(t *testing.T) {
	file := filepath.Join("testdata", "example.yaml")
	example := agentconfig.Example()
	golden.Check(t, file, string(example), *update)
	doc := parse(t, string(example))
	if changes := agentconfig.Diff(agentconfig.Document{}, doc); changes != nil {
		t.Errorf("the example changes defaults: %v", changes)
	}
	for _, key := range agentconfig.Catalogue() {
		if !bytes.Contains(example, []byte("Default: "+key.Default+".")) || !bytes.Contains(doc.YAML(""), []byte(lastPart(key.Name)+": "+key.Default+"\n")) {
			t.Errorf("the example lacks %s with its default", key.Name)
		}
	}
}

func lastPart(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// Every field of Config must have a key; otherwise it could never be set.
func TestCatalogueCoversConfig(t *testing.T) {
	if got, want := len(agentconfig.Catalogue()), leaves(reflect.TypeFor[agentconfig.Config]()); got != want {
		t.Errorf("%d keys for %d fields", got, want)
	}
	seen := map[string]bool{}
	for _, key := range agentconfig.Catalogue() {
		for _, name := range append(key.Aliases, key.Name) {
			if seen[name] {
				t.Errorf("%s twice", name)
			}
			seen[name] = true
		}
		if !strings.HasSuffix(key.Doc, ".") || strings.Contains(key.Doc, "\n") {
			t.Errorf("%s: %q does not consist of sentences", key.Name, key.Doc)
		}
	}
}

func leaves(of reflect.Type) int {
	if of.Kind() != reflect.Struct {
		return 1
	}
	n := 0
	for i := range of.NumField() {
		n += leaves(of.Field(i).Type)
	}
	return n
}

func TestPortRange(t *testing.T) {
	r := agentconfig.PortRange{First: 10, Last: 12}
	for port, want := range map[uint16]bool{9: false, 10: true, 12: true, 13: false} {
		if got := r.Contains(port); got != want {
			t.Errorf("%d: %v", port, got)
		}
	}
}

// FuzzParse holds both parsers to their contract for any text: no panic; a
// rejected text yields an *Error with a text in each problem; an accepted text
// has a canonical text that parses to the same document, and the lenient parser
// reads the same from it.
func FuzzParse(f *testing.F) {
	f.Add([]byte(integrationGuide))
	f.Add(agentconfig.Example())
	for _, text := range []string{
		"agent_group_id: \"a: b\"\ninputs: {flow: {exclude_cidrs: ['::/0'], exclude_ports: [1-2]}}",
		"inputs: &a {integration: *a}", "<<: {a: 1}", "? {}\n: []", "NAME ID", "a: !!binary x", "- - -", "\"\\\n\": 1", "inputs.: 1", ".: {}",
		"outputs: {spool: {max_bytes: 1.5GiB, drain_bytes_per_second: 0.1MB}}",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		doc, group, err := agentconfig.Parse(text)
		lenient, ignored, lenientErr := agentconfig.ParseLenient(text)
		if err != nil {
			var wrong *agentconfig.Error
			if !errors.As(err, &wrong) || len(wrong.Problems) == 0 {
				t.Fatalf("%v is not an Error with problems", err)
			}
			for _, p := range wrong.Problems {
				if p.Text == "" {
					t.Fatalf("a problem without a text: %+v", p)
				}
			}
			if lenientErr == nil && len(ignored) != len(wrong.Problems) {
				t.Fatalf("rejected for %v, ignored only %v", wrong.Problems, ignored)
			}
			doc, group = lenient, ""
		} else if lenientErr != nil || ignored != nil || !lenient.Equal(doc) {
			t.Fatalf("Parse: %s, ParseLenient: %s, %v, %v", doc.YAML(""), lenient.YAML(""), ignored, lenientErr)
		}
		canonical := doc.YAML(group)
		again, groupAgain, err := agentconfig.Parse(canonical)
		if err != nil || groupAgain != group || !again.Equal(doc) || agentconfig.Diff(doc, again) != nil {
			t.Fatalf("%q parses as %q, group %q, %v", canonical, again.YAML(groupAgain), groupAgain, err)
		}
	})
}

func ExampleDiff() {
	before, _, _ := agentconfig.Parse([]byte("external_agent_http_proxy_enabled: 1"))
	after, _, _ := agentconfig.Parse([]byte("inputs: {integration: {enabled: true, listen_port: 4318}}"))
	for _, c := range agentconfig.Diff(before, after) {
		fmt.Println(c.Key, c.Old, c.New)
	}
	// Output: inputs.integration.listen_port 38086 4318
}
