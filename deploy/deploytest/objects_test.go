package deploytest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	rbac "k8s.io/api/rbac/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	yamlutil "k8s.io/apimachinery/pkg/util/yaml"
)

// objects are the objects created by one or more manifests, and those that
// exist before.
type objects struct {
	all       []meta.Object
	kinds     map[meta.Object]string
	workloads []workload
	// secrets are the existing Secrets with their keys.
	secrets map[string][]string
}

// workload is an object that creates pods.
type workload struct {
	kind, namespace, name string
	replicas              int32
	selector              *meta.LabelSelector
	template              core.PodTemplateSpec
	claims                []string // names of the volumes that claims provide
	serviceName           string
}

func (w workload) String() string { return w.kind + " " + w.namespace + "/" + w.name }

var strict = func() runtime.Decoder {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		core.AddToScheme, apps.AddToScheme, batch.AddToScheme, autoscaling.AddToScheme, networking.AddToScheme,
		policy.AddToScheme, rbac.AddToScheme, monitoring.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
}()

// decode decodes every document into its type. Unknown and duplicate fields
// fail the test. Objects without a namespace get the given one.
func decode(t *testing.T, manifest, namespace string) *objects {
	t.Helper()
	o := &objects{kinds: map[meta.Object]string{}}
	documents := yamlutil.NewYAMLReader(bufio.NewReader(strings.NewReader(manifest)))
	for {
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return o
		}
		if err != nil {
			t.Fatal(err)
		}
		if isEmpty(text) {
			continue
		}
		decoded, kind, err := strict.Decode(text, nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		object, ok := decoded.(meta.Object)
		if !ok {
			t.Fatalf("%s has no metadata", kind)
		}
		if object.GetNamespace() == "" && !strings.HasPrefix(kind.Kind, "Cluster") && kind.Kind != "Namespace" {
			object.SetNamespace(namespace)
		}
		o.add(kind.Kind, object)
	}
}

func isEmpty(document []byte) bool {
	for line := range bytes.Lines(document) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return false
		}
	}
	return true
}

func (o *objects) add(kind string, object meta.Object) {
	o.all = append(o.all, object)
	o.kinds[object] = kind
	w := workload{kind: kind, namespace: object.GetNamespace(), name: object.GetName(), replicas: 1}
	switch v := object.(type) {
	case *apps.StatefulSet:
		w.selector, w.template, w.serviceName = v.Spec.Selector, v.Spec.Template, v.Spec.ServiceName
		if v.Spec.Replicas != nil {
			w.replicas = *v.Spec.Replicas
		}
		for _, c := range v.Spec.VolumeClaimTemplates {
			w.claims = append(w.claims, c.Name)
		}
	case *apps.DaemonSet:
		w.selector, w.template = v.Spec.Selector, v.Spec.Template
	case *apps.Deployment:
		w.selector, w.template = v.Spec.Selector, v.Spec.Template
	case *batch.Job:
		w.template = v.Spec.Template
	case *core.Pod:
		w.template = core.PodTemplateSpec{ObjectMeta: v.ObjectMeta, Spec: v.Spec}
	default:
		return
	}
	o.workloads = append(o.workloads, w)
}

// join returns the objects of o and other.
func (o *objects) join(other *objects) *objects {
	both := &objects{kinds: map[meta.Object]string{}, secrets: map[string][]string{}}
	for _, from := range []*objects{o, other} {
		for _, object := range from.all {
			both.add(from.kinds[object], object)
		}
		maps.Copy(both.secrets, from.secrets)
	}
	return both
}

// each calls f for every object of a type.
func each[T meta.Object](o *objects, f func(T)) {
	for _, object := range o.all {
		if v, ok := object.(T); ok {
			f(v)
		}
	}
}

// find returns the object of a type and name, or the zero value.
func find[T meta.Object](o *objects, namespace, name string) (found T, ok bool) {
	each(o, func(v T) {
		if v.GetNamespace() == namespace && v.GetName() == name {
			found, ok = v, true
		}
	})
	return found, ok
}

func (o *objects) template(name string) (found core.PodTemplateSpec) {
	for _, w := range o.workloads {
		if w.name == name {
			found = w.template
		}
	}
	return found
}

