package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/testkit/golden"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ctl runs the program against a server.
type ctl struct {
	env   map[string]string
	stdin string
}

// against returns a ctl whose environment names a server with the service.
func against(t *testing.T, s api.Service) *ctl {
	t.Helper()
	server := httptest.NewServer(api.NewHandler(s, api.HandlerOptions{}))
	t.Cleanup(server.Close)
	return &ctl{env: at(server)}
}

func at(server *httptest.Server) map[string]string {
	address := server.Listener.Addr().(*net.TCPAddr)
	return map[string]string{"METAFLOW_CTL_IP": address.IP.String(), "METAFLOW_CTL_API_PORT": fmt.Sprint(address.Port)}
}

// result is the outcome of a run.
type result struct {
	status         int
	stdout, stderr string
}

func (c *ctl) run(args ...string) result {
	var stdout, stderr bytes.Buffer
	var variables []string
	for name, value := range c.env {
		variables = append(variables, name+"="+value)
	}
	root := newRoot("metaflow-ctl", environment{variables: variables, now: func() time.Time { return now }})
	root.SetIn(strings.NewReader(c.stdin))
	status := program.Run(context.Background(), root, args, &stdout, &stderr)
	return result{status, stdout.String(), stderr.String()}
}

// ok runs a command that must succeed, and returns its output.
func (c *ctl) ok(t *testing.T, args ...string) string {
	t.Helper()
	r := c.run(args...)
	if r.status != program.ExitOK || r.stderr != "" {
		t.Fatalf("%v: status %d, %s", args, r.status, r.stderr)
	}
	return r.stdout
}

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// Goldens fix the output that people and scripts read.
func TestGoldens(t *testing.T) {
	m := newMemory()
	c := against(t, m)
	c.stdin = "inputs: {integration: {enabled: true}, flow: {exclude_cidrs: [10.0.0.0/8]}}"
	c.ok(t, "agent-group-config", "update", "shop", "-f", "-")
	transcript := func(commands ...string) string {
		var b strings.Builder
		for _, command := range commands {
			r := c.run(strings.Fields(command)...)
			fmt.Fprintf(&b, "$ metaflow-ctl %s\n%s%s", command, r.stdout, r.stderr)
			if r.status != 0 {
				fmt.Fprintf(&b, "(status %d)\n", r.status)
			}
			b.WriteString("\n")
		}
		return b.String()
	}
	tests := map[string]string{
		"lists": transcript("agent list", "agent list a-3", "agent show node-1", "agent show node-2", "agent-group list", "agent-group list shop",
			"agent-group-config list", "agent-group-config list g-shop000000", "agent-group-config show shop"),
		"formats": transcript("agent list node-2 -o yaml", "agent list node-2 -o json", "agent-group list -o yaml", "agent-group list -o json",
			"agent-group-config list -o yaml", "agent-group-config show shop -o yaml", "agent-group-config show default -o json"),
		"changes": transcript("agent-group create web", "agent-group create lab --id g-lab0000000 -o json", "agent-group delete web", "agent delete a-3", "agent release node-1",
			"agent-group-config update default -f testdata/agent.yaml --dry-run", "agent-group-config update default -f testdata/agent.yaml",
			"agent-group-config update default -f testdata/agent.yaml", "agent-group-config update default -f testdata/agent.yaml -o json",
			"agent-group-config update default --replace -f testdata/other.yaml", "agent-group-config create default -f testdata/agent.yaml",
			"agent-group-config create lab -f testdata/agent.yaml", "agent-group-config delete default", "agent-group-config update -f testdata/groups.yaml"),
		"mistakes": transcript("agent-group-config update default -f testdata/wrong.yaml", "agent-group-config update default -f testdata/table.txt",
			"agent-group-config update -f testdata/table.txt", "agent show nobody", "agent list nobody", "agent-group list nobody", "agent-group-config list nobody",
			"agent-group create shop", "agent-group-config update default -f testdata/missing.yaml", "agent-group-config update default",
			"agent-group-config update -f testdata/agent.yaml", "agent-group-config update default -f testdata/groups.yaml", "agnet list", "agent lits",
			"agent list -o xml", "agent list --frobnicate", "agent show", "agent list --timeout 0s", "agent list --timeout 2days", "agent list --api-port http", "agent list --ip http://server", "agent list -i server:20417", "agent list -i [::1]:20417", "agent show a b",
			"agent-group create", "agent-group create a b", "agent-group create a -f testdata/agent.yaml"),
		"help": transcript("", "agent", "agent list --help", "agent-group create --help", "agent-group-config --help", "agent-group-config update --help", "verify --help"),
	}
	for name, got := range tests {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata", name+".golden")
			golden.Check(t, file, got, *update)
		})
	}
}

