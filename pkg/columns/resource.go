package columns

import (
	"encoding/binary"

	"github.com/metaflowys/metaflow-server/pkg/conventions"
	"github.com/metaflowys/metaflow-server/pkg/otlp"
)

// resources are the columns that a span has from its resource, and the
// resources that the block has seen.
type resources struct {
	seen map[string]*resourceKeys // by the resource's bytes, then its schema URL's
	free []*resourceKeys          // from earlier blocks

	serviceName, serviceNamespace, serviceInstanceID dict
	cluster, namespace, pod, podUID, node, workload  dict
	attributes, schemaURL                            dict
	dropped                                          fixed
}

// resourceKeys is one resource as it stands in the columns.
type resourceKeys struct {
	serviceName, serviceNamespace, serviceInstanceID uint32
	cluster, namespace, pod, podUID, node, workload  uint32
	attributes, schemaURL                            uint32
	dropped                                          uint32
	conv                                             conventions.Resource
}

func (r *resources) init() {
	r.seen = make(map[string]*resourceKeys)
	r.each(func(_ string, c column) {
		if d, ok := c.(*dict); ok {
			*d = newDict()
		}
	})
	r.dropped = newFixed("UInt32", 4)
}

func (r *resources) each(f func(string, column)) {
	f("service_name", &r.serviceName)
	f("service_namespace", &r.serviceNamespace)
	f("service_instance_id", &r.serviceInstanceID)
	f("cluster", &r.cluster)
	f("namespace", &r.namespace)
	f("pod", &r.pod)
	f("pod_uid", &r.podUID)
	f("node", &r.node)
	f("workload", &r.workload)
	f("resource", &r.attributes)
	f("resource_schema_url", &r.schemaURL)
	f("resource_dropped_attributes_count", &r.dropped)
}

// reset forgets the resources; the columns reset themselves.
func (r *resources) reset() {
	for _, k := range r.seen {
		r.free = append(r.free, k)
	}
	clear(r.seen)
}

// get returns the keys of a resource, decoding it when the block has not seen it.
func (r *resources) get(wire, schemaURL []byte, scratch *[]byte) *resourceKeys {
	id := identity(scratch, wire, schemaURL)
	if k, ok := r.seen[string(id)]; ok {
		return k
	}
	k := r.take()
	r.seen[string(id)] = k
	r.decode(k, wire, schemaURL)
	return k
}

// identity builds in scratch what tells one resource or scope from another.
func identity(scratch *[]byte, wire, schemaURL []byte) []byte {
	id := binary.AppendUvarint((*scratch)[:0], uint64(len(wire)))
	*scratch = append(append(id, wire...), schemaURL...)
	return *scratch
}

func (r *resources) take() *resourceKeys {
	if n := len(r.free); n > 0 {
		k := r.free[n-1]
		r.free = r.free[:n-1]
		return k
	}
	return new(resourceKeys)
}

func (r *resources) decode(k *resourceKeys, wire, schemaURL []byte) {
	k.dropped = 0
	k.conv.Reset()
	for i := 0; i < len(wire); {
		tag, lo, hi := otlp.Next(wire, i)
		switch tag {
		case otlp.TagResourceAttributes:
			key, value := readKeyValue(wire[lo:hi])
			// The conventions keep what they are given until the block is
			// reset, so it must not live in wire.
			k.conv.Add(key, value.appendText(nil))
		case otlp.TagResourceDroppedCount:
			k.dropped = otlp.Uint32(tag, wire[lo:hi])
		}
		i = hi
	}
	k.conv.Resolve()
	k.serviceName = r.serviceName.key(k.conv.ServiceName)
	k.serviceNamespace = r.serviceNamespace.key(k.conv.ServiceNamespace)
	k.serviceInstanceID = r.serviceInstanceID.key(k.conv.ServiceInstanceID)
	k.cluster = r.cluster.key(k.conv.Cluster)
	k.namespace = r.namespace.key(k.conv.Namespace)
	k.pod = r.pod.key(k.conv.Pod)
	k.podUID = r.podUID.key(k.conv.PodUID)
	k.node = r.node.key(k.conv.Node)
	k.workload = r.workload.key(k.conv.Workload)
	k.attributes = r.attributes.key(appendTextObject(nil, wire, otlp.TagResourceAttributes))
	k.schemaURL = r.schemaURL.key(schemaURL)
}