func (o *objects) configMap(name string) (data map[string]string) {
	each(o, func(m *core.ConfigMap) {
		if m.Name == name {
			data = m.Data
		}
	})
	return data
}

func (o *objects) secret(name string) (data map[string][]byte) {
	each(o, func(s *core.Secret) {
		if s.Name == name {
			data = s.Data
		}
	})
	return data
}

// audit follows every reference between objects and returns the dangling ones,
// and what several objects claim.
func (o *objects) audit() []string {
	a := &audit{objects: o}
	a.names()
	a.ports()
	for _, w := range o.workloads {
		a.workload(w)
		a.pod(w)
	}
	each(o, a.service)
	each(o, a.networkPolicy)
	each(o, func(p *policy.PodDisruptionBudget) {
		a.selects(p.Namespace, p.Spec.Selector, "PodDisruptionBudget "+p.Name)
	})
	each(o, a.autoscaler)
	each(o, a.serviceMonitor)
	each(o, func(b *rbac.RoleBinding) {
		if _, ok := find[*rbac.Role](o, b.Namespace, b.RoleRef.Name); !ok {
			a.say("RoleBinding %s: no Role %s", b.Name, b.RoleRef.Name)
		}
		a.subjects("RoleBinding "+b.Name, b.Subjects)
	})
	each(o, func(b *rbac.ClusterRoleBinding) {
		if _, ok := find[*rbac.ClusterRole](o, "", b.RoleRef.Name); !ok {
			a.say("ClusterRoleBinding %s: no ClusterRole %s", b.Name, b.RoleRef.Name)
		}
		a.subjects("ClusterRoleBinding "+b.Name, b.Subjects)
	})
	slices.Sort(a.problems)
	return a.problems
}

type audit struct {
	*objects
	problems []string
}

func (a *audit) say(format string, args ...any) {
	a.problems = append(a.problems, fmt.Sprintf(format, args...))
}

func (a *audit) names() {
	seen := map[string]bool{}
	for _, object := range a.all {
		id := fmt.Sprintf("%s %s/%s", a.kinds[object], object.GetNamespace(), object.GetName())
		if seen[id] {
			a.say("%s is defined twice", id)
		}
		seen[id] = true
		if len(object.GetName()) > 63 {
			a.say("%s: the name is longer than 63 characters", id)
		}
	}
}

// ports reports ports and directories of nodes that two objects claim.
func (a *audit) ports() {
	owner := map[string]string{}
	claim := func(what, by string) {
		if other, taken := owner[what]; taken {
			a.say("%s and %s both claim %s", other, by, what)
		}
		owner[what] = by
	}
	each(a.objects, func(s *core.Service) {
		for _, p := range s.Spec.Ports {
			if p.NodePort != 0 {
				claim(fmt.Sprintf("node port %d", p.NodePort), "Service "+s.Namespace+"/"+s.Name)
			}
		}
	})
	for _, w := range a.workloads {
		for _, c := range w.template.Spec.Containers {
			for _, p := range c.Ports {
				if p.HostPort != 0 || w.template.Spec.HostNetwork {
					claim(fmt.Sprintf("host port %d", p.ContainerPort), w.String())
				}
			}
		}
		for _, v := range w.template.Spec.Volumes {
			if v.HostPath != nil {
				claim("directory "+v.HostPath.Path, w.String())
			}
		}
	}
}

// matching returns the workloads whose pods a selector matches.
func (a *audit) matching(namespace string, selector labels.Selector) (found []workload) {
	for _, w := range a.workloads {
		if w.namespace == namespace && selector.Matches(labels.Set(w.template.Labels)) {
			found = append(found, w)
		}
	}
	return found
}

// selects reports a selector that matches other than the pods of one workload.
func (a *audit) selects(namespace string, selector *meta.LabelSelector, by string) []workload {
	s, err := meta.LabelSelectorAsSelector(selector)
	if err != nil {
		a.say("%s: %v", by, err)
		return nil
	}
	found := a.matching(namespace, s)
	if len(found) != 1 {
		a.say("%s selects the pods of %v, want those of one workload", by, found)
	}
	return found
}