// The commands of the integration guide, verbatim. Its shell does not expand the variable
// in single quotes, so the file contains the variable.
func TestIntegrationGuide(t *testing.T) {
	for name, group := range map[string]string{"a variable in the file": "${VTAP_GROUP_ID}", "the id in the file": "g-default000"} {
		t.Run(name, func(t *testing.T) {
			c := against(t, newMemory())
			lines := strings.Split(c.ok(t, "agent-group", "list"), "\n")
			if head := strings.Fields(lines[0]); len(head) < 2 || head[0] != "NAME" || head[1] != "ID" {
				t.Errorf("head %q, want NAME and ID", lines[0])
			}
			id := strings.Fields(lines[1])[1]
			file := write(t, "vtap_group_id: "+group+"\nexternal_agent_http_proxy_enabled: 1\nexternal_agent_http_proxy_port: 38086\n")
			const want = "KEY                         OLD    NEW\ninputs.integration.enabled  false  true\n"
			if got := c.ok(t, "agent-group-config", "update", id, "-f", file); got != want {
				t.Errorf("update prints:\n%swant:\n%s", got, want)
			}
			if got := c.ok(t, "agent-group-config", "list", id, "-o", "yaml"); !strings.Contains(got, "enabled: true\n    listen_port: 38086\n") {
				t.Errorf("then the configuration is:\n%s", got)
			}
		})
	}
}

// update reads what list prints, for one group and for all of them, whatever is set.
func TestListAndUpdateAreARoundTrip(t *testing.T) {
	m := newMemory()
	c := against(t, m)
	c.stdin = c.ok(t, "agent-group-config", "example")
	c.ok(t, "agent-group-config", "update", "shop", "-f", "-")

	for _, of := range [][]string{{}, {"shop"}, {"default"}} {
		text := c.ok(t, append([]string{"agent-group-config", "list", "-o", "yaml"}, of...)...)
		c.stdin = text
		if got := c.ok(t, "agent-group-config", "update", "-f", "-"); strings.Contains(got, "KEY") || !strings.Contains(got, "no change") {
			t.Errorf("of %v: without an edit, update prints:\n%s", of, got)
		}
		c.stdin = strings.Replace(text, "38086", "38087", 1)
		want := "inputs.integration.listen_port  38086  38087\n"
		if got := c.run("agent-group-config", "update", "-f", "-", "--dry-run").stdout; strings.Contains(text, "38086") != strings.Contains(got, want) {
			t.Errorf("of %v: with an edit, update prints:\n%s", of, got)
		}
	}
}

// If the text of one of several groups in a file is refused, none is changed.
func TestFileWithAMistakeChangesNothing(t *testing.T) {
	m := newMemory()
	c := against(t, m)
	c.stdin = "agent_group_id: shop\ninputs.flow.enabled: false\n---\nagent_group_id: default\nbogus: 1\n"
	r := c.run("agent-group-config", "update", "-f", "-")
	if r.status != program.ExitFailed || r.stdout != "" || !strings.Contains(r.stderr, "standard input:5: bogus: unknown key") {
		t.Errorf("status %d, %q, %q", r.status, r.stdout, r.stderr)
	}
	for _, g := range m.groups {
		if !g.doc.Empty() {
			t.Errorf("%s was changed: %s", g.Name, g.doc.YAML(""))
		}
	}
}

