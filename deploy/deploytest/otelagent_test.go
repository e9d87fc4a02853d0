package deploytest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
)

const otelAgentDir = "../otel-agent"

// agentEndpoint is where the collector of a node reaches the agent of that
// node.
const agentEndpoint = "traces_endpoint: http://${env:HOST_IP}:38086/api/v1/otel/trace"

func otelAgent(t *testing.T) *objects {
	t.Helper()
	return decode(t, read(t, filepath.Join(otelAgentDir, "otel-agent.yaml")), "open-telemetry")
}

// The objects of the document's table exist in the namespace that it names and
// are consistent.
func TestOtelAgent(t *testing.T) {
	o := otelAgent(t)
	for _, problem := range o.audit() {
		t.Error(problem)
	}
	for _, object := range o.all {
		if ns := object.GetNamespace(); ns != "open-telemetry" && !strings.HasPrefix(o.kinds[object], "Cluster") {
			t.Errorf("%s %s is in the namespace %q", o.kinds[object], object.GetName(), ns)
		}
	}
	set, ok := find[*apps.DaemonSet](o, "open-telemetry", "otel-agent")
	if !ok || set.Spec.Template.Spec.Containers[0].Name != "otel-agent" {
		t.Error("`kubectl set image daemonset/otel-agent otel-agent=...` finds nothing")
	}
	service, ok := find[*core.Service](o, "open-telemetry", "otel-agent")
	if !ok || service.Spec.InternalTrafficPolicy == nil || *service.Spec.InternalTrafficPolicy != core.ServiceInternalTrafficPolicyLocal {
		t.Error("the Service otel-agent sends spans to other nodes")
	}
	for _, name := range []string{"otel-agent", "otel-agent-conf"} {
		if _, ok := find[*core.ConfigMap](o, "open-telemetry", name); !ok {
			t.Errorf("no ConfigMap %s", name)
		}
	}
}

// Every variable in the configuration is in the pod's environment.
func TestOtelAgentEnvironment(t *testing.T) {
	o := otelAgent(t)
	container := o.template("otel-agent").Spec.Containers[0]
	var known []string
	for _, e := range container.Env {
		known = append(known, e.Name)
	}
	for _, from := range container.EnvFrom {
		for name := range o.configMap(from.ConfigMapRef.Name) {
			known = append(known, name)
		}
	}
	text := o.configMap("otel-agent-conf")["otel-agent-config.yaml"]
	used := []string{"KUBE_NODE_NAME"}
	for _, part := range strings.Split(text, "${env:")[1:] {
		name, _, _ := strings.Cut(part, "}")
		used = append(used, name)
	}
	for _, name := range used {
		if !slices.Contains(known, name) {
			t.Errorf("the variable %s is not set", name)
		}
	}
}

// Processors are in the right order: the memory limiter first, and those that
// need the sender's connection before batch, which loses it.
func TestOtelAgentOrder(t *testing.T) {
	tests := map[string]struct {
		text string
		want []string
	}{
		"kubernetes": {otelAgent(t).configMap("otel-agent-conf")["otel-agent-config.yaml"], []string{"memory_limiter", "k8sattributes", "resource", "batch"}},
		"host":       {read(t, filepath.Join(otelAgentDir, "host.yaml")), []string{"memory_limiter", "batch"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var config struct {
				Service struct {
					Pipelines map[string]struct{ Processors []string }
				}
			}
			if err := yaml.Unmarshal([]byte(tc.text), &config); err != nil {
				t.Fatal(err)
			}
			if got := config.Service.Pipelines["traces"].Processors; !slices.Equal(got, tc.want) {
				t.Errorf("processors %v, want %v", got, tc.want)
			}
		})
	}
}

