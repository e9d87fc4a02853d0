package deploytest

import (
	"encoding/base64"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	schemautil "k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"sigs.k8s.io/yaml"
)

const chartDir = "../helm/metaflow"

// release is one installation of the chart.
type release struct {
	name, namespace string
	kubernetes      string // version; empty means a current one
	values          string // YAML
	cluster         fakeCluster
}

// render returns the objects of a release, and its notes.
func (r release) render(t *testing.T) (manifest, notes string, err error) {
	t.Helper()
	chart, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	values, err := chartutil.ReadValues([]byte(r.values))
	if err != nil {
		t.Fatal(err)
	}
	capabilities := chartutil.DefaultCapabilities.Copy()
	version := r.kubernetes
	if version == "" {
		version = "v1.34.0"
	}
	kube, err := chartutil.ParseKubeVersion(version)
	if err != nil {
		t.Fatal(err)
	}
	capabilities.KubeVersion = *kube
	options := chartutil.ReleaseOptions{Name: r.name, Namespace: r.namespace, Revision: 1, IsInstall: true}
	if options.Name == "" {
		options.Name, options.Namespace = "metaflow", "observability"
	}
	all, err := chartutil.ToRenderValues(chart, values, options, capabilities)
	if err != nil {
		return "", "", err
	}
	files, err := engine.RenderWithClientProvider(chart, all, r.cluster)
	if err != nil {
		return "", "", err
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		switch {
		case strings.HasSuffix(name, "NOTES.txt"):
			notes = files[name]
		case strings.TrimSpace(files[name]) != "":
			b.WriteString("---\n# Source: " + name + "\n" + strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(files[name]), "---")) + "\n")
		}
	}
	return b.String(), notes, nil
}

func (r release) objects(t *testing.T) *objects {
	t.Helper()
	manifest, _, err := r.render(t)
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, manifest, r.namespace)
}

// matrix is every installation of the chart that the tests cover, by the name
// of its file in testdata/chart, and the Secrets that exist before it, with
// their keys.
var matrix = map[string]struct {
	kubernetes string
	secrets    map[string][]string
}{
	"first-try":  {},
	"production": {secrets: map[string][]string{"kafka-login": {"password"}, "clickhouse-login": {"pass"}, "otlp-tls": {"tls.crt", "tls.key", "ca.crt"}, "http-tls": {"tls.crt", "tls.key", "ca.crt"}, "control-login": {"token"}, "agents-login": {"token"}, "kafka-tls": {"ca.crt", "tls.crt", "tls.key"}, "clickhouse-tls": {"ca.crt"}, "agent-tls": {"ca.crt", "tls.crt", "tls.key"}}},
	"small":      {kubernetes: "v1.27.0"},
	"second":     {},
	"roles":      {},
	"agents":     {},
	"apart":      {secrets: map[string][]string{"tokens": {"groups.txt", "read.txt", "otlp.txt"}, "agent-tokens": {"group.txt", "otlp.txt"}, "ingress-tls": {"tls.crt", "tls.key"}}},
}

func (r release) fromMatrix(t *testing.T, name string) release {
	t.Helper()
	r.values = read(t, filepath.Join("testdata/chart", name+".values.yaml"))
	r.kubernetes = matrix[name].kubernetes
	return r
}

// Every installation is linted, decoded into the types of Kubernetes, checked
// for dangling references, and compared with its golden file.
func TestChart(t *testing.T) {
	for name, tc := range matrix {
		t.Run(name, func(t *testing.T) {
			r := release{}.fromMatrix(t, name)
			for _, m := range lintChart(t, r.values) {
				t.Errorf("lint: %s", m)
			}
			manifest, notes, err := r.render(t)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join("chart", name+".yaml"), manifest)
			golden(t, filepath.Join("chart", name+".notes.txt"), notes)
			o := decode(t, manifest, "")
			o.secrets = tc.secrets
			for _, problem := range o.audit() {
				t.Error(problem)
			}
		})
	}
}

