package k8s

import (
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// templateHash is the label that holds the suffix of a Deployment's
	// ReplicaSet.
	templateHash = "pod-template-hash"
	// mirrorOf is the annotation with the kubelet's UID of a static pod. The
	// pod's control groups are named after it, not after the UID of the mirror
	// pod in the API.
	mirrorOf = "kubernetes.io/config.mirror"
)

// strip keeps only the fields that this package uses: a pod of ten kilobytes
// then takes less than one.
func strip(object any) (any, error) {
	switch o := object.(type) {
	case *core.Pod:
		return &core.Pod{
			ObjectMeta: stripMeta(&o.ObjectMeta),
			Spec:       core.PodSpec{NodeName: o.Spec.NodeName, HostNetwork: o.Spec.HostNetwork},
			Status: core.PodStatus{
				Phase: o.Status.Phase, PodIP: o.Status.PodIP, PodIPs: o.Status.PodIPs, StartTime: o.Status.StartTime,
				ContainerStatuses: stripStatuses(o.Status.ContainerStatuses), Conditions: stripConditions(o.Status.Conditions),
			},
		}, nil
	case *core.Service:
		return &core.Service{
			ObjectMeta: stripMeta(&o.ObjectMeta),
			Spec: core.ServiceSpec{
				ClusterIP: o.Spec.ClusterIP, ClusterIPs: o.Spec.ClusterIPs, ExternalIPs: o.Spec.ExternalIPs, Ports: o.Spec.Ports,
			},
			Status: core.ServiceStatus{LoadBalancer: o.Status.LoadBalancer},
		}, nil
	case *discovery.EndpointSlice:
		s := &discovery.EndpointSlice{ObjectMeta: stripMeta(&o.ObjectMeta), AddressType: o.AddressType}
		for _, e := range o.Endpoints {
			s.Endpoints = append(s.Endpoints, discovery.Endpoint{Addresses: e.Addresses})
		}
		return s, nil
	default: // deletions may come as a type of client-go's
		return object, nil
	}
}

func stripMeta(m *meta.ObjectMeta) meta.ObjectMeta {
	s := meta.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp,
	}
	for i := range m.OwnerReferences {
		if o := &m.OwnerReferences[i]; o.Controller != nil && *o.Controller {
			s.OwnerReferences = []meta.OwnerReference{{Kind: o.Kind, Name: o.Name, Controller: o.Controller}}
		}
	}
	for _, label := range []string{templateHash, discovery.LabelServiceName} {
		if v, ok := m.Labels[label]; ok {
			if s.Labels == nil {
				s.Labels = map[string]string{}
			}
			s.Labels[label] = v
		}
	}
	if v, ok := m.Annotations[mirrorOf]; ok {
		s.Annotations = map[string]string{mirrorOf: v}
	}
	return s
}

// stripStatuses keeps when containers ended.
func stripStatuses(list []core.ContainerStatus) []core.ContainerStatus {
	var kept []core.ContainerStatus
	for _, c := range list {
		if t := c.State.Terminated; t != nil {
			kept = append(kept, core.ContainerStatus{State: core.ContainerState{Terminated: &core.ContainerStateTerminated{FinishedAt: t.FinishedAt}}})
		}
	}
	return kept
}

// stripConditions keeps the condition that changed last.
func stripConditions(list []core.PodCondition) []core.PodCondition {
	var last meta.Time
	for _, c := range list {
		if last.Before(&c.LastTransitionTime) {
			last = c.LastTransitionTime
		}
	}
	if last.IsZero() {
		return nil
	}
	return []core.PodCondition{{LastTransitionTime: last}}
}