func (a *audit) workload(w workload) {
	if w.selector != nil {
		if found := a.selects(w.namespace, w.selector, w.String()); len(found) == 1 && found[0].String() != w.String() {
			a.say("%s selects the pods of %s", w, found[0])
		}
	}
	if w.serviceName != "" {
		service, ok := find[*core.Service](a.objects, w.namespace, w.serviceName)
		if !ok || service.Spec.ClusterIP != core.ClusterIPNone {
			a.say("%s: no headless Service %s", w, w.serviceName)
		}
	}
	for _, c := range w.template.Spec.TopologySpreadConstraints {
		a.selects(w.namespace, c.LabelSelector, "spread of "+w.String())
	}
}

func (a *audit) pod(w workload) {
	spec := w.template.Spec
	if name := spec.ServiceAccountName; name != "" {
		if _, ok := find[*core.ServiceAccount](a.objects, w.namespace, name); !ok {
			a.say("%s: no ServiceAccount %s", w, name)
		}
	}
	volumes := map[string]func(key string){}
	used := map[string]bool{}
	for _, claim := range w.claims {
		volumes[claim] = func(string) {}
	}
	for _, v := range spec.Volumes {
		check := func(string) {}
		switch {
		case v.ConfigMap != nil:
			check = func(key string) { a.configMapKey(w, v.ConfigMap.Name, key) }
		case v.Secret != nil:
			check = func(key string) { a.secretKey(w, v.Secret.SecretName, key) }
		}
		if _, twice := volumes[v.Name]; twice {
			a.say("%s: two volumes %s", w, v.Name)
		}
		volumes[v.Name] = check
		check("")
		if v.ConfigMap != nil {
			for _, item := range v.ConfigMap.Items {
				check(item.Key)
			}
		}
	}
	paths := map[string]bool{}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		clear(paths)
		for _, m := range c.VolumeMounts {
			check, ok := volumes[m.Name]
			if !ok {
				a.say("%s: container %s mounts the missing volume %s", w, c.Name, m.Name)
				continue
			}
			used[m.Name] = true
			if m.SubPath != "" {
				check(m.SubPath)
			}
			if paths[m.MountPath] {
				a.say("%s: container %s mounts two volumes at %s", w, c.Name, m.MountPath)
			}
			paths[m.MountPath] = true
		}
		a.container(w, c)
	}
	for name := range volumes {
		if !used[name] {
			a.say("%s: nothing mounts the volume %s", w, name)
		}
	}
}

func (a *audit) container(w workload, c core.Container) {
	if c.Image == "" || !strings.ContainsAny(c.Image, ":@") {
		a.say("%s: the image %q of %s has no version", w, c.Image, c.Name)
	}
	if len(c.Resources.Requests) == 0 || c.Resources.Limits.Memory().IsZero() {
		a.say("%s: container %s has no resources", w, c.Name)
	}
	env := map[string]bool{}
	for _, e := range c.Env {
		if env[e.Name] {
			a.say("%s: container %s has two variables %s", w, c.Name, e.Name)
		}
		env[e.Name] = true
		if e.ValueFrom == nil {
			continue
		}
		if ref := e.ValueFrom.SecretKeyRef; ref != nil {
			a.secretKey(w, ref.Name, ref.Key)
		}
		if ref := e.ValueFrom.ConfigMapKeyRef; ref != nil {
			a.configMapKey(w, ref.Name, ref.Key)
		}
		if ref := e.ValueFrom.ResourceFieldRef; ref != nil && ref.ContainerName != c.Name {
			a.say("%s: %s of container %s is a resource of container %s", w, e.Name, c.Name, ref.ContainerName)
		}
	}
	for _, probe := range []*core.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
		switch {
		case probe == nil:
		case probe.HTTPGet != nil:
			a.containerPort(w, []core.Container{c}, probe.HTTPGet.Port, "a probe of "+w.String())
		case probe.TCPSocket != nil:
			a.containerPort(w, []core.Container{c}, probe.TCPSocket.Port, "a probe of "+w.String())
		}
	}
}

func (a *audit) containerPort(w workload, containers []core.Container, port intstr.IntOrString, by string) {
	for _, c := range containers {
		for _, p := range c.Ports {
			if p.Name == port.StrVal && p.Name != "" || port.Type == intstr.Int && p.ContainerPort == port.IntVal {
				return
			}
		}
	}
	a.say("%s: %s has no port %s", by, w, port.String())
}