func lintChart(t *testing.T, text string) []string {
	t.Helper()
	values, err := chartutil.ReadValues([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var messages []string
	for _, m := range lint.All(chartDir, values, "observability", true).Messages {
		// An icon would be an address outside the cluster.
		if m.Severity > support.InfoSev || !strings.Contains(m.Error(), "icon is recommended") {
			messages = append(messages, m.Error())
		}
	}
	return messages
}

// Without a given password, the chart generates a random one.
func TestChartMakesPassword(t *testing.T) {
	r := release{}
	first := r.objects(t).secret("metaflow-clickhouse")["password"]
	second := r.objects(t).secret("metaflow-clickhouse")["password"]
	if len(first) < 32 || string(first) == string(second) {
		t.Errorf("passwords %q and %q, want two different ones of 32 characters", first, second)
	}
}

// An upgrade keeps the generated password.
func TestChartKeepsPassword(t *testing.T) {
	made := release{}.objects(t).secret("metaflow-clickhouse")["password"]
	cluster := fakeCluster{"v1/Secret": {&unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Secret",
		"metadata": map[string]any{"name": "metaflow-clickhouse", "namespace": "observability"},
		"data":     map[string]any{"password": base64.StdEncoding.EncodeToString(made)},
	}}}}
	if got := (release{cluster: cluster}).objects(t).secret("metaflow-clickhouse")["password"]; string(got) != string(made) {
		t.Errorf("password %q changed to %q", made, got)
	}
	changed := release{cluster: cluster, values: "clickhouse: {password: {value: mine}}"}
	if got := changed.objects(t).secret("metaflow-clickhouse")["password"]; string(got) != "mine" {
		t.Errorf("password %q was not replaced by the given one", got)
	}
}

// Without a given token, the chart generates a random one, and an upgrade keeps
// it.
func TestChartMakesAndKeepsToken(t *testing.T) {
	made := release{}.objects(t).secret("metaflow-server")["control-token"]
	if other := (release{}).objects(t).secret("metaflow-server")["control-token"]; len(made) < 32 || string(made) == string(other) {
		t.Errorf("tokens %q and %q, want two different ones of 32 characters", made, other)
	}
	cluster := fakeCluster{"v1/Secret": {&unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Secret",
		"metadata": map[string]any{"name": "metaflow-server", "namespace": "observability"},
		"data":     map[string]any{"control-token": base64.StdEncoding.EncodeToString(made)},
	}}}}
	if got := (release{cluster: cluster}).objects(t).secret("metaflow-server")["control-token"]; string(got) != string(made) {
		t.Errorf("token %q changed to %q", made, got)
	}
	changed := release{cluster: cluster, values: "server: {credentials: {controlToken: {value: mine}}}"}
	if got := changed.objects(t).secret("metaflow-server")["control-token"]; string(got) != "mine" {
		t.Errorf("token %q was not replaced by the given one", got)
	}
}

// The server requires the token that metaflow-ctl in its container and helm
// test send.
func TestChartControlToken(t *testing.T) {
	for name, tc := range map[string]struct{ values, secret, key string }{
		"made":   {"", "metaflow-server", "control-token"},
		"given":  {"server: {credentials: {controlToken: {value: hush}}}", "metaflow-server", "control-token"},
		"exists": {"server: {credentials: {controlToken: {existingSecret: mine, key: t}}}", "mine", "t"},
	} {
		t.Run(name, func(t *testing.T) {
			o := release{values: tc.values}.objects(t)
			o.secrets = map[string][]string{"mine": {"t"}}
			for _, problem := range o.audit() {
				t.Error(problem)
			}
			want := []string{"server METAFLOW_CONTROL_TOKEN", "server METAFLOW_CTL_TOKEN", "control METAFLOW_CTL_TOKEN"}
			for _, w := range o.workloads {
				for _, c := range w.template.Spec.Containers {
					for _, e := range c.Env {
						if !strings.HasSuffix(e.Name, "_TOKEN") {
							continue
						}
						want = slices.DeleteFunc(want, func(s string) bool { return s == c.Name+" "+e.Name })
						if ref := e.ValueFrom.SecretKeyRef; ref.Name != tc.secret || ref.Key != tc.key {
							t.Errorf("%s of %s is %s of %s", e.Name, w, ref.Key, ref.Name)
						}
					}
				}
			}
			if len(want) > 0 {
				t.Errorf("no container has %v", want)
			}
		})
	}
}

