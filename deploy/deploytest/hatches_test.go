package deploytest

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// document is an object of any kind.
type document struct {
	APIVersion, Kind string
	Metadata         struct {
		Name, Namespace string
		Labels          map[string]string
	}
	Spec map[string]any
	Data map[string]string
}

// documents renders a release whose objects may be of kinds that Kubernetes itself does
// not have.
func (r release) documents(t *testing.T) []document {
	t.Helper()
	manifest, _, err := r.render(t)
	if err != nil {
		t.Fatal(err)
	}
	var all []document
	for _, text := range strings.Split("\n"+manifest, "\n---") {
		var d document
		if err := yaml.Unmarshal([]byte(text), &d); err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		if d.Kind != "" {
			all = append(all, d)
		}
	}
	return all
}

func (r release) document(t *testing.T, kind, name string) document {
	t.Helper()
	for _, d := range r.documents(t) {
		if d.Kind == kind && d.Metadata.Name == name {
			return d
		}
	}
	t.Fatalf("there is no %s %s", kind, name)
	return document{}
}

// Writers of a release run and scale apart from its gateways, with the same configuration.
func TestWritersApart(t *testing.T) {
	o := release{}.fromMatrix(t, "apart").objects(t)
	for name, want := range map[string]struct {
		roles, probe string
		replicas     int32
	}{
		"metaflow-server": {"gateway,control,query", "/ready?check=kafka&check=access&check=port", 3},
		"metaflow-writer": {"writer", "/ready?check=kafka&check=access", 4},
	} {
		w, c := workloadOf(t, o, name)
		if got := o.environment(w, c)["METAFLOW_ROLES"]; got != want.roles || w.replicas != want.replicas {
			t.Errorf("%s: %d replicas of %q", name, w.replicas, got)
		}
		if got := c.ReadinessProbe.HTTPGet.Path; got != want.probe || c.ReadinessProbe.FailureThreshold != 5 {
			t.Errorf("%s: probe %s, %d failures", name, got, c.ReadinessProbe.FailureThreshold)
		}
	}
}

// KEDA scales the writers by the lag of both topics.
func TestScaledObject(t *testing.T) {
	d := release{values: `server:
  config: {writer: {group: mine}}
  writers:
    enabled: true
    keda: {enabled: true, maxReplicas: 12, authenticationRef: login, metadata: {tls: enable}}
`}.document(t, "ScaledObject", "metaflow-writer")
	text, err := json.Marshal(d.Spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"kind":"StatefulSet","name":"metaflow-writer"`, `"maxReplicaCount":12`, `"consumerGroup":"mine"`, `"consumerGroup":"metaflow-flow-writer"`,
		`"topic":"metaflow.spans"`, `"topic":"metaflow.flows"`, `"bootstrapServers":"metaflow-kafka.observability.svc:9092"`, `"tls":"enable"`, `"name":"login"`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the ScaledObject lacks %s: %s", want, text)
		}
	}
	scaled := release{values: "server: {writers: {enabled: true, keda: {enabled: true}}}"}.document(t, "StatefulSet", "metaflow-writer")
	if n, ok := scaled.Spec["replicas"]; ok {
		t.Errorf("the StatefulSet sets %v replicas, which KEDA owns", n)
	}
}

func TestGRPCRoute(t *testing.T) {
	d := release{values: "server: {grpcRoute: {enabled: true, parentRefs: [{name: public}], hostnames: [otlp.example.com]}}"}.document(t, "GRPCRoute", "metaflow-server")
	text, err := json.Marshal(d.Spec)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"hostnames":["otlp.example.com"],"parentRefs":[{"name":"public"}],"rules":[{"backendRefs":[{"name":"metaflow-server","port":20035}]}]}`; string(text) != want {
		t.Errorf("route %s, want %s", text, want)
	}
}

// The ConfigMaps for Grafana's sidecar hold the dashboards as they are.
func TestGrafanaDashboards(t *testing.T) {
	files, err := filepath.Glob("../grafana/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d dashboards, %v", len(files), err)
	}
	r := release{values: "grafanaDashboards: {enabled: true, namespace: grafana}"}
	for _, f := range files {
		d := r.document(t, "ConfigMap", "metaflow-dashboard-"+strings.TrimSuffix(filepath.Base(f), ".json"))
		if strings.TrimSpace(d.Data[filepath.Base(f)]) != strings.TrimSpace(read(t, f)) {
			t.Errorf("%s differs", f)
		}
		if d.Metadata.Labels["grafana_dashboard"] != "1" || d.Metadata.Namespace != "grafana" {
			t.Errorf("%s: %+v", f, d.Metadata)
		}
	}
}