// The document's command shows the address: on the output format of kubectl,
// and with kubectl itself if it is installed.
func TestOtelAgentAddressIsShown(t *testing.T) {
	o := otelAgent(t)
	config, ok := find[*core.ConfigMap](o, "open-telemetry", "otel-agent-conf")
	if !ok {
		t.Fatal("no ConfigMap otel-agent-conf")
	}
	t.Run("as printed", func(t *testing.T) {
		if !grepAfter(fmt.Sprint(config.Data), "otlphttp", agentEndpoint) {
			t.Errorf("grep -A 1 otlphttp does not print %s", agentEndpoint)
		}
	})
	t.Run("kubectl", func(t *testing.T) {
		kubectl, err := exec.LookPath("kubectl")
		if err != nil {
			t.Skip("no kubectl on the PATH")
		}
		api := httptest.NewServer(oneConfigMap(t, config))
		defer api.Close()
		cmd := exec.Command("sh", "-c", fmt.Sprintf("%s --server %s get cm -n open-telemetry otel-agent-conf -o custom-columns=DATA:.data | grep -A 1 otlphttp", kubectl, api.URL))
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "KUBECONFIG=")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), agentEndpoint) {
			t.Errorf("the document's command: %v\n%s", err, out)
		}
	})
}

// grepAfter reports whether the line after one with word contains want.
func grepAfter(text, word, want string) bool {
	lines := strings.Split(text, "\n")
	for i := 1; i < len(lines); i++ {
		if strings.Contains(lines[i-1], word) && strings.Contains(lines[i], want) {
			return true
		}
	}
	return false
}

// oneConfigMap serves as much of the Kubernetes API as kubectl needs to get one
// ConfigMap.
func oneConfigMap(t *testing.T, m *core.ConfigMap) http.Handler {
	t.Helper()
	answer := func(v any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(v); err != nil {
				t.Error(err)
			}
		}
	}
	type object = map[string]any
	m.APIVersion, m.Kind = "v1", "ConfigMap"
	mux := http.NewServeMux()
	mux.Handle("GET /api", answer(object{"kind": "APIVersions", "versions": []string{"v1"}}))
	mux.Handle("GET /apis", answer(object{"kind": "APIGroupList", "apiVersion": "v1", "groups": []any{}}))
	mux.Handle("GET /api/v1", answer(object{"kind": "APIResourceList", "groupVersion": "v1", "resources": []any{
		object{"name": "configmaps", "singularName": "configmap", "namespaced": true, "kind": "ConfigMap", "verbs": []string{"get"}, "shortNames": []string{"cm"}},
	}}))
	mux.Handle("GET /api/v1/namespaces/open-telemetry/configmaps/otel-agent-conf", answer(m))
	return mux
}

// The real collector accepts the configurations, and warns only of names that
// it knows under newer ones.
func TestCollectorAcceptsConfigurations(t *testing.T) {
	collector, err := filepath.Abs(filepath.Join(repository, ".cache", "collector", "otelcol"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(collector); err != nil {
		t.Skip("no collector: run `make collector`")
	}
	configurations := map[string]string{
		"kubernetes": otelAgent(t).configMap("otel-agent-conf")["otel-agent-config.yaml"],
		"host":       read(t, filepath.Join(otelAgentDir, "host.yaml")),
	}
	for name, text := range configurations {
		t.Run(name, func(t *testing.T) {
			if out, err := validate(t, collector, text); err != nil {
				t.Errorf("otelcol validate: %v\n%s", err, out)
			}
		})
	}
	t.Run("unknown attribute", func(t *testing.T) {
		broken := strings.Replace(configurations["kubernetes"], "k8s.pod.ip\n", "k8s.pod.address\n", 1)
		if _, err := validate(t, collector, broken); err == nil {
			t.Error("the collector accepts an unknown attribute")
		}
	})
}

func validate(t *testing.T, collector, text string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(collector, "validate", "--config", file)
	cmd.Env = append(os.Environ(), "HOST_IP=192.0.2.1", "KUBE_NODE_NAME=node", "LOG_LEVEL=info",
		"KUBERNETES_SERVICE_HOST=192.0.2.2", "KUBERNETES_SERVICE_PORT=443")
	out, err := cmd.CombinedOutput()
	return string(out), err
}