func TestFileAndCommandLineMustNameTheSameGroup(t *testing.T) {
	tests := map[string]struct {
		file, named string
		says        string // empty when it must work
	}{
		"the same id":          {file: "g-shop000000", named: "g-shop000000"},
		"an id and its name":   {file: "g-shop000000", named: "shop"},
		"a name and its id":    {file: "shop", named: "g-shop000000"},
		"only the file":        {file: "shop"},
		"another group":        {file: "g-default000", named: "shop", says: `is for the agent group "g-default000", and the command line names "shop"; nothing was changed`},
		"a group that is none": {file: "nobody", named: "shop", says: `is for the agent group "nobody"`},
		"only a file's typo":   {file: "nobody", says: `there is no agent group "nobody"`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			c := against(t, m)
			args := []string{"agent-group-config", "update", "-f", write(t, "vtap_group_id: "+tc.file+"\ninputs.flow.enabled: false\n")}
			if tc.named != "" {
				args = append(args, tc.named)
			}
			r := c.run(args...)
			shop := m.groups[1].doc
			if tc.says == "" {
				if r.status != program.ExitOK || shop.Empty() {
					t.Errorf("status %d, %s", r.status, r.stderr)
				}
				return
			}
			if r.status != program.ExitFailed || !strings.Contains(r.stderr, tc.says) || !shop.Empty() {
				t.Errorf("status %d, %q, want %q", r.status, r.stderr, tc.says)
			}
		})
	}
}

