package columns

import (
	"encoding/binary"
	"strconv"

	"github.com/metaflowys/metaflow-server/pkg/semconv"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
)

// resources are the columns that a span has from its resource, and the
// resources that the block has seen.
//
// What is asked for most has a column of its own; the rest stands in two JSON
// texts, one dictionary entry each: merging parts costs ClickHouse CPU by the column.
type resources struct {
	seen map[string]resourceKeys // by identity
	conv semconv.Resource        // of the one being decoded

	serviceName, namespace, pod, workload dict
	attributes                            dict
	origin                                dict
}

// resourceKeys is one resource as it stands in the columns.
type resourceKeys struct {
	serviceName, namespace, pod, workload uint32
	attributes, origin                    uint32
	ip                                    [16]byte
}

func (r *resources) init() {
	r.seen = make(map[string]resourceKeys)
	for _, d := range r.columns() {
		*d = newDict()
	}
}

func (r *resources) columns() []*dict {
	return []*dict{&r.serviceName, &r.namespace, &r.pod, &r.workload, &r.attributes, &r.origin}
}

func (r *resources) each(f func(string, column)) {
	for i, name := range []string{"service_name", "namespace", "pod", "workload", "resource", "origin"} {
		f(name, r.columns()[i])
	}
}

// reset forgets the resources; the columns reset themselves.
func (r *resources) reset() { clear(r.seen) }

// get returns the keys of a resource that an agent delivered, decoding it when
// the block has not seen it.
func (r *resources) get(wire, schemaURL []byte, agent string, scratch *[]byte) resourceKeys {
	id := append(identity(scratch, wire, schemaURL), agent...)
	*scratch = id
	if k, ok := r.seen[string(id)]; ok {
		return k
	}
	k := r.decode(wire, schemaURL, agent)
	r.seen[string(id)] = k
	return k
}

// identity builds in scratch what tells one resource or scope from another.
func identity(scratch *[]byte, wire, schemaURL []byte) []byte {
	id := binary.AppendUvarint((*scratch)[:0], uint64(len(wire)))
	*scratch = append(append(id, wire...), schemaURL...)
	return *scratch
}

func (r *resources) decode(wire, schemaURL []byte, agent string) (k resourceKeys) {
	var dropped uint32
	r.conv.Reset()
	eachField(wire, traces.TagResourceDroppedCount, func(count []byte) { dropped = signal.Uint32(signal.Varint, count) })
	eachAttribute(wire, traces.TagResourceAttributes, func(key []byte, value anyValue) { r.conv.Add(key, value.appendText(nil)) })
	r.conv.Resolve()
	k.serviceName = r.serviceName.key(r.conv.ServiceName)
	k.namespace = r.namespace.key(r.conv.Namespace)
	k.pod = r.pod.key(r.conv.Pod)
	k.workload = r.workload.key(r.conv.Workload)
	k.attributes = r.attributes.key(appendTextObject(nil, wire, traces.TagResourceAttributes))
	var o object
	o.text("agent_id", []byte(agent))
	o.text("service_namespace", r.conv.ServiceNamespace)
	o.text("service_instance_id", r.conv.ServiceInstanceID)
	o.text("cluster", r.conv.Cluster)
	o.text("node", r.conv.Node)
	o.text("pod_uid", r.conv.PodUID)
	o.text("schema_url", schemaURL)
	o.number("dropped_attributes_count", dropped)
	k.origin = r.origin.key(o.close())
	k.ip = r.conv.IP
	r.conv.Reset() // it would keep the values
	return k
}

// put appends k to the columns.
func (k *resourceKeys) put(r *resources) {
	r.serviceName.putKey(k.serviceName)
	r.namespace.putKey(k.namespace)
	r.pod.putKey(k.pod)
	r.workload.putKey(k.workload)
	r.attributes.putKey(k.attributes)
	r.origin.putKey(k.origin)
}

// scopes are the column that a span has from its instrumentation scope: all of
// it as one JSON text.
type scopes struct {
	seen map[string]uint32 // by identity: the key
	text dict
}

func (s *scopes) init() {
	s.seen = make(map[string]uint32)
	s.text = newDict()
}

func (s *scopes) reset() { clear(s.seen) }

func (s *scopes) get(wire, schemaURL []byte, scratch *[]byte) uint32 {
	id := identity(scratch, wire, schemaURL)
	if k, ok := s.seen[string(id)]; ok {
		return k
	}
	var name, version []byte
	var dropped uint32
	for i := 0; i < len(wire); {
		tag, lo, hi := signal.Next(wire, i)
		switch tag {
		case traces.TagScopeName:
			name = wire[lo:hi]
		case traces.TagScopeVersion:
			version = wire[lo:hi]
		case traces.TagScopeDroppedCount:
			dropped = signal.Uint32(tag, wire[lo:hi])
		}
		i = hi
	}
	var o object
	o.text("name", name)
	o.text("version", version)
	o.text("schema_url", schemaURL)
	o.text("attributes", appendTextObject(nil, wire, traces.TagScopeAttributes))
	o.number("dropped_attributes_count", dropped)
	k := s.text.key(o.close())
	s.seen[string(id)] = k
	return k
}

// object is a JSON object under construction. What is empty or zero is left
// out, for that is what a reader takes a missing field for.
type object struct{ json []byte }

func (o *object) text(name string, value []byte) {
	if len(value) > 0 {
		o.name(name)
		o.json = appendQuoted(o.json, value)
	}
}

func (o *object) number(name string, value uint32) {
	if value > 0 {
		o.name(name)
		o.json = strconv.AppendUint(o.json, uint64(value), 10)
	}
}

func (o *object) name(name string) {
	if len(o.json) == 0 {
		o.json = append(o.json, '{')
	} else {
		o.json = append(o.json, ',')
	}
	o.json = append(append(append(o.json, '"'), name...), '"', ':')
}

// close returns the object, or nothing when it has no fields.
func (o *object) close() []byte {
	if len(o.json) > 0 {
		o.json = append(o.json, '}')
	}
	return o.json
}

// appendTextObject appends the KeyValues that stand in wire under this tag as
// a JSON object whose values are all text, as in a Map(String, String): "" when there
// are none. Of a key that occurs twice the last value counts, as in maps.
func appendTextObject(dst, wire []byte, keyValues signal.Tag) []byte {
	var text []byte
	from := len(dst)
	eachAttribute(wire, keyValues, func(key []byte, value anyValue) {
		if len(dst) == from {
			dst = append(dst, '{')
		} else {
			dst = append(dst, ',')
		}
		dst = append(appendQuoted(dst, key), ':')
		text = value.appendText(text[:0])
		dst = appendQuoted(dst, text)
	})
	if len(dst) > from {
		dst = append(dst, '}')
	}
	return dst
}
