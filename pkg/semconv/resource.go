package semconv

import (
	"bytes"
	"strings"
)

// Resource collects what the attributes of one OTLP resource say. The zero value is
// ready to use; use it for one resource after another, with Reset between them.
//
// The exported fields are valid from Resolve to Reset. IP is IPv6, IPv4 as
// v4-mapped, and zero when unknown.
type Resource struct {
	ServiceName, ServiceNamespace, ServiceInstanceID []byte
	Cluster, Namespace, Pod, PodUID, Node, Workload  []byte

	IP [16]byte

	attributes attributes
}

// Reset makes r as good as new. It invalidates the results and lets go of
// every value that was added.
func (r *Resource) Reset() {
	r.attributes.reset()
	r.Resolve()
}

// Add takes one attribute of the resource. It keeps value, not key, until Reset.
func (r *Resource) Add(key, value []byte) { r.Set(Lookup(key), value) }

// Set is Add for a name that has been looked up already.
func (r *Resource) Set(key Key, value []byte) { r.attributes.set(key, value) }

// Resolve decides the exported fields from the attributes added since Reset.
func (r *Resource) Resolve() {
	a := &r.attributes
	r.ServiceName = a.values[keyServiceName]
	r.ServiceNamespace = a.values[keyServiceNamespace]
	r.ServiceInstanceID = a.values[keyServiceInstanceID]
	r.Cluster = a.pick(keyClusterName, keyClusterUID)
	r.Namespace = a.values[keyNamespaceName]
	r.Pod = a.values[keyPodName]
	r.PodUID = a.values[keyPodUID]
	r.Node = r.node()
	r.Workload = r.workload()
	r.IP = r.address()
}

// node is the Kubernetes node, or the host where there is no Kubernetes. The
// host name that a pod sees is its own, not its node's.
func (r *Resource) node() []byte {
	a := &r.attributes
	if node := a.values[keyNodeName]; node != nil {
		return node
	}
	if a.has(keyPodName) || a.has(keyPodUID) {
		return nil
	}
	return a.values[keyHostName]
}

// workload is what people deploy: the controller that owns the pod, and where
// that one is owned in turn, its owner. Only names that Kubernetes itself made up are
// taken apart.
func (r *Resource) workload() []byte {
	a := &r.attributes
	if name := a.pick(keyDeployment, keyCronJob); name != nil {
		return name
	}
	if job := a.values[keyJob]; job != nil {
		return trimSuffix(job, isScheduledTime)
	}
	if set := a.values[keyReplicaSet]; set != nil {
		return trimSuffix(set, isTemplateHash)
	}
	return a.values[keyReplicationController]
}

// trimSuffix takes the part after the last hyphen off, hyphen included, if it
// is a generated one and a name remains.
func trimSuffix(name []byte, generated func([]byte) bool) []byte {
	hyphen := bytes.LastIndexByte(name, '-')
	if hyphen <= 0 || !generated(name[hyphen+1:]) {
		return name
	}
	return name[:hyphen]
}

// isTemplateHash reports whether suffix is a pod template hash: a 32-bit
// number whose decimal digits were replaced by letters and digits that form no
// words. One in 43,000 such numbers has fewer than six digits and is not recognized.
func isTemplateHash(suffix []byte) bool {
	if len(suffix) < 6 || len(suffix) > 10 {
		return false
	}
	for _, c := range suffix {
		if strings.IndexByte("bcdfghjklmnpqrstvwxz2456789", c) < 0 {
			return false
		}
	}
	return true
}

// isScheduledTime reports whether suffix is the time that a CronJob gives its
// jobs: minutes since 1970, eight digits from 1989 to 2160.
func isScheduledTime(suffix []byte) bool { return len(suffix) == 8 && isNumber(suffix) }

// address is the resource's own address, by the same precedence that joins
// spans with flows.
func (r *Resource) address() address {
	a := &r.attributes
	for _, k := range [...]Key{keyPodIP, keyAppHostIP} {
		if ip := firstAddress(a.values[k], address.unspecified); ip != (address{}) {
			return ip
		}
	}
	if ip := firstAddress(a.values[keyHostIP], address.shared); ip != (address{}) {
		return ip
	}
	return firstAddress(a.values[keyNetHostIP], address.unspecified)
}

// firstAddress returns the first address in text that is not rejected. Text
// is one address or a list, as JSON or separated by commas.
func firstAddress(text []byte, rejected func(address) bool) address {
	for len(text) > 0 {
		end := bytes.IndexAny(text, `[]", `)
		if end < 0 {
			end = len(text)
		}
		if ip, _, ok := parseEndpoint(text[:end]); ok && !rejected(ip) {
			return ip
		}
		text = text[min(end+1, len(text)):]
	}
	return address{}
}
