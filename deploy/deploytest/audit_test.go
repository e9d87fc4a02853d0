package deploytest

import (
	"path/filepath"
	"strings"
	"testing"
)

// The audit sees what is broken in a manifest that was whole.
func TestAuditFinds(t *testing.T) {
	whole := read(t, filepath.Join("testdata/chart", "first-try.yaml"))
	if problems := decode(t, whole, "").audit(); len(problems) > 0 {
		t.Fatalf("it finds %v in what is whole", problems)
	}
	tests := map[string]struct{ old, broken, want string }{
		"a service that selects nothing":   {"  selector:\n    app.kubernetes.io/name: metaflow\n", "  selector:\n    app.kubernetes.io/name: metaflux\n", "selects the pods of []"},
		"a port that no container has":     {"targetPort: native", "targetPort: nativ", "has no port nativ"},
		"a probe of a port that is none":   {"path: /healthz\n              port: http", "path: /healthz\n              port: ops", "has no port ops"},
		"a key that is not in the map":     {"subPath: metaflow-server.yaml", "subPath: server.yaml", "has no key server.yaml"},
		"a ConfigMap that is not there":    {"configMap:\n            name: metaflow-agent", "configMap:\n            name: agent", "there is no ConfigMap agent"},
		"a Secret's key that is not there": {"                  key: password", "                  key: pass", "has no key pass"},
		"a volume that is not there":       {"- name: spool\n              mountPath", "- name: spools\n              mountPath", "the volume spools, which is none"},
		"two services on a node's port":    {"nodePort: 30417", "nodePort: 30035", "both want node port 30035"},
		"an account that is not there":     {"serviceAccountName: metaflow-agent", "serviceAccountName: agent", "there is no ServiceAccount agent"},
		"a role that is not there":         {"kind: Role\n  name: metaflow-agent", "kind: Role\n  name: agent", "there is no Role agent"},
		"no headless service":              {"serviceName: metaflow-kafka", "serviceName: kafka", "there is no headless Service kafka"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			manifest := strings.ReplaceAll(whole, tc.old, tc.broken)
			if manifest == whole {
				t.Fatalf("there is no %q to break", tc.old)
			}
			problems := strings.Join(decode(t, manifest, "").audit(), "\n")
			if !strings.Contains(problems, tc.want) {
				t.Errorf("it does not say %q, but:\n%s", tc.want, problems)
			}
		})
	}
}

// A field that a type does not have, or one given twice, is refused.
func TestDecodeIsStrict(t *testing.T) {
	for name, text := range map[string]string{
		"unknown": "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selectr: {}}\n",
		"twice":   "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  type: ClusterIP\n  type: NodePort\n",
		"no kind": "apiVersion: v1\nkind: Servicer\n",
	} {
		if _, _, err := strict.Decode([]byte(text), nil, nil); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
}