// fakeCluster holds the objects that lookup finds, by version and kind.
type fakeCluster map[string][]runtime.Object

func (c fakeCluster) GetClientFor(apiVersion, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	client := dynamicfake.NewSimpleDynamicClient(runtime.NewScheme(), c[apiVersion+"/"+kind]...)
	return client.Resource(schemautil.GroupVersionResource{Version: apiVersion, Resource: strings.ToLower(kind) + "s"}), true, nil
}

// The schema and the templates reject bad values by key and with a reason.
func TestChartRejects(t *testing.T) {
	tests := map[string]struct {
		values string
		want   []string // substrings of the error
	}{
		"an unknown value":                     {"sever: {}", []string{"sever"}},
		"an unknown value below":               {"server: {replica: 2}", []string{"/server", "replica"}},
		"an unknown key of the server":         {"server: {config: {kafka: {partitons: 3}}}", []string{"/server/config/kafka", "partitons"}},
		"an unknown key of the agent":          {"agent: {config: {sever: {}}}", []string{"/agent/config", "sever"}},
		"a key of the wrong type":              {"server: {config: {kafka: {partitions: many}}}", []string{"/server/config/kafka/partitions", "integer"}},
		"no duration":                          {"server: {config: {retention: {spans: soon}}}", []string{"/server/config/retention/spans", "soon"}},
		"no size":                              {"server: {config: {writer: {memory_bytes: lots}}}", []string{"/server/config/writer/memory_bytes"}},
		"no role":                              {"server: {config: {roles: [gatway]}}", []string{"/server/config/roles/0"}},
		"a password in the configuration":      {"server: {config: {kafka: {sasl: {password: x}}}}", []string{"/server/config/kafka/sasl", "password"}},
		"the schema's switch":                  {"server: {config: {migrate_at_start: true}}", []string{"migrate_at_start"}},
		"no replicas":                          {"server: {replicas: 0}", []string{"/server/replicas"}},
		"an invalid node port":                 {"server: {service: {nodePorts: {grpc: 80}}}", []string{"/server/service/nodePorts/grpc"}},
		"an unknown mode":                      {"server: {migration: {mode: hook}}", []string{"/server/migration/mode"}},
		"no quantity":                          {"server: {resources: {limits: {memory: 1GB}}}", []string{"/server/resources/limits/memory"}},
		"an invalid digest":                    {"agent: {image: {digest: latest}}", []string{"/agent/image/digest"}},
		"agents without servers":               {"server: {enabled: false}", []string{"agent.config.server.addresses: required"}},
		"nothing":                              {"{server: {enabled: false}, agent: {enabled: false}}", []string{"server.enabled: is false"}},
		"no Kafka":                             {"kafka: {enabled: false}", []string{"server.config.kafka.brokers: required"}},
		"no ClickHouse":                        {"clickhouse: {enabled: false}", []string{"server.config.clickhouse.addresses: required"}},
		"two Kafkas":                           {"server: {config: {kafka: {brokers: ['k:9092']}}}", []string{"kafka.enabled: is true"}},
		"flow data without the node's net":     {"agent: {hostNetwork: false}", []string{"agent.hostNetwork: flow data"}},
		"fewer replicas at most than at least": {"server: {autoscaling: {enabled: true, minReplicas: 9}}", []string{"server.autoscaling.minReplicas"}},
		"an address without a port":            {"server: {config: {grpc: {listen: 0.0.0.0}}}", []string{"/server/config/grpc/listen", "0.0.0.0"}},
		"a login without a password":           {"{kafka: {enabled: false}, server: {config: {kafka: {brokers: ['k:9092'], sasl: {mechanism: scram-sha-512, username: u}}}}}", []string{"server.credentials.kafkaPassword: required"}},
		"roles twice":                          {"server: {config: {roles: [gateway]}, writers: {enabled: true}}", []string{"server.config.roles: server.writers.enabled"}},
		"two tokens":                           {"agent: {token: {existingSecret: a}, tokenFiles: {existingSecret: b, server: s}}", []string{"agent.tokenFiles.server: agent.token.existingSecret"}},
		"keda without writers":                 {"server: {writers: {keda: {enabled: true}}}", []string{"server.writers.keda.enabled: needs"}},
		"an ingress without OTLP/HTTP":         {"server: {ingress: {enabled: true, hosts: [a]}}", []string{"server.ingress.port: is otlp-http"}},
		"a name that is too long":              {"fullnameOverride: a123456789-123456789-123456789-123456789-1", []string{"/fullnameOverride"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, _, err := release{values: tc.values}.render(t)
			if err == nil {
				t.Fatal("accepted")
			}
			// Versions of the library write paths with dots or slashes.
			text := err.Error()
			slashes := regexp.MustCompile(`([a-zA-Z0-9])\.([a-zA-Z0-9])`).ReplaceAllString(text, "$1/$2")
			for _, want := range tc.want {
				if !strings.Contains(text, want) && !strings.Contains("/"+slashes, want) {
					t.Errorf("error lacks %q:\n%s", want, text)
				}
			}
		})
	}
	t.Run("a release whose names would be too long", func(t *testing.T) {
		_, _, err := release{name: strings.Repeat("r", 53), namespace: "n"}.render(t)
		if err == nil || !strings.Contains(err.Error(), "fullnameOverride") {
			t.Errorf("error %v, want one that names fullnameOverride", err)
		}
	})
}