func TestNothingIsNotAConfiguration(t *testing.T) {
	c := against(t, newMemory())
	c.stdin = " \n"
	if r := c.run("agent-group-config", "update", "default", "--replace", "-f", "-"); r.status != program.ExitFailed || !strings.Contains(r.stderr, "standard input is empty") {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
}

func TestSplit(t *testing.T) {
	tests := map[string]struct {
		text string
		want []string
	}{
		"one":                     {"a: 1\n", []string{"a: 1\n"}},
		"a line before the first": {"--- \na: 1", []string{"\na: 1"}},
		"two, with comments":      {"# x\na: 1\n---\n# y\nb: 2\n---\n# nothing\n", []string{"# x\na: 1\n", "\n\n\n# y\nb: 2\n"}},
		"windows":                 {"a: 1\r\n---\r\nb: 2\r\n", []string{"a: 1\r\n", "\n\nb: 2\r\n"}},
		"only comments":           {"# x\n---\n", []string{"# x\n---\n"}},
		"four hyphens":            {"a: 1\n----\n", []string{"a: 1\n----\n"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, d := range split([]byte(tc.text)) {
				got = append(got, string(d))
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// -o yaml has the same content as -o json.
func TestYAMLIsJSON(t *testing.T) {
	c := against(t, newMemory())
	for _, command := range []string{"agent list", "agent show node-2", "agent-group list", "agent-group create x"} {
		args := strings.Fields(command)
		var fromJSON, fromYAML any
		if err := json.Unmarshal([]byte(c.ok(t, append(args, "-o", "json")...)), &fromJSON); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		if command == "agent-group create x" {
			continue
		}
		if err := yaml.Unmarshal([]byte(c.ok(t, append(args, "-o", "yaml")...)), &fromYAML); err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		again, err := json.Marshal(fromYAML)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(again, &fromYAML); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fromJSON, fromYAML); diff != "" {
			t.Errorf("%s (-json +yaml):\n%s", command, diff)
		}
	}
}

func TestReachingTheServer(t *testing.T) {
	required, err := tokens.Open(nil, tokens.List{Key: "token", Values: []string{"hunter2"}, Label: api.RoleWrite})
	if err != nil {
		t.Fatal(err)
	}
	handler := api.NewHandler(newMemory(), api.HandlerOptions{Tokens: required})
	overTLS := httptest.NewTLSServer(handler)
	t.Cleanup(overTLS.Close)
	overTLS.Config.ErrorLog = nil
	plain := httptest.NewServer(handler)
	t.Cleanup(plain.Close)
	closed := httptest.NewServer(handler)
	closed.Close()
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(slow.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: overTLS.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(overTLS.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600); err != nil {
		t.Fatal(err)
	}
	mutual := httptest.NewUnstartedServer(handler)
	mutual.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAnyClientCert}
	mutual.StartTLS()
	t.Cleanup(mutual.Close)
	token := map[string]string{"METAFLOW_CTL_TOKEN": "hunter2"}
	inEnvironment := map[string]string{"METAFLOW_CTL_TOKEN": "hunter2", "METAFLOW_CTL_CA_FILE": ca}
	tests := map[string]struct {
		server *httptest.Server
		env    map[string]string
		args   string
		says   string // on standard error; empty when it must work
		status int
	}{
		"a token in the environment":    {server: plain, env: token},
		"a token as a flag":             {server: plain, args: "--token hunter2"},
		"no token":                      {server: plain, says: "the token is missing", status: 1},
		"the authority's file":          {server: overTLS, env: token, args: "--ca-file " + ca},
		"the same by a variable":        {server: overTLS, env: inEnvironment},
		"a certificate to show":         {server: mutual, env: inEnvironment, args: "--cert-file " + ca + " --key-file " + keyFile},
		"none where one is asked for":   {server: mutual, env: inEnvironment, says: "certificate required", status: 1},
		"a certificate without its key": {server: mutual, env: token, args: "--cert-file " + ca, says: "one needs the other", status: 2},
		"any certificate":               {server: overTLS, env: token, args: "--insecure-skip-verify"},
		"an unknown certificate":        {server: overTLS, env: token, args: "--tls", says: "certificate", status: 1},
		"a file that is none":           {server: overTLS, env: token, args: "--ca-file " + ca + "x", says: "no such file", status: 1},
		"a file without any":            {server: overTLS, env: token, args: "--ca-file ctl_test.go", says: "has no certificate in PEM", status: 1},
		"HTTP where HTTPS is":           {server: overTLS, env: token, says: "status 400", status: 1},
		"nobody":                        {server: closed, says: "connection refused\nset the server's address with -i and --api-port", status: 1},
		"too slow":                      {server: slow, args: "--timeout 20ms", says: "no response in time", status: 1},
		"the flag over the environment": {server: closed, env: token, args: "--api-port " + fmt.Sprint(plain.Listener.Addr().(*net.TCPAddr).Port)},
		"an address in brackets":        {server: plain, env: token, args: "-i [127.0.0.1]"},
		"a misspelt variable":           {server: plain, env: map[string]string{"METAFLOW_CTL_TOKN": "hunter2"}, says: "METAFLOW_CTL_TOKN: the variable names no key, did you mean METAFLOW_CTL_TOKEN?", status: 2},
		"variables of other programs":   {server: plain, env: map[string]string{"METAFLOW_CTL_TOKEN": "hunter2", "METAFLOW_KAFKA_BROKERS": "a:1"}},
		"a port that is none":           {server: plain, env: map[string]string{"METAFLOW_CTL_API_PORT": "http"}, says: "METAFLOW_CTL_API_PORT", status: 2},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			c := &ctl{env: at(tc.server)}
			for k, v := range tc.env {
				c.env[k] = v
			}
			r := c.run(append([]string{"agent", "list"}, strings.Fields(tc.args)...)...)
			if r.status != tc.status || !strings.Contains(r.stderr, tc.says) || (tc.says == "") != (r.stderr == "") {
				t.Errorf("status %d, %q; want %d, %q", r.status, r.stderr, tc.status, tc.says)
			}
		})
	}
}

func TestCompletion(t *testing.T) {
	c := against(t, newMemory())
	tests := map[string]struct{ command, want string }{
		"agents":      {"agent show|", "node-1\trunning in default\nnode-2\tpending in shop\nhost-3\tlost in gone\n:4\n"},
		"groups":      {"agent-group-config update|", "g-default000\tdefault\ndefault\tg-default000\ng-shop000000\tshop\nshop\tg-shop000000\n:4\n"},
		"no more":     {"agent show node-1|", ":4\n"},
		"formats":     {"agent list -o|", "table\nyaml\njson\n:4\n"},
		"no server":   {"agent show --api-port 1|", ":4\n"},
		"nonsense":    {"agent show -o x|", ":4\n"},
		"a file":      {"agent-group-config update -f|", ":0\n"},
		"subcommands": {"agent-group|", "create\tCreate an agent group, or all groups of a file\ndelete\tDelete an agent group and its configuration\nlist\tList the agent groups, or one\n:4\n"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"__complete"}, strings.Fields(strings.TrimSuffix(tc.command, "|"))...)
			r := c.run(append(args, "")...)
			if r.status != 0 || r.stdout != tc.want {
				t.Errorf("status %d\n%swant:\n%s", r.status, r.stdout, tc.want)
			}
		})
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if got := c.ok(t, "completion", shell); !strings.Contains(got, "metaflow-ctl") {
			t.Errorf("no script for %s", shell)
		}
	}
}

func TestAlternativeName(t *testing.T) {
	for called, want := range map[string]string{"metaflow-cli": "metaflow-cli", "metaflow-ctl": "metaflow-ctl", "ctl.test": "metaflow-ctl"} {
		if got := newRoot(called, environment{}).Name(); got != want {
			t.Errorf("called %s it is %s", called, got)
		}
	}
}
