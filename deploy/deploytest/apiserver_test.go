package deploytest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	authorization "k8s.io/api/authorization/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"
)

// A real Kubernetes API server accepts every object of the chart and the
// manifests, warns only of the agents' privileges, accepts an upgrade, and
// grants the agents the requests that they make. Nothing behind it runs pods.
func TestAPIServer(t *testing.T) {
	api := startAPIServer(t)
	for name := range matrix {
		t.Run(name, func(t *testing.T) {
			r := release{name: "metaflow", namespace: "chart-" + name}.fromMatrix(t, name)
			api.namespace(t, r.namespace)
			t.Cleanup(func() { api.freePorts(t, r.namespace) })
			for step, more := range []string{"", "\nagent: {podLabels: {upgraded: 'yes'}}\nserver: {podLabels: {upgraded: 'yes'}}"} {
				upgraded := r
				upgraded.values = overlay(t, r.values, more)
				manifest, _, err := upgraded.render(t)
				if err != nil {
					t.Fatal(err)
				}
				for _, w := range api.apply(t, manifest) {
					if !strings.Contains(w, `container "agent"`) {
						t.Errorf("step %d: %s", step, w)
					}
				}
			}
			api.agentMay(t, r)
		})
	}
	manifests := map[string]string{"open-telemetry": read(t, filepath.Join(otelAgentDir, "otel-agent.yaml"))}
	for name, d := range demos {
		files, err := filepath.Glob(filepath.Join("../demo", name, "manifests", "*.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			manifests[d.namespace] += "---\n" + read(t, f)
		}
	}
	for namespace, manifest := range manifests {
		t.Run(namespace, func(t *testing.T) {
			api.namespace(t, namespace)
			for range 2 {
				for _, w := range api.apply(t, manifest) {
					t.Error(w)
				}
			}
		})
	}
}

// overlay merges values over values, as helm merges further files.
func overlay(t *testing.T, texts ...string) string {
	t.Helper()
	all := map[string]any{}
	for _, text := range texts {
		values := map[string]any{}
		if err := yaml.Unmarshal([]byte(text), &values); err != nil {
			t.Fatal(err)
		}
		for section, v := range values {
			below, ok := all[section].(map[string]any)
			if !ok {
				all[section] = v
				continue
			}
			for key, value := range v.(map[string]any) {
				below[key] = value
			}
		}
	}
	out, err := yaml.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// apiServer is a client of an API server.
type apiServer struct {
	typed    kubernetes.Interface
	untyped  dynamic.Interface
	mapper   *restmapper.DeferredDiscoveryRESTMapper
	warnings *warnings
}

// warnings collects the server's warnings.
type warnings struct{ texts []string }

func (w *warnings) HandleWarningHeader(_ int, _, text string) { w.texts = append(w.texts, text) }

// startAPIServer starts etcd and an API server that enforces RBAC and Pod
// Security, and stops them when the test ends.
func startAPIServer(t *testing.T) *apiServer {
	t.Helper()
	bin, err := filepath.Abs(filepath.Join(repository, ".cache", "kubernetes"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "kube-apiserver")); err != nil {
		t.Skip("no API server: run `make kube-apiserver`")
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	start := func(program string, args ...string) {
		log, err := os.Create(filepath.Join(dir, program+".log"))
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(filepath.Join(bin, program), args...)
		cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, dir
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			_ = log.Close()
			if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
				t.Logf("%s: %s", program, text[max(0, len(text)-2000):])
			}
		})
	}
	client, peer, secure := freeAddress(t), freeAddress(t), freeAddress(t)
	start("etcd", "--data-dir", filepath.Join(dir, "etcd"), "--log-level", "error", "--unsafe-no-fsync",
		"--listen-client-urls", "http://"+client, "--advertise-client-urls", "http://"+client,
		"--listen-peer-urls", "http://"+peer, "--initial-advertise-peer-urls", "http://"+peer, "--initial-cluster", "default=http://"+peer)
	key := write("service-account.key", newKey(t))
	_, port, _ := net.SplitHostPort(secure)
	start("kube-apiserver", "--etcd-servers", "http://"+client, "--bind-address", "127.0.0.1", "--secure-port", port,
		"--cert-dir", filepath.Join(dir, "certificates"), "--token-auth-file", write("tokens.csv", `test,admin,admin,"system:masters"`+"\n"),
		"--authorization-mode", "RBAC", "--service-cluster-ip-range", "10.96.0.0/16",
		"--service-account-key-file", key, "--service-account-signing-key-file", key, "--service-account-issuer", "https://kubernetes")

	server := &warnings{}
	config := &rest.Config{Host: "https://" + secure, BearerToken: "test", QPS: 500, Burst: 500, WarningHandler: server, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	typed, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	untyped, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	deadline, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		// The server creates these namespaces last when it starts.
		if _, err = typed.CoreV1().Namespaces().Get(deadline, "kube-public", meta.GetOptions{}); err == nil {
			break
		}
		select {
		case <-deadline.Done():
			t.Fatalf("the API server did not start: %v", err)
		case <-time.After(200 * time.Millisecond):
		}
	}
	return &apiServer{typed, untyped, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(typed.Discovery())), server}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// namespace creates a namespace that warns of pods which are not restricted.