// The data sources for Grafana's sidecar have the uids that the dashboards ask, and lead to
// this release.
func TestGrafanaDatasources(t *testing.T) {
	type source struct {
		Name, UID, Type, URL string
		JSONData             map[string]any    `json:"jsonData"`
		Secure               map[string]string `json:"secureJsonData"`
	}
	provisioned := func(text string) map[string]source {
		var file struct{ Datasources []source }
		if err := yaml.Unmarshal([]byte(text), &file); err != nil {
			t.Fatal(err)
		}
		byUID := map[string]source{}
		for _, s := range file.Datasources {
			byUID[s.UID] = s
		}
		return byUID
	}
	const on = "grafanaDatasources: {enabled: true, namespace: grafana}\n"
	for name, tc := range map[string]struct {
		values string
		want   map[string]string // type, address and secret by uid
	}{
		"own engines": {
			"server: {query: {enabled: true}}",
			map[string]string{
				"metaflow":       "grafana-clickhouse-datasource metaflow-clickhouse.observability.svc:9000 metaflow $CLICKHOUSE_PASSWORD",
				"metaflow-tempo": "tempo http://metaflow-query.observability.svc:20419 ",
			},
		},
		"without the role query": {"", map[string]string{"metaflow": "grafana-clickhouse-datasource metaflow-clickhouse.observability.svc:9000 metaflow $CLICKHOUSE_PASSWORD"}},
		"own ClickHouse, TLS and tokens": {
			"clickhouse: {enabled: false}\nserver: {query: {enabled: true}, tls: {http: {secretName: h}, clickhouse: {secretName: c}}, config: {clickhouse: {addresses: ['[2001:db8::1]:9440'], username: writer, database: traces}, query: {tokens_file: /tokens}}}",
			map[string]string{
				"metaflow":       "grafana-clickhouse-datasource 2001:db8::1:9440 traces secure $CLICKHOUSE_PASSWORD",
				"metaflow-tempo": "tempo https://metaflow-query.observability.svc:20419 Authorization Bearer $METAFLOW_QUERY_TOKEN",
			},
		},
	} {
		d := release{values: on + tc.values}.document(t, "ConfigMap", "metaflow-datasources")
		if d.Metadata.Labels["grafana_datasource"] != "1" || d.Metadata.Namespace != "grafana" {
			t.Errorf("%s: %+v", name, d.Metadata)
		}
		got := map[string]string{}
		for uid, s := range provisioned(d.Data["metaflow.yaml"]) {
			switch s.Type {
			case "tempo":
				got[uid] = strings.TrimSuffix(fmt.Sprint(s.Type, " ", s.URL, " ", s.JSONData["httpHeaderName1"], " ", s.Secure["httpHeaderValue1"]), "<nil> ")
			default:
				secure := ""
				if s.JSONData["secure"] == true {
					secure = " secure"
				}
				got[uid] = fmt.Sprint(s.Type, " ", s.JSONData["host"], ":", s.JSONData["port"], " ", s.JSONData["defaultDatabase"], secure, " ", s.Secure["password"])
			}
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", name, diff)
		}
	}

	known := map[string]bool{"-- Grafana --": true}
	files, err := filepath.Glob("../grafana/datasources/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d data sources, %v", len(files), err)
	}
	for _, f := range files {
		for uid := range provisioned(read(t, f)) {
			known[uid] = true
		}
	}
	dashboards, err := filepath.Glob("../grafana/dashboards/*.json")
	if err != nil || len(dashboards) == 0 {
		t.Fatalf("%d dashboards, %v", len(dashboards), err)
	}
	asked := map[string]bool{}
	for _, f := range dashboards {
		for _, m := range regexp.MustCompile(`"datasource": *\{[^}]*"uid": *"([^"]+)"|%22datasource%22:%22([^%]+)%22`).FindAllStringSubmatch(read(t, f), -1) {
			asked[m[1]+m[2]] = true
			if !known[m[1]+m[2]] {
				t.Errorf("%s asks the data source %q, which is not provisioned", f, m[1]+m[2])
			}
		}
	}
	for _, uid := range []string{"metaflow", "metaflow-tempo", "metaflow-prometheus"} {
		if !asked[uid] {
			t.Errorf("no dashboard asks the data source %s", uid)
		}
	}
}

