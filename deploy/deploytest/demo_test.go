package deploytest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// demos are the directories of demo manifests and their namespaces. file holds
// the addresses configured in the image.
var demos = map[string]struct{ namespace, file string }{
	"spring-boot": {namespace: "springboot-otel-demo", file: "../demo/spring-boot/src/main/resources/application.yaml"},
	"webstore":    {namespace: "open-telemetry-demo"},
}

func demo(t *testing.T, name string) *objects {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../demo", name, "manifests", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("manifests %v, %v", files, err)
	}
	var all strings.Builder
	for _, f := range files {
		all.WriteString("---\n" + read(t, f))
	}
	return decode(t, all.String(), demos[name].namespace)
}

// The demos' manifests decode strictly, every reference resolves, and their
// pods run in namespaces that enforce the Pod Security Standard "restricted".
func TestDemoManifests(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	dirs, err := filepath.Glob("../demo/*/manifests")
	if err != nil || len(dirs) != len(demos) {
		t.Fatalf("manifests are in %v, %v", dirs, err)
	}
	for name := range demos {
		t.Run(name, func(t *testing.T) {
			o := demo(t, name)
			for _, problem := range o.audit() {
				t.Error(problem)
			}
			for _, object := range o.all {
				if ns := object.GetNamespace(); ns != demos[name].namespace {
					t.Errorf("%s %s is in the namespace %s", o.kinds[object], object.GetName(), ns)
				}
			}
			for _, w := range o.workloads {
				for _, r := range evaluator.EvaluatePod(level, &w.template.ObjectMeta, &w.template.Spec) {
					if !r.Allowed {
						t.Errorf("%s: %s: %s", w, r.ForbiddenReason, r.ForbiddenDetail)
					}
				}
			}
		})
	}
}

// Every configured address belongs to a Service and one of its ports: in the
// demo, or of the collector that receives the spans.
func TestDemoAddresses(t *testing.T) {
	for name, d := range demos {
		t.Run(name, func(t *testing.T) {
			o := demo(t, name)
			all := o.join(otelAgent(t))
			found := 0
			check := func(by, host, port string) {
				found++
				if problem := all.resolve(d.namespace, host, port); problem != "" {
					t.Errorf("%s: %s", by, problem)
				}
			}
			for _, w := range o.workloads {
				for _, c := range slices.Concat(w.template.Spec.InitContainers, w.template.Spec.Containers) {
					env := o.environment(w, c)
					for variable, value := range env {
						for _, a := range addresses(value) {
							check(w.String()+" "+variable, a.host, a.port)
						}
						prefix, isHost := strings.CutSuffix(variable, "_HOST")
						if !isHost {
							continue
						}
						check(w.String()+" "+variable, value, "")
						for other, port := range env {
							if strings.HasPrefix(other, prefix+"_") && strings.HasSuffix(other, "_PORT") {
								check(w.String()+" "+other, value, port)
							}
						}
					}
					text := strings.Join(slices.Concat(c.Command, c.Args), " ")
					for _, a := range addresses(text) {
						check(w.String(), a.host, a.port)
					}
					for _, m := range regexp.MustCompile(`(?:-h|--host) ([a-z][a-z-]*)`).FindAllStringSubmatch(text, -1) {
						check(w.String(), m[1], "")
					}
				}
			}
			if d.file != "" {
				for _, a := range addresses(read(t, d.file)) {
					check(d.file, a.host, a.port)
				}
			}
			if found < len(o.workloads) {
				t.Errorf("found only %d addresses", found)
			}
		})
	}
}

// Everything that sends spans names its service after itself and sends to the
// collector of its node.
func TestDemoServiceNames(t *testing.T) {
	for name := range demos {
		t.Run(name, func(t *testing.T) {
			o := demo(t, name)
			traced := 0
			for _, w := range o.workloads {
				for _, c := range w.template.Spec.Containers {
					env := o.environment(w, c)
					for variable := range env {
						if !regexp.MustCompile(`^[A-Z_][A-Z0-9_]*$`).MatchString(variable) {
							t.Errorf("%s: %q is not the name of a variable", w, variable)
						}
					}
					endpoint := env["OTEL_EXPORTER_OTLP_ENDPOINT"]
					if endpoint == "" {
						continue
					}
					traced++
					if !strings.HasPrefix(endpoint, "http://otel-agent.open-telemetry:") {
						t.Errorf("%s sends its spans to %s", w, endpoint)
					}
					if got := env["OTEL_SERVICE_NAME"]; got != w.name {
						t.Errorf("%s has the service name %q", w, got)
					}
					for _, key := range []string{"service.namespace=", "k8s.pod.uid=$(POD_UID)", "k8s.pod.ip=$(POD_IP)"} {
						if !strings.Contains(env["OTEL_RESOURCE_ATTRIBUTES"], key) {
							t.Errorf("%s lacks %s", w, key)
						}
					}
				}
			}
			if traced == 0 {
				t.Error("found nothing that sends spans")
			}
		})
	}
}