// Releases in one cluster share no object. With the values for a second release
// from the chart's README, they share neither a port nor a directory of a node.
func TestChartTwoReleases(t *testing.T) {
	second := release{}.fromMatrix(t, "second").values
	tests := map[string]struct{ a, b release }{
		"two names":      {release{name: "metaflow", namespace: "one"}, release{name: "other", namespace: "one", values: second}},
		"two namespaces": {release{name: "metaflow", namespace: "one"}, release{name: "metaflow", namespace: "two", values: second}},
		"dashes":         {release{name: "metaflow-b", namespace: "a"}, release{name: "b-metaflow", namespace: "metaflow", values: second}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			a, b := tc.a.objects(t), tc.b.objects(t)
			for _, problem := range a.join(b).audit() {
				t.Error(problem)
			}
		})
	}
	t.Run("the defaults twice", func(t *testing.T) {
		problems := release{name: "metaflow", namespace: "one"}.objects(t).
			join(release{name: "metaflow", namespace: "two"}.objects(t)).audit()
		for _, p := range problems {
			if !strings.Contains(p, "port 3") { // 30035, 30417, 38086, 38087
				t.Error(p)
			}
		}
		if len(problems) == 0 {
			t.Error("colliding node ports were not reported")
		}
	})
}

// A change of the configuration replaces the pods; a new version of the chart
// alone does not. The Job of a migration is never changed, only replaced.
func TestChartRollsOut(t *testing.T) {
	base := release{values: "clickhouse: {password: {value: x}}"}.objects(t)
	other := release{values: "clickhouse: {password: {value: x}}\nserver: {config: {retention: {spans: 24h}}}"}.objects(t)
	before, after := base.template("metaflow-server"), other.template("metaflow-server")
	if before.Annotations["checksum/config"] == after.Annotations["checksum/config"] {
		t.Error("a changed configuration does not replace the pods")
	}
	jobs := func(o *objects) (names []string) {
		for _, w := range o.workloads {
			if w.kind == "Job" {
				names = append(names, w.name)
			}
		}
		return names
	}
	if a, b := jobs(base), jobs(other); len(a) != 1 || len(b) != 1 || a[0] == b[0] {
		t.Errorf("jobs %v and %v, want two names", a, b)
	}
	scaled := release{values: "clickhouse: {password: {value: x}}\nserver: {replicas: 5}"}.objects(t)
	if a, b := jobs(base), jobs(scaled); a[0] != b[0] {
		t.Errorf("more replicas made the job %s of %s", b[0], a[0])
	}
	for _, w := range base.workloads {
		if w.kind == "Pod" {
			continue // the pod of helm test, recreated for every test
		}
		for key, value := range w.template.Labels {
			if strings.Contains(key, "version") || strings.Contains(key, "helm.sh/chart") {
				t.Errorf("pods of %s have the label %s=%s", w, key, value)
			}
		}
	}
}

