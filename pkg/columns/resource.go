package columns

import (
	"encoding/binary"
	"strconv"

	"github.com/metaflowys/metaflow-server/pkg/semconv"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
)

// resources are the columns that a span gets from its resource, and the resources that
// this block and those before it have seen.
//
// The most queried attributes have their own columns. The rest is in two JSON texts, one
// dictionary entry each, because merging parts costs ClickHouse CPU per column.
type resources struct {
	seen  map[string]seenResource // by identity
	size  int                     // bytes of the identities
	words []uint32                // of all seen resources
	conv  semconv.Resource        // of the resource being decoded

	columns []resourceColumn

	// The resource of the row to append next.
	row [maxKeys]uint32
	ip  [16]byte
}

// resourceColumn is a column and its value for a resource. The value is computed once per
// resource, for this block and later ones.
type resourceColumn struct {
	*dict
	value func(*resourceText) []byte
}

// resourceText is a resource as delivered, with its resolved conventions.
type resourceText struct {
	*semconv.Resource
	wire, schemaURL []byte
	agent           string
}

// seenResource locates the words of a resource.
type seenResource struct {
	at int // in resources.words
	ip [16]byte
}

func (r *resources) declare(b *block) {
	r.seen = make(map[string]seenResource)
	for i, c := range [...]struct {
		name  string
		value func(*resourceText) []byte
	}{
		{"service_name", func(t *resourceText) []byte { return t.ServiceName }},
		{"namespace", func(t *resourceText) []byte { return t.Namespace }},
		{"pod", func(t *resourceText) []byte { return t.Pod }},
		{"workload", func(t *resourceText) []byte { return t.Workload }},
		{"resource", func(t *resourceText) []byte { return appendTextObject(nil, t.wire, traces.TagResourceAttributes) }},
		{"origin", (*resourceText).origin},
	} {
		r.columns = append(r.columns, resourceColumn{b.key(c.name, &r.row[i]), c.value})
	}
}

// reset forgets the resources if one of the columns has forgotten its words, or if there
// are many. The columns reset themselves.
func (r *resources) reset() {
	forget := r.size > keptWords
	for _, c := range r.columns {
		forget = forget || len(c.words) == 0
	}
	if forget {
		clear(r.seen)
		r.words, r.size = r.words[:0], 0
	}
}

// use selects the resource of the following rows. It decodes the resource if it is new.
func (r *resources) use(wire, schemaURL []byte, agent string, scratch *[]byte) {
	id := append(identity(scratch, wire, schemaURL), agent...)
	*scratch = id
	seen, ok := r.seen[string(id)]
	if !ok {
		seen = r.decode(wire, schemaURL, agent)
		r.seen[string(id)] = seen
		r.size += len(id) + wordSize
	}
	for i, c := range r.columns {
		r.row[i] = c.keyOf(r.words[seen.at+i])
	}
	r.ip = seen.ip
}

// identity builds the identity of a resource or scope in scratch.
func identity(scratch *[]byte, wire, schemaURL []byte) []byte {
	id := binary.AppendUvarint((*scratch)[:0], uint64(len(wire)))
	*scratch = append(append(id, wire...), schemaURL...)
	return *scratch
}

func (r *resources) decode(wire, schemaURL []byte, agent string) seenResource {
	r.conv.Reset()
	eachAttribute(wire, traces.TagResourceAttributes, func(key []byte, value anyValue) { r.conv.Add(key, value.appendText(nil)) })
	r.conv.Resolve()
	t := resourceText{&r.conv, wire, schemaURL, agent}
	seen := seenResource{at: len(r.words), ip: r.conv.IP}
	for _, c := range r.columns {
		r.words = append(r.words, c.word(c.value(&t)))
	}
	r.conv.Reset() // it would retain the values
	return seen
}

// origin returns the rarely queried attributes.
func (t *resourceText) origin() []byte {
	var dropped uint32
	eachField(t.wire, traces.TagResourceDroppedCount, func(count []byte) { dropped = signal.Uint32(signal.Varint, count) })
	var o object
	o.text("agent_id", []byte(t.agent))
	o.text("service_namespace", t.ServiceNamespace)
	o.text("service_instance_id", t.ServiceInstanceID)
	o.text("cluster", t.Cluster)
	o.text("node", t.Node)
	o.text("pod_uid", t.PodUID)
	o.text("schema_url", t.schemaURL)
	o.number("dropped_attributes_count", dropped)
	return o.close()
}

// scopes is the column of the instrumentation scope, as one JSON text.
type scopes struct {
	seen map[string]uint32 // word by identity
	size int               // bytes of the identities
	text *dict
	key  uint32 // of the row to append next
}

func (s *scopes) declare(b *block) {
	s.seen = make(map[string]uint32)
	s.text = b.key("scope", &s.key)
}

func (s *scopes) reset() {
	if s.size > keptWords || len(s.text.words) == 0 {
		clear(s.seen)
		s.size = 0
	}
}

// use selects the scope of the following rows.
func (s *scopes) use(wire, schemaURL []byte, scratch *[]byte) {
	id := identity(scratch, wire, schemaURL)
	word, ok := s.seen[string(id)]
	if !ok {
		word = s.decode(wire, schemaURL)
		s.seen[string(id)] = word
		s.size += len(id) + wordSize
	}
	s.key = s.text.keyOf(word)
}

func (s *scopes) decode(wire, schemaURL []byte) uint32 {
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
	return s.text.word(o.close())
}

// object builds a JSON object. It omits empty and zero fields, which readers treat like
// missing ones.
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

// close returns the object, or nil if it has no fields.
func (o *object) close() []byte {
	if len(o.json) > 0 {
		o.json = append(o.json, '}')
	}
	return o.json
}

// appendTextObject appends the KeyValues with this tag in wire as a JSON object of
// strings, as in a Map(String, String); nothing if there are none. The last value of a
// repeated key counts, as in maps.
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