// The services of the WebStore are those of the documented graph, under their
// current names, and each is configured with the services that it calls there.
func TestWebStoreGraph(t *testing.T) {
	calls := map[string][]string{
		"load-generator":  {"frontend"},
		"frontend":        {"ad", "cart", "product-catalog", "checkout", "currency", "recommendation", "shipping"},
		"checkout":        {"cart", "product-catalog", "currency", "email", "payment", "shipping"},
		"cart":            {"valkey-cart"},
		"recommendation":  {"product-catalog"},
		"ad":              nil,
		"currency":        nil,
		"email":           nil,
		"payment":         nil,
		"product-catalog": {"astronomy-db"},
		"shipping":        {"quote"},
	}
	o := demo(t, "webstore")
	for caller, callees := range calls {
		var known []string
		for _, w := range o.workloads {
			if w.name != caller {
				continue
			}
			for _, value := range o.environment(w, w.template.Spec.Containers[0]) {
				for _, a := range addresses(value) {
					known = append(known, a.host)
				}
			}
		}
		for _, callee := range callees {
			if !slices.Contains(known, callee) {
				t.Errorf("%s is not configured with %s, only with %v", caller, callee, known)
			}
		}
		if known == nil {
			t.Errorf("%s not found", caller)
		}
	}
}

// flagd can read its file: every flag has the variant that it is set to.
func TestWebStoreFlags(t *testing.T) {
	var file struct {
		Flags map[string]struct {
			State          string
			DefaultVariant string
			Variants       map[string]any
		}
	}
	if err := json.Unmarshal([]byte(demo(t, "webstore").configMap("flagd")["demo.flagd.json"]), &file); err != nil {
		t.Fatal(err)
	}
	for name, f := range file.Flags {
		if _, ok := f.Variants[f.DefaultVariant]; !ok || f.State != "ENABLED" {
			t.Errorf("%s is %s and set to %q, of %v", name, f.State, f.DefaultVariant, f.Variants)
		}
	}
	if file.Flags["loadGeneratorTraffic"].DefaultVariant != "on" {
		t.Error("the load generator is off")
	}
}

type address struct{ host, port string }

// addresses finds host:port in a text, alone or in URLs, except addresses of
// the process itself.
func addresses(text string) (found []address) {
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \n\t\"',;=", r) }) {
		if u, err := url.Parse(strings.TrimPrefix(word, "jdbc:h2:")); err == nil && u.Host != "" {
			word = u.Host
		}
		host, port, err := net.SplitHostPort(word)
		if err != nil || !regexp.MustCompile(`^[a-z][a-z0-9.-]*$`).MatchString(host) {
			continue
		}
		if _, err := strconv.Atoi(port); err == nil {
			found = append(found, address{host, port})
		}
	}
	return found
}

// resolve returns what is wrong with an address used by pods of a namespace, or
// "". An empty port matches any.
func (o *objects) resolve(namespace, host, port string) string {
	name, rest, qualified := strings.Cut(host, ".")
	if qualified {
		namespace, _, _ = strings.Cut(rest, ".")
	}
	s, ok := find[*core.Service](o, namespace, name)
	if !ok {
		return fmt.Sprintf("no Service %s in %s", name, namespace)
	}
	if port != "" && !slices.ContainsFunc(s.Spec.Ports, func(p core.ServicePort) bool { return strconv.Itoa(int(p.Port)) == port }) {
		return fmt.Sprintf("Service %s has no port %s", name, port)
	}
	return ""
}

// environment returns the environment of a container, as far as the manifests
// define it.
func (o *objects) environment(w workload, c core.Container) map[string]string {
	env := map[string]string{}
	for _, from := range c.EnvFrom {
		if m, ok := find[*core.ConfigMap](o, w.namespace, from.ConfigMapRef.Name); ok {
			maps.Copy(env, m.Data)
		}
	}
	for _, e := range c.Env {
		env[e.Name] = e.Value
	}
	return env
}