// The server's file is the chart's configuration overridden by server.config,
// including zero values.
func TestChartConfigOverrides(t *testing.T) {
	o := release{values: "server: {config: {http: {listen: '127.0.0.1:9', pprof: false}, grpc: {listen: '0.0.0.0:4317', connection_age: 0s}, shutdown_grace: 1m30s}}"}.objects(t)
	var got struct {
		GRPC          struct{ Listen, ConnectionAge string }
		HTTP          struct{ Listen string }
		ShutdownGrace string `json:"shutdown_grace"`
	}
	if err := yaml.Unmarshal([]byte(o.configMap("metaflow-server")["metaflow-server.yaml"]), &got); err != nil {
		t.Fatal(err)
	}
	if got.GRPC.Listen != "0.0.0.0:4317" || got.HTTP.Listen != "127.0.0.1:9" || got.ShutdownGrace != "1m30s" {
		t.Errorf("configuration %+v", got)
	}
	pod := o.template("metaflow-server").Spec
	if grace := *pod.TerminationGracePeriodSeconds; grace != 110 {
		t.Errorf("grace period of pods is %d s, want 20 s more than shutdown_grace", grace)
	}
	var agent struct {
		Server struct{ Addresses []string }
	}
	if err := yaml.Unmarshal([]byte(o.configMap("metaflow-agent")["metaflow-agent.yaml"]), &agent); err != nil {
		t.Fatal(err)
	}
	if want := "metaflow-server-headless.observability.svc:4317"; len(agent.Server.Addresses) != 1 || agent.Server.Addresses[0] != want {
		t.Errorf("the agents' servers are %v, want %s", agent.Server.Addresses, want)
	}
}

// The Go runtime's soft limit is below the container's limit, in every notation
// of the limit.
func TestChartGoMemoryLimit(t *testing.T) {
	tests := map[string]struct{ values, server, agent string }{
		"default":  {"", "1717986918", "858993459"},
		"gigabyte": {"server: {resources: {limits: {memory: 2.5G}}}", "2000000000", "858993459"},
		"bytes":    {"server: {resources: {limits: {memory: 1000000000}}}", "800000000", "858993459"},
		"none":     {"agent: {resources: {limits: {memory: null}}}", "1717986918", ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			o := release{values: tc.values}.objects(t)
			for workload, want := range map[string]string{"metaflow-server": tc.server, "metaflow-agent": tc.agent} {
				if got := o.environment(workloadOf(t, o, workload))["GOMEMLIMIT"]; got != want {
					t.Errorf("GOMEMLIMIT of %s is %q, want %q", workload, got, want)
				}
			}
		})
	}
}

// Agents may hold the configured lease, in its namespace, and no other.
func TestAgentLease(t *testing.T) {
	o := release{}.fromMatrix(t, "agents").objects(t)
	role, ok := find[*rbac.Role](o, "kube-system", "metaflow-agent")
	if !ok {
		t.Fatal("no Role in the lease's namespace")
	}
	for _, rule := range role.Rules {
		named := slices.Equal(rule.ResourceNames, []string{"eyes"}) && slices.Equal(rule.Verbs, []string{"get", "update"})
		if !named && !slices.Equal(rule.Verbs, []string{"create"}) { // create cannot be restricted by name
			t.Errorf("rule %+v", rule)
		}
	}
	without := release{values: "agent: {config: {kubernetes: {lease: ''}}}"}.objects(t)
	each(without, func(r *rbac.Role) { t.Errorf("a Role %s exists without a lease", r.Name) })
}

func workloadOf(t *testing.T, o *objects, name string) (workload, core.Container) {
	t.Helper()
	for _, w := range o.workloads {
		if w.name == name {
			return w, w.template.Spec.Containers[0]
		}
	}
	t.Fatalf("%s not found", name)
	return workload{}, core.Container{}
}