func (a *apiServer) namespace(t *testing.T, name string) {
	t.Helper()
	for _, n := range []string{name, "kube-system"} {
		labels := map[string]string{}
		if n == name {
			labels["pod-security.kubernetes.io/warn"] = "restricted"
		}
		_, err := a.typed.CoreV1().Namespaces().Get(t.Context(), n, meta.GetOptions{})
		if err == nil {
			continue
		}
		if _, err := a.typed.CoreV1().Namespaces().Create(t.Context(), &core.Namespace{ObjectMeta: meta.ObjectMeta{Name: n, Labels: labels}}, meta.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// apply applies objects like `kubectl apply --server-side --validate=strict`
// and returns the server's warnings.
func (a *apiServer) apply(t *testing.T, manifest string) []string {
	t.Helper()
	a.warnings.texts = nil
	var objects []*unstructured.Unstructured
	for document := range strings.SplitSeq("\n"+manifest, "\n---") {
		o := &unstructured.Unstructured{}
		if isEmpty([]byte(document)) {
			continue
		}
		if err := yaml.Unmarshal([]byte(document), &o.Object); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	// Accounts first: a pod is rejected without its account.
	slices.SortStableFunc(objects, func(x, y *unstructured.Unstructured) int {
		return rank(x.GetKind()) - rank(y.GetKind())
	})
	for _, o := range objects {
		if strings.HasPrefix(o.GetAPIVersion(), "monitoring.coreos.com/") {
			continue // the operator's types are not part of Kubernetes
		}
		kind := o.GroupVersionKind()
		mapping, err := a.mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		var client dynamic.ResourceInterface = a.untyped.Resource(mapping.Resource)
		if o.GetNamespace() != "" {
			client = a.untyped.Resource(mapping.Resource).Namespace(o.GetNamespace())
		}
		text, err := yaml.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Patch(t.Context(), o.GetName(), "application/apply-patch+yaml", text,
			meta.PatchOptions{FieldManager: "test", FieldValidation: meta.FieldValidationStrict})
		// The pod of helm test cannot be changed; helm recreates it.
		fixed := kind.Kind == "Pod" && err != nil && strings.Contains(err.Error(), "pod updates may not change fields")
		if err != nil && !fixed {
			t.Errorf("%s %s: %v", kind.Kind, o.GetName(), err)
		}
	}
	return a.warnings.texts
}

func rank(kind string) int {
	if kind == "ServiceAccount" {
		return 0
	}
	return 1
}

// freePorts deletes the services that use node ports.
func (a *apiServer) freePorts(t *testing.T, namespace string) {
	t.Helper()
	services, err := a.typed.CoreV1().Services(namespace).List(context.WithoutCancel(t.Context()), meta.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range services.Items {
		if err := a.typed.CoreV1().Services(namespace).Delete(context.WithoutCancel(t.Context()), s.Name, meta.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// agentMay checks with the server that the agents of a release may do what they
// need, and nothing else.
func (a *apiServer) agentMay(t *testing.T, r release) {
	t.Helper()
	o := r.objects(t)
	if o.configMap("metaflow-agent") == nil {
		return
	}
	var file struct {
		Kubernetes struct{ Enabled, Lease, Namespace string }
	}
	if err := yaml.Unmarshal([]byte(o.configMap("metaflow-agent")["metaflow-agent.yaml"]), &file); err != nil {
		t.Fatal(err)
	}
	k := file.Kubernetes
	if k.Namespace == "" {
		k.Namespace = r.namespace
	}
	asks := k.Enabled == "true"
	set, ok := find[*apps.DaemonSet](o, r.namespace, "metaflow-agent")
	if !ok {
		t.Fatal("no DaemonSet of the agents")
	}
	account := set.Spec.Template.Spec.ServiceAccountName
	for _, tc := range []struct {
		resource authorization.ResourceAttributes
		want     bool
	}{
		{authorization.ResourceAttributes{Verb: "list", Resource: "pods"}, asks},
		{authorization.ResourceAttributes{Verb: "watch", Resource: "services"}, asks},
		{authorization.ResourceAttributes{Verb: "watch", Group: "discovery.k8s.io", Resource: "endpointslices"}, asks},
		{authorization.ResourceAttributes{Verb: "create", Group: "coordination.k8s.io", Resource: "leases", Namespace: k.Namespace}, asks},
		{authorization.ResourceAttributes{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: k.Namespace, Name: k.Lease}, asks},
		{authorization.ResourceAttributes{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: k.Namespace, Name: "of-another"}, false},
		{authorization.ResourceAttributes{Verb: "get", Resource: "secrets", Namespace: r.namespace}, false},
		{authorization.ResourceAttributes{Verb: "delete", Resource: "pods", Namespace: r.namespace}, false},
	} {
		review, err := a.typed.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorization.SubjectAccessReview{
			Spec: authorization.SubjectAccessReviewSpec{
				User: fmt.Sprintf("system:serviceaccount:%s:%s", r.namespace, account), ResourceAttributes: &tc.resource,
			},
		}, meta.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if review.Status.Allowed != tc.want {
			t.Errorf("agents allowed %+v: %v, want %v", tc.resource, review.Status.Allowed, tc.want)
		}
	}
}

// newKey returns a private key for the tokens of service accounts.
func newKey(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: text}))
}
