package k8s

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// maxEndpoints bounds the endpoints reported of one service. Some services have
// thousands of pods, and nobody identifies those by their service.
const maxEndpoints = 1000

// podOf returns the report of a pod. deleted is when its object was seen to be
// gone, zero while it exists.
func podOf(p *core.Pod, deleted time.Time) *agentv1.Pod {
	name, kind := workloadOf(p)
	pod := &agentv1.Pod{
		Uid: string(p.UID), Namespace: p.Namespace, Name: p.Name, Workload: name, WorkloadKind: kind, HostNetwork: p.Spec.HostNetwork,
	}
	from := p.CreationTimestamp.Time
	if p.Status.StartTime != nil {
		from = p.Status.StartTime.Time
	}
	for _, text := range addressesOf(p) {
		if a, ok := addressOf(text); ok {
			pod.Addresses = append(pod.Addresses, &agentv1.PodAddress{Address: a, ValidFromUnixNano: nanos(from)})
		}
	}
	switch {
	case p.Status.Phase == core.PodSucceeded || p.Status.Phase == core.PodFailed:
		pod.EndTimeUnixNano = nanos(finished(p))
	case !deleted.IsZero():
		pod.EndTimeUnixNano = nanos(deleted)
	}
	return pod
}

// finished returns when the last container of a finished pod ended. For a pod
// that never had a container it returns the time of the latest change.
func finished(p *core.Pod) time.Time {
	last := p.CreationTimestamp.Time
	for _, c := range p.Status.ContainerStatuses {
		if t := c.State.Terminated; t != nil && t.FinishedAt.After(last) {
			last = t.FinishedAt.Time
		}
	}
	if len(p.Status.ContainerStatuses) > 0 {
		return last
	}
	for _, c := range p.Status.Conditions {
		if c.LastTransitionTime.After(last) {
			last = c.LastTransitionTime.Time
		}
	}
	return last
}

func addressesOf(p *core.Pod) []string {
	var list []string
	for _, ip := range p.Status.PodIPs {
		list = append(list, ip.IP)
	}
	if len(list) == 0 && p.Status.PodIP != "" {
		list = append(list, p.Status.PodIP)
	}
	return list
}

// workloadOf returns the top-level owner of a pod, as far as names show it.
// Reading the owner's owner would need more permissions and more requests.
func workloadOf(p *core.Pod) (name, kind string) {
	if len(p.OwnerReferences) == 0 {
		return "", ""
	}
	owner := p.OwnerReferences[0]
	switch owner.Kind {
	case "ReplicaSet":
		if hash := p.Labels[templateHash]; hash != "" {
			if name, ok := strings.CutSuffix(owner.Name, "-"+hash); ok && name != "" {
				return name, "Deployment"
			}
		}
	case "Job":
		if i := strings.LastIndexByte(owner.Name, '-'); i > 0 && isScheduledTime(owner.Name[i+1:]) {
			return owner.Name[:i], "CronJob"
		}
	case "Node": // a static pod, named after its file and the node
		return strings.TrimSuffix(p.Name, "-"+p.Spec.NodeName), "Pod"
	}
	return owner.Name, owner.Kind
}

// isScheduledTime reports whether suffix is the time that a CronJob appends to
// the names of its jobs: minutes since 1970, which have eight digits from 1989
// to 2160.
func isScheduledTime(suffix string) bool {
	return len(suffix) == 8 && !strings.ContainsFunc(suffix, func(r rune) bool { return r < '0' || r > '9' })
}

// serviceOf returns the report of a service with its endpoint slices. deleted
// is as for podOf.
func serviceOf(s *core.Service, parts []*discovery.EndpointSlice, deleted time.Time) *agentv1.Service {
	service := &agentv1.Service{Namespace: s.Namespace, Name: s.Name, StartTimeUnixNano: nanos(s.CreationTimestamp.Time), EndTimeUnixNano: nanos(deleted)}
	ips := slices.Clone(s.Spec.ClusterIPs)
	if len(ips) == 0 {
		ips = append(ips, s.Spec.ClusterIP)
	}
	ips = append(ips, s.Spec.ExternalIPs...)
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		ips = append(ips, ingress.IP)
	}
	service.Addresses = appendAddresses(nil, ips...) // skips "None", which headless services have
	for _, p := range s.Spec.Ports {
		service.Ports = append(service.Ports, &agentv1.ServicePort{Name: p.Name, Port: uint32(p.Port), NodePort: uint32(p.NodePort)})
	}
	for _, slice := range parts {
		for _, e := range slice.Endpoints {
			service.Endpoints = appendAddresses(service.Endpoints, e.Addresses...)
		}
	}
	slices.SortFunc(service.Endpoints, slices.Compare)
	service.Endpoints = slices.CompactFunc(service.Endpoints, slices.Equal)
	service.EndpointCount = uint32(len(service.Endpoints))
	service.Endpoints = service.Endpoints[:min(len(service.Endpoints), maxEndpoints)]
	return service
}

func appendAddresses(list [][]byte, texts ...string) [][]byte {
	for _, text := range texts {
		if a, ok := addressOf(text); ok {
			list = append(list, a)
		}
	}
	return list
}

func addressOf(text string) ([]byte, bool) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return nil, false
	}
	return a.Unmap().WithZone("").AsSlice(), true
}

// nanos returns t in nanoseconds since 1970, 0 for the zero time.
func nanos(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixNano())
}