// put appends k to the columns.
func (k *resourceKeys) put(r *resources) {
	r.serviceName.putKey(k.serviceName)
	r.serviceNamespace.putKey(k.serviceNamespace)
	r.serviceInstanceID.putKey(k.serviceInstanceID)
	r.cluster.putKey(k.cluster)
	r.namespace.putKey(k.namespace)
	r.pod.putKey(k.pod)
	r.podUID.putKey(k.podUID)
	r.node.putKey(k.node)
	r.workload.putKey(k.workload)
	r.attributes.putKey(k.attributes)
	r.schemaURL.putKey(k.schemaURL)
	r.dropped.putUint32(k.dropped)
}

// scopes are the columns that a span has from its instrumentation scope.
type scopes struct {
	seen map[string]scopeKeys

	name, version, attributes, schemaURL dict
	dropped                              fixed
}

// scopeKeys is one scope as it stands in the columns.
type scopeKeys struct {
	name, version, attributes, schemaURL uint32
	dropped                              uint32
}

func (s *scopes) init() {
	s.seen = make(map[string]scopeKeys)
	s.name, s.version, s.attributes, s.schemaURL = newDict(), newDict(), newDict(), newDict()
	s.dropped = newFixed("UInt32", 4)
}

func (s *scopes) each(f func(string, column)) {
	f("scope_name", &s.name)
	f("scope_version", &s.version)
	f("scope_attributes", &s.attributes)
	f("scope_schema_url", &s.schemaURL)
	f("scope_dropped_attributes_count", &s.dropped)
}

func (s *scopes) reset() { clear(s.seen) }

func (s *scopes) get(wire, schemaURL []byte, scratch *[]byte) scopeKeys {
	id := identity(scratch, wire, schemaURL)
	if k, ok := s.seen[string(id)]; ok {
		return k
	}
	var k scopeKeys
	var name, version []byte
	for i := 0; i < len(wire); {
		tag, lo, hi := otlp.Next(wire, i)
		switch tag {
		case otlp.TagScopeName:
			name = wire[lo:hi]
		case otlp.TagScopeVersion:
			version = wire[lo:hi]
		case otlp.TagScopeDroppedCount:
			k.dropped = otlp.Uint32(tag, wire[lo:hi])
		}
		i = hi
	}
	k.name, k.version, k.schemaURL = s.name.key(name), s.version.key(version), s.schemaURL.key(schemaURL)
	k.attributes = s.attributes.key(appendTextObject(nil, wire, otlp.TagScopeAttributes))
	s.seen[string(id)] = k
	return k
}

func (k scopeKeys) put(s *scopes) {
	s.name.putKey(k.name)
	s.version.putKey(k.version)
	s.attributes.putKey(k.attributes)
	s.schemaURL.putKey(k.schemaURL)
	s.dropped.putUint32(k.dropped)
}

// appendTextObject appends the KeyValues that stand in wire under this tag as
// a JSON object whose values are all text, as in a Map(String, String): "" when there
// are none.
func appendTextObject(dst, wire []byte, keyValues otlp.Tag) []byte {
	var value []byte
	from := len(dst)
	for i := 0; i < len(wire); {
		tag, lo, hi := otlp.Next(wire, i)
		if tag == keyValues {
			if len(dst) == from {
				dst = append(dst, '{')
			} else {
				dst = append(dst, ',')
			}
			key, v := readKeyValue(wire[lo:hi])
			dst = appendQuoted(dst, key)
			dst = append(dst, ':')
			value = v.appendText(value[:0])
			dst = appendQuoted(dst, value)
		}
		i = hi
	}
	if len(dst) > from {
		dst = append(dst, '}')
	}
	return dst
}