// Every panel says what it shows, or what to make of it.
func TestPanelsAreDescribed(t *testing.T) {
	files, err := filepath.Glob("../grafana/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d dashboards, %v", len(files), err)
	}
	for _, f := range files {
		var dashboard struct {
			Panels []struct{ Title, Description string }
		}
		if err := json.Unmarshal([]byte(read(t, f)), &dashboard); err != nil || len(dashboard.Panels) == 0 {
			t.Errorf("%s: %d panels, %v", f, len(dashboard.Panels), err)
		}
		for _, p := range dashboard.Panels {
			if p.Description == "" {
				t.Errorf("%s: the panel %q has no description", f, p.Title)
			}
		}
	}
}

// What other charts let one change, can be changed here.
func TestChartHatches(t *testing.T) {
	o := release{}.fromMatrix(t, "apart").objects(t)
	pod := o.template("metaflow-server").Spec
	if c := pod.SecurityContext; c.RunAsUser != nil || c.RunAsGroup != nil || c.FSGroup != nil || c.RunAsNonRoot == nil || !*c.RunAsNonRoot {
		t.Errorf("security context %+v, want one without ids", c)
	}
	names := func(pod core.PodSpec) (all []string) {
		for _, c := range pod.Containers {
			all = append(all, c.Name+" "+c.Image)
		}
		return all
	}
	if got := names(pod); len(got) != 2 || !strings.HasPrefix(got[0], "server registry.example.com/mirror/metaflowys/") || got[1] != "sidecar proxy:1" {
		t.Errorf("containers %v", got)
	}
	agent := o.template("metaflow-agent").Spec
	if c := agent.Containers[0].SecurityContext; *c.ReadOnlyRootFilesystem || len(c.Capabilities.Add) != 5 || agent.ServiceAccountName != "eyes" || len(agent.Containers) != 2 {
		t.Errorf("the agent's security context is %+v, its account %s", c, agent.ServiceAccountName)
	}
	account, ok := find[*core.ServiceAccount](o, "observability", "metaflow-server")
	if !ok || account.Annotations["example.com/role"] != "metaflow" {
		t.Errorf("account %+v", account)
	}
	without := release{values: "{rbac: {create: false}, server: {serviceAccount: {create: false}}, agent: {serviceAccount: {create: false, name: mine}}}"}.objects(t)
	each(without, func(r *rbac.ClusterRole) { t.Errorf("a role %s exists", r.Name) })
	each(without, func(a *core.ServiceAccount) { t.Errorf("an account %s exists", a.Name) })
	if got := []string{without.template("metaflow-server").Spec.ServiceAccountName, without.template("metaflow-agent").Spec.ServiceAccountName}; !slices.Equal(got, []string{"default", "mine"}) {
		t.Errorf("accounts %v", got)
	}
}

// Token files are mounted as a directory, which follows changes of the Secret, and named
// in the configuration.
func TestTokenFiles(t *testing.T) {
	o := release{}.fromMatrix(t, "apart").objects(t)
	text := o.configMap("metaflow-server")["metaflow-server.yaml"]
	for _, want := range []string{"group_tokens_file: /etc/metaflow/tokens/groups.txt", "read_tokens_file: /etc/metaflow/tokens/read.txt", "bearer_tokens_file: /etc/metaflow/tokens/otlp.txt"} {
		if !strings.Contains(text, want) {
			t.Errorf("the configuration lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, " agent_tokens_file") {
		t.Errorf("the configuration names a file that was not given:\n%s", text)
	}
	agent := o.configMap("metaflow-agent")["metaflow-agent.yaml"]
	for _, want := range []string{"token_file: /etc/metaflow/tokens/group.txt", "bearer_tokens_file: /etc/metaflow/tokens/otlp.txt"} {
		if !strings.Contains(agent, want) {
			t.Errorf("the agent's configuration lacks %q:\n%s", want, agent)
		}
	}
	for _, name := range []string{"metaflow-server", "metaflow-writer", "metaflow-agent"} {
		if !slices.ContainsFunc(o.template(name).Spec.Containers[0].VolumeMounts, func(m core.VolumeMount) bool {
			return m.Name == "tokens" && m.MountPath == "/etc/metaflow/tokens" && m.SubPath == "" && m.ReadOnly
		}) {
			t.Errorf("%s does not mount the tokens", name)
		}
	}
}
