package deploytest

import (
	"path/filepath"
	"strings"
	"testing"
)

// The audit finds what is broken in an intact manifest.
func TestAuditFinds(t *testing.T) {
	whole := read(t, filepath.Join("testdata/chart", "first-try.yaml"))
	if problems := decode(t, whole, "").audit(); len(problems) > 0 {
		t.Fatalf("problems in an intact manifest: %v", problems)
	}
	tests := map[string]struct{ old, broken, want string }{
		"a service that selects nothing": {"  selector:\n    app.kubernetes.io/name: metaflow\n", "  selector:\n    app.kubernetes.io/name: metaflux\n", "selects the pods of []"},
		"an unknown port":                {"targetPort: native", "targetPort: nativ", "has no port nativ"},
		"a probe of an unknown port":     {"path: /healthz\n              port: http", "path: /healthz\n              port: ops", "has no port ops"},
		"an unknown key of a ConfigMap":  {"subPath: metaflow-server.yaml", "subPath: server.yaml", "has no key server.yaml"},
		"a missing ConfigMap":            {"configMap:\n            name: metaflow-agent", "configMap:\n            name: agent", "no ConfigMap agent"},
		"an unknown key of a Secret":     {"                  key: password", "                  key: pass", "has no key pass"},
		"a missing volume":               {"- name: spool\n              mountPath", "- name: spools\n              mountPath", "the missing volume spools"},
		"two services on one node port":  {"nodePort: 30417", "nodePort: 30035", "both claim node port 30035"},
		"a missing account":              {"serviceAccountName: metaflow-agent", "serviceAccountName: agent", "no ServiceAccount agent"},
		"a missing role":                 {"kind: Role\n  name: metaflow-agent", "kind: Role\n  name: agent", "no Role agent"},
		"no headless service":            {"serviceName: metaflow-kafka", "serviceName: kafka", "no headless Service kafka"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			manifest := strings.ReplaceAll(whole, tc.old, tc.broken)
			if manifest == whole {
				t.Fatalf("the manifest lacks %q", tc.old)
			}
			problems := strings.Join(decode(t, manifest, "").audit(), "\n")
			if !strings.Contains(problems, tc.want) {
				t.Errorf("problems lack %q:\n%s", tc.want, problems)
			}
		})
	}
}

// Unknown and duplicate fields are rejected.
func TestDecodeIsStrict(t *testing.T) {
	for name, text := range map[string]string{
		"unknown": "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selectr: {}}\n",
		"twice":   "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  type: ClusterIP\n  type: NodePort\n",
		"no kind": "apiVersion: v1\nkind: Servicer\n",
	} {
		if _, _, err := strict.Decode([]byte(text), nil, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