func (a *audit) configMapKey(w workload, name, key string) {
	m, ok := find[*core.ConfigMap](a.objects, w.namespace, name)
	if !ok {
		a.say("%s: no ConfigMap %s", w, name)
		return
	}
	if _, ok := m.Data[key]; !ok && key != "" {
		a.say("%s: the ConfigMap %s has no key %s", w, name, key)
	}
}

func (a *audit) secretKey(w workload, name, key string) {
	s, made := find[*core.Secret](a.objects, w.namespace, name)
	keys, exists := a.secrets[name]
	if made {
		keys, exists = slices.Collect(maps.Keys(s.Data)), true
	}
	switch {
	case !exists:
		a.say("%s: no Secret %s", w, name)
	case key != "" && !slices.Contains(keys, key):
		a.say("%s: the Secret %s has no key %s", w, name, key)
	}
}

func (a *audit) service(s *core.Service) {
	by := "Service " + s.Namespace + "/" + s.Name
	found := a.selects(s.Namespace, &meta.LabelSelector{MatchLabels: s.Spec.Selector}, by)
	names := map[string]bool{}
	for _, p := range s.Spec.Ports {
		if names[p.Name] {
			a.say("%s has two ports %q", by, p.Name)
		}
		names[p.Name] = true
		target := p.TargetPort
		if target == (intstr.IntOrString{}) {
			target = intstr.FromInt32(p.Port)
		}
		for _, w := range found {
			a.containerPort(w, w.template.Spec.Containers, target, by)
		}
	}
}

func (a *audit) networkPolicy(p *networking.NetworkPolicy) {
	by := "NetworkPolicy " + p.Namespace + "/" + p.Name
	found := a.selects(p.Namespace, &p.Spec.PodSelector, by)
	for _, rule := range p.Spec.Ingress {
		for _, port := range rule.Ports {
			for _, w := range found {
				a.containerPort(w, w.template.Spec.Containers, *port.Port, by)
			}
		}
	}
}

func (a *audit) autoscaler(h *autoscaling.HorizontalPodAutoscaler) {
	target := h.Spec.ScaleTargetRef
	set, ok := find[*apps.StatefulSet](a.objects, h.Namespace, target.Name)
	if !ok || target.Kind != "StatefulSet" {
		a.say("HorizontalPodAutoscaler %s: no %s %s", h.Name, target.Kind, target.Name)
		return
	}
	if set.Spec.Replicas != nil {
		a.say("StatefulSet %s: sets replicas, although an autoscaler does", set.Name)
	}
}

// serviceMonitor checks that every pod is scraped once: through one service, on
// an existing port.
func (a *audit) serviceMonitor(m *monitoring.ServiceMonitor) {
	selector, err := meta.LabelSelectorAsSelector(&m.Spec.Selector)
	if err != nil {
		a.say("ServiceMonitor %s: %v", m.Name, err)
		return
	}
	scraped := map[string]bool{}
	each(a.objects, func(s *core.Service) {
		if s.Namespace != m.Namespace || !selector.Matches(labels.Set(s.Labels)) {
			return
		}
		for _, e := range m.Spec.Endpoints {
			if !slices.ContainsFunc(s.Spec.Ports, func(p core.ServicePort) bool { return p.Name == e.Port }) {
				a.say("ServiceMonitor %s: Service %s has no port %s", m.Name, s.Name, e.Port)
			}
		}
		for _, w := range a.matching(s.Namespace, labels.SelectorFromSet(s.Spec.Selector)) {
			if scraped[w.String()] {
				a.say("ServiceMonitor %s: scrapes %s twice", m.Name, w)
			}
			scraped[w.String()] = true
		}
	})
	if len(scraped) == 0 {
		a.say("ServiceMonitor %s: scrapes nothing", m.Name)
	}
}

func (a *audit) subjects(by string, subjects []rbac.Subject) {
	for _, s := range subjects {
		if _, ok := find[*core.ServiceAccount](a.objects, s.Namespace, s.Name); !ok {
			a.say("%s: no %s %s/%s", by, s.Kind, s.Namespace, s.Name)
		}
	}
}
