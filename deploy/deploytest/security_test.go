package deploytest

import (
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/prometheus/promql/parser"
	core "k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// Everything except the agent runs in namespaces that enforce the Pod Security
// Standard "restricted", and no pod except the agent's gets a token of the API.
func TestChartIsRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for name := range matrix {
		for _, w := range (release{}).fromMatrix(t, name).objects(t).workloads {
			if w.kind == "DaemonSet" {
				continue
			}
			for _, r := range evaluator.EvaluatePod(level, &w.template.ObjectMeta, &w.template.Spec) {
				if !r.Allowed {
					t.Errorf("%s: %s: %s: %s", name, w, r.ForbiddenReason, r.ForbiddenDetail)
				}
			}
			if token := w.template.Spec.AutomountServiceAccountToken; token == nil || *token {
				t.Errorf("%s: %s has a token of the API", name, w)
			}
			for _, c := range slices.Concat(w.template.Spec.InitContainers, w.template.Spec.Containers) {
				ours := strings.HasPrefix(c.Image, "metaflowys/")
				if s := c.SecurityContext; ours && (s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem) {
					t.Errorf("%s: the root file system of %s in %s is writable", name, c.Name, w)
				}
			}
		}
	}
}

// An agent has exactly the capabilities and namespaces that flow data needs,
// and none if flow data is disabled.
func TestAgentPrivileges(t *testing.T) {
	tests := map[string]struct {
		values           string
		add              []core.Capability
		hostPID, hostNet bool
	}{
		"flow data":              {"", []core.Capability{"NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"}, true, true},
		"traces alone":           {"agent: {flow: {enabled: false}}", nil, false, true},
		"without the node's net": {"agent: {flow: {enabled: false}, hostNetwork: false}", nil, false, false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			o := release{values: tc.values}.objects(t)
			pod := o.template("metaflow-agent").Spec
			c := pod.Containers[0].SecurityContext
			if diff := cmp.Diff(tc.add, c.Capabilities.Add); diff != "" {
				t.Errorf("capabilities (-want +got):\n%s", diff)
			}
			if !slices.Equal(c.Capabilities.Drop, []core.Capability{"ALL"}) || *c.AllowPrivilegeEscalation || c.Privileged != nil || !*c.ReadOnlyRootFilesystem {
				t.Errorf("security context %+v", c)
			}
			if pod.HostPID != tc.hostPID || pod.HostNetwork != tc.hostNet || pod.HostIPC {
				t.Errorf("hostPID %v, hostNetwork %v, hostIPC %v", pod.HostPID, pod.HostNetwork, pod.HostIPC)
			}
			if unconfined := c.AppArmorProfile != nil; unconfined != tc.hostPID {
				t.Errorf("AppArmor unconfined: %v", unconfined)
			}
			for _, v := range pod.Volumes {
				if v.HostPath != nil && v.Name != "spool" {
					t.Errorf("the node's %s is mounted", v.HostPath.Path)
				}
			}
		})
	}
}

// Clusters before 1.30 use an annotation.
func TestAgentOnOldCluster(t *testing.T) {
	pod := release{kubernetes: "v1.28.0"}.objects(t).template("metaflow-agent")
	if got := pod.Annotations["container.apparmor.security.beta.kubernetes.io/agent"]; got != "unconfined" || pod.Spec.Containers[0].SecurityContext.AppArmorProfile != nil {
		t.Errorf("annotation %q, field %v", got, pod.Spec.Containers[0].SecurityContext.AppArmorProfile)
	}
}

// Alerts are valid and use existing metrics.
func TestAlerts(t *testing.T) {
	source := sourceOfMetrics(t)
	rules := 0
	each(release{values: "prometheusRule: {enabled: true}"}.objects(t), func(r *monitoring.PrometheusRule) {
		for _, g := range r.Spec.Groups {
			for _, rule := range g.Rules {
				rules++
				expr, err := parser.NewParser(parser.Options{}).ParseExpr(rule.Expr.String())
				if err != nil {
					t.Errorf("%s: %v", rule.Alert, err)
					continue
				}
				parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
					if v, ok := node.(*parser.VectorSelector); ok {
						metric := strings.TrimSuffix(v.Name, "_bucket")
						if metric != "up" && !isMetric(source, metric) { // up is Prometheus's own
							t.Errorf("%s: no program has the metric %s", rule.Alert, metric)
						}
					}
					return nil
				})
				if rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" || rule.Labels["severity"] == "" {
					t.Errorf("%s lacks a severity or a description", rule.Alert)
				}
			}
		}
	})
	if rules == 0 {
		t.Error("found no alerts")
	}
}

// isMetric reports whether the source contains the name of a metric:
// completely, without its "metaflow_<subsystem>_", or built from the signal,
// spans or flows.
func isMetric(source, metric string) bool {
	parts := strings.SplitN(metric, "_", 3)
	for _, name := range []string{metric, parts[len(parts)-1]} {
		if strings.Contains(source, `"`+name+`"`) {
			return true
		}
		for _, items := range []string{"spans", "flows"} {
			before, after, ofItems := strings.Cut(name, items)
			if ofItems && strings.Contains(source, `"`+before+`"`) && strings.Contains(source, `"`+after+`"`) {
				return true
			}
		}
	}
	return false
}

// sourceOfMetrics returns the code of every package.
func sourceOfMetrics(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(filepath.Join(repository, "pkg"), func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			b.WriteString(read(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
