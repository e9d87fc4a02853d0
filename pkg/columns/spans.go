package columns

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"

	"github.com/ClickHouse/ch-go/proto"

	"github.com/metaflowys/metaflow-server/pkg/semconv"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
)

// TableSpans is the table of Spans.
const TableSpans = "spans_local"

const (
	timeType   = "DateTime64(9, 'UTC')"
	mapType    = "Map(LowCardinality(String), String)"
	eventsType = "Array(Tuple(time DateTime64(9, 'UTC'), name LowCardinality(String), attributes " + mapType +
		", dropped_attributes_count UInt32))"
	linksType = "Array(Tuple(trace_id String, span_id String, trace_state String, attributes " + mapType +
		", dropped_attributes_count UInt32, flags UInt32))"
	kindType   = "Enum8('unspecified' = 0, 'internal' = 1, 'server' = 2, 'client' = 3, 'producer' = 4, 'consumer' = 5)"
	statusType = "Enum8('unset' = 0, 'ok' = 1, 'error' = 2)"

	// Largest numbers of the two enumerations.
	lastKind   = 5
	lastStatus = 2
)

// attributes is a column of type Map: a key and a text value per attribute. OTLP forbids
// repeated keys in a map; if a key is repeated, only its last value is kept, as in
// protobuf maps.
type attributes struct {
	nested
	keys   dict
	values text

	seen     []uint32 // by key: the last map that contains it
	current  uint32   // the map being filled, counting from 1
	repeated bool     // the map has a repeated key
	fromKey  int      // start of the map's keys and values
	fromText int
	fromRow  int
}

func newAttributes() *attributes {
	a := &attributes{keys: newDict()}
	a.nested = newNested(mapType, &a.keys, &a.values)
	return a
}

func (a *attributes) reset() {
	a.nested.reset()
	a.seen, a.current = a.seen[:0], 0
}

// begin starts the map of the next row.
func (a *attributes) begin() {
	a.current++
	a.repeated = false
	a.fromKey, a.fromText, a.fromRow = len(a.keys.keys), len(a.values.buf), a.values.rows
}

// putKey appends a key. The caller appends its value.
func (a *attributes) putKey(key uint32) {
	if int(key) == len(a.seen) {
		a.seen = append(a.seen, 0)
	}
	a.repeated = a.repeated || a.seen[key] == a.current
	a.seen[key] = a.current
	a.keys.putKey(key)
}

// end closes the map that begin started.
func (a *attributes) end() {
	if a.repeated {
		a.dropRepeated()
	}
	a.endRow(len(a.keys.keys) - a.fromKey)
}

// dropRepeated keeps only the last value of each key in the map.
func (a *attributes) dropRepeated() {
	keys := a.keys.keys[a.fromKey:]
	ends := make([]int, 0, len(keys)) // of the values; rare enough to allocate
	for i := a.fromText; i < len(a.values.buf); {
		size, n := binary.Uvarint(a.values.buf[i:])
		i += n + int(size)
		ends = append(ends, i)
	}
	a.current++ // seen from the end now
	counts := make([]bool, len(keys))
	for i := len(keys) - 1; i >= 0; i-- {
		counts[i] = a.seen[keys[i]] != a.current
		a.seen[keys[i]] = a.current
	}
	kept, begin, text := 0, a.fromText, a.fromText
	for i, end := range ends {
		if counts[i] {
			keys[kept] = keys[i]
			kept++
			text += copy(a.values.buf[text:], a.values.buf[begin:end])
		}
		begin = end
	}
	a.keys.keys, a.values.buf, a.values.rows = a.keys.keys[:a.fromKey+kept], a.values.buf[:text], a.fromRow+kept
	a.repeated = false
}

// each calls f with every key and value of the current map.
func (a *attributes) each(f func(key uint32, value []byte)) {
	i := a.fromText
	for _, key := range a.keys.keys[a.fromKey:] {
		size, n := binary.Uvarint(a.values.buf[i:])
		i += n + int(size)
		f(key, a.values.buf[i-int(size):i:i])
	}
}

// Spans is a block of rows of spans_local. Create it with NewSpans. It is not safe for
// concurrent use, and Reset keeps its memory.
type Spans struct {
	block

	// The row to append next: the span's own fields, its resolved semantic conventions,
	// and its resource and scope.
	fields    spanFields
	conv      semconv.Span
	resources resources
	scopes    scopes

	// Columns whose values are appended while they are read.
	attributes *attributes
	events     events
	links      links

	// Columns read by Keys.
	traceIDs *text
	spanIDs  *fixed
	starts   *fixed

	convWords []semconv.Key // by word of attributes.keys
	convKeys  []semconv.Key // by key in attributes.keys
	scratch   []byte
}

// events are the columns of an Array of Tuples with one element per event.
type events struct {
	nested
	time       fixed
	name       dict
	attributes *attributes
	dropped    fixed
}

func (e *events) init() {
	e.time, e.name, e.attributes, e.dropped = newFixed(timeType, 8), newDict(), newAttributes(), newFixed("UInt32", 4)
	e.nested = newNested(eventsType, &e.time, &e.name, e.attributes, &e.dropped)
}

// links are the columns of an Array of Tuples with one element per link.
type links struct {
	nested
	traceID, spanID, traceState text
	attributes                  *attributes
	dropped, flags              fixed
}

func (l *links) init() {
	l.attributes, l.dropped, l.flags = newAttributes(), newFixed("UInt32", 4), newFixed("UInt32", 4)
	l.nested = newNested(linksType, &l.traceID, &l.spanID, &l.traceState, l.attributes, &l.dropped, &l.flags)
}

// TracesTable returns the table of traces.
func TracesTable() Table {
	return Table{Signal: traces.Signal, Name: TableSpans, New: func() Block { return NewSpans() }, Lookup: Lookup{
		Time:   "start_time",
		Select: "trace_id, span_id, toUnixTimestamp64Nano(start_time) AS start",
		Wanted: wantedSpans,
		Found:  foundSpans,
	}}
}

// wantedSpans identifies spans by a prefix of the sorting key.
func wantedSpans(keys []signal.Key) proto.Input {
	traceID, spanID := new(proto.ColStr), &proto.ColFixedStr{Size: 16}
	var text [32]byte
	for i := range keys {
		trace, span := traces.IDs(&keys[i])
		traceID.AppendBytes(text[:hex.Encode(text[:], trace)])
		spanID.Append(text[:hex.Encode(text[:], span)])
	}
	return proto.Input{{Name: "trace_id", Data: traceID}, {Name: "span_id", Data: spanID}}
}

func foundSpans() (proto.Results, func(func(signal.Key)) error) {
	var (
		traceID proto.ColStr
		spanID  = proto.ColFixedStr{Size: 16}
		start   proto.ColInt64
	)
	return proto.Results{{Name: "trace_id", Data: &traceID}, {Name: "span_id", Data: &spanID}, {Name: "start", Data: &start}},
		func(f func(signal.Key)) error {
			for i := range start.Rows() {
				k := signal.Key{Time: start.Row(i)}
				trace, span := traces.IDs(&k)
				if err := decodeHex(trace, traceID.RowBytes(i)); err != nil {
					return fmt.Errorf("read trace_id: %w", err)
				}
				if err := decodeHex(span, spanID.Row(i)); err != nil {
					return fmt.Errorf("read span_id: %w", err)
				}
				f(k)
			}
			return nil
		}
}

// decodeHex decodes text into dst.
func decodeHex(dst, text []byte) error {
	if len(text) != 2*len(dst) {
		return fmt.Errorf("%d characters, want %d", len(text), 2*len(dst))
	}
	_, err := hex.Decode(dst, text)
	return err
}

// NewSpans returns an empty block.
func NewSpans() *Spans {
	s := &Spans{attributes: newAttributes()}
	s.events.init()
	s.links.init()

	s.traceIDs = s.id("trace_id", &s.fields.TraceID)
	s.spanIDs = s.fixedID("span_id", &s.fields.SpanID)
	s.id("parent_span_id", &s.fields.ParentSpanID)
	s.text("trace_state", &s.fields.traceState)
	s.uint32("flags", &s.fields.flags)
	s.word("name", &s.fields.name)
	s.enum("kind", kindType, &s.fields.kind)
	s.starts = s.time("start_time", &s.fields.Start)
	s.int64("duration_ns", &s.fields.duration)
	s.enum("status_code", statusType, &s.fields.statusCode)
	s.text("status_message", &s.fields.statusMessage)
	s.add("attributes", s.attributes)
	s.uint32("dropped_attributes_count", &s.fields.droppedAttributes)
	s.add("events", &s.events)
	s.uint32("dropped_events_count", &s.fields.droppedEvents)
	s.add("links", &s.links)
	s.uint32("dropped_links_count", &s.fields.droppedLinks)
	s.word("protocol", &s.conv.Protocol)
	s.word("method", &s.conv.Method)
	s.word("endpoint", &s.conv.Endpoint)
	s.word("response_code", &s.conv.ResponseCode)
	s.address("ip", &s.conv.IP)
	s.uint16("port", &s.conv.Port)
	s.address("peer_ip", &s.conv.PeerIP)
	s.uint16("peer_port", &s.conv.PeerPort)
	s.resources.declare(&s.block)
	s.scopes.declare(&s.block)
	return s
}

// Table returns the name of the table.
func (s *Spans) Table() string { return TableSpans }

// Keys calls f with the key of every row.
func (s *Spans) Keys(f func(signal.Key)) {
	for i := range s.rows {
		k := signal.Key{Time: int64(binary.LittleEndian.Uint64(s.starts.buf[8*i:]))}
		traceID, spanID := traces.IDs(&k)
		// putHex wrote valid hexadecimal, so decoding cannot fail.
		_, _ = hex.Decode(traceID, s.traceIDs.buf[33*i+1:33*i+33]) // preceded by its length
		_, _ = hex.Decode(spanID, s.spanIDs.buf[16*i:16*i+16])
		f(k)
	}
}

// Reset empties the block and keeps its memory.
func (s *Spans) Reset() {
	s.reset()
	s.resources.reset()
	s.scopes.reset()
	s.convKeys = s.convKeys[:0]
	s.convWords = s.convWords[:min(len(s.convWords), len(s.attributes.keys.words))] // which may be forgotten
}

// Join makes the rows of another block of spans follow.
func (s *Spans) Join(o Block) {
	s.join(&o.(*Spans).block)
}

// Append decodes an ExportTraceServiceRequest and appends its spans.
func (s *Spans) Append(value []byte, src Source) ([]signal.Refused, error) {
	// Validate the whole request first, so that nothing has to be undone and the decoders
	// below need not check their input.
	value, _, err := traces.Signal.Repair(nil, value)
	if err != nil {
		return nil, err
	}
	a := appender{Spans: s, src: &src}
	for i := 0; i < len(value); {
		tag, lo, hi := signal.Next(value, i)
		if tag == traces.TagRequestResourceSpans {
			a.resourceSpans(value[lo:hi])
		}
		i = hi
	}
	s.fields = spanFields{} // they reference value
	return a.refused, nil
}

// appender is the state of one Append.
type appender struct {
	*Spans
	src      *Source
	resource source
	scope    source
	index    int
	refused  []signal.Refused
}

// source is the resource or the scope of the following spans. It is decoded when the
// first of them is stored.
type source struct {
	wire, schema []byte
	decoded      bool
}

func (a *appender) resourceSpans(b []byte) {
	// Singular fields may appear anywhere and more than once. Protobuf then merges the
	// pieces, which is the same as concatenating them.
	a.resource = source{}
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		switch tag {
		case traces.TagResourceSpansResource:
			a.resource.wire = merge(a.resource.wire, b[lo:hi])
		case traces.TagResourceSpansSchemaURL:
			a.resource.schema = b[lo:hi]
		}
		i = hi
	}
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		if tag == traces.TagResourceSpansScopeSpans {
			a.scopeSpans(b[lo:hi])
		}
		i = hi
	}
}

func merge(have, more []byte) []byte {
	if have == nil {
		return more[:len(more):len(more)]
	}
	return append(have, more...)
}

func (a *appender) scopeSpans(b []byte) {
	a.scope = source{}
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		switch tag {
		case traces.TagScopeSpansScope:
			a.scope.wire = merge(a.scope.wire, b[lo:hi])
		case traces.TagScopeSpansSchemaURL:
			a.scope.schema = b[lo:hi]
		}
		i = hi
	}
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		if tag == traces.TagScopeSpansSpans {
			a.span(b[lo:hi])
			a.index++
		}
		i = hi
	}
}

// sources decodes the resource and the scope of the next row, if they are not decoded
// yet.
func (a *appender) sources() {
	if !a.resource.decoded {
		a.resources.use(a.resource.wire, a.resource.schema, a.src.Agent, &a.scratch)
		a.resource.decoded = true
	}
	if !a.scope.decoded {
		a.scopes.use(a.scope.wire, a.scope.schema, &a.scratch)
		a.scope.decoded = true
	}
}

// spanFields are the scalar fields of a span.
type spanFields struct {
	traces.Head
	name, traceState                  []byte
	kind                              uint32
	flags                             uint32
	duration                          uint64 // two's complement: negative if the clock was set back
	droppedAttributes                 uint32
	droppedEvents, droppedLinks       uint32
	statusMessage                     []byte
	statusCode                        uint32
	attributesAt, eventsAt, linksAt   int // first and last occurrence, to walk only that part again
	attributesEnd, eventsEnd, linkEnd int
}

func (a *appender) span(b []byte) {
	f := &a.fields
	*f = spanFields{attributesAt: -1, eventsAt: -1, linksAt: -1}
	f.read(b)
	if reason := f.Judge(a.src.Window); reason != signal.Accepted {
		a.refused = append(a.refused, signal.Refused{Index: a.index, Reason: traces.Signal.Label(reason)})
		return
	}
	if a.src.Skip != nil && a.src.Skip(a.index, f.Key()) {
		return
	}
	f.duration = f.End - f.Start
	if allZero(f.ParentSpanID) {
		f.ParentSpanID = nil
	}
	a.sources()
	a.conv.Reset()
	a.spanAttributes(b, f)
	a.conv.Resolve(semconv.Kind(f.kind), f.name, a.resources.ip)
	a.spanEvents(b, f)
	a.spanLinks(b, f)
	a.putRow()
}

func (f *spanFields) read(b []byte) {
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		switch value := b[lo:hi]; tag {
		case traces.TagSpanTraceID:
			f.TraceID = value
		case traces.TagSpanSpanID:
			f.SpanID = value
		case traces.TagSpanParentSpanID:
			f.ParentSpanID = value
		case traces.TagSpanTraceState:
			f.traceState = value
		case traces.TagSpanFlags:
			f.flags = signal.Uint32(tag, value)
		case traces.TagSpanName:
			f.name = value
		case traces.TagSpanKind:
			f.kind = enum(signal.Uint64(tag, value), lastKind)
		case traces.TagSpanStartTime:
			f.Start = signal.Uint64(tag, value)
		case traces.TagSpanEndTime:
			f.End = signal.Uint64(tag, value)
		case traces.TagSpanAttributes:
			note(&f.attributesAt, &f.attributesEnd, i, hi)
		case traces.TagSpanDroppedAttributesCount:
			f.droppedAttributes = signal.Uint32(tag, value)
		case traces.TagSpanEvents:
			note(&f.eventsAt, &f.eventsEnd, i, hi)
		case traces.TagSpanDroppedEventsCount:
			f.droppedEvents = signal.Uint32(tag, value)
		case traces.TagSpanLinks:
			note(&f.linksAt, &f.linkEnd, i, hi)
		case traces.TagSpanDroppedLinksCount:
			f.droppedLinks = signal.Uint32(tag, value)
		case traces.TagSpanStatus:
			f.readStatus(value)
		}
		i = hi
	}
}

func note(first, end *int, i, hi int) {
	if *first < 0 {
		*first = i
	}
	*end = hi
}

func (f *spanFields) readStatus(b []byte) {
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		switch tag {
		case traces.TagStatusMessage:
			f.statusMessage = b[lo:hi]
		case traces.TagStatusCode:
			f.statusCode = enum(signal.Uint64(tag, b[lo:hi]), lastStatus)
		}
		i = hi
	}
}

// enum returns v, or 0 if v is not a value of the enumeration.
func enum(v, last uint64) uint32 {
	if v > last {
		return 0
	}
	return uint32(v)
}

func allZero(id []byte) bool {
	for _, c := range id {
		if c != 0 {
			return false
		}
	}
	return true
}

func (a *appender) spanAttributes(b []byte, f *spanFields) {
	a.attributes.begin()
	for i := f.attributesAt; i >= 0 && i < f.attributesEnd; {
		tag, lo, hi := signal.Next(b, i)
		if tag == traces.TagSpanAttributes {
			word, key, value := a.attribute(a.attributes, b[lo:hi])
			for int(word) >= len(a.convWords) { // new
				text := a.attributes.keys.words[len(a.convWords)].text
				a.convWords = append(a.convWords, semconv.Lookup([]byte(text)))
			}
			if int(key) == len(a.convKeys) { // new to this block
				a.convKeys = append(a.convKeys, a.convWords[word])
			}
			a.conv.Set(a.convKeys[key], value)
		}
		i = hi
	}
	if a.attributes.repeated {
		a.attributes.dropRepeated()
		// Derived columns must match the map.
		a.conv.Reset()
		a.attributes.each(func(key uint32, value []byte) { a.conv.Set(a.convKeys[key], value) })
	}
	a.attributes.end()
}

// attribute appends one KeyValue to a Map column and returns the key's word and its index
// in the dictionary, and the value as text.
func (a *appender) attribute(to *attributes, b []byte) (word, key uint32, value []byte) {
	name, v := readKeyValue(b)
	word = to.keys.word(name)
	key = to.keys.keyOf(word)
	to.putKey(key)
	if v.tag == signal.TagAnyValueString {
		return word, key, to.values.put(v.wire)
	}
	a.scratch = v.appendText(a.scratch[:0])
	return word, key, to.values.put(a.scratch)
}

func (a *appender) spanEvents(b []byte, f *spanFields) {
	n := 0
	for i := f.eventsAt; i >= 0 && i < f.eventsEnd; {
		tag, lo, hi := signal.Next(b, i)
		if tag == traces.TagSpanEvents {
			a.event(b[lo:hi])
			n++
		}
		i = hi
	}
	a.events.endRow(n)
}

func (a *appender) event(b []byte) {
	var time uint64
	var name []byte
	var dropped uint32
	a.events.attributes.begin()
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		switch tag {
		case traces.TagEventTime:
			time = signal.Uint64(tag, b[lo:hi])
		case traces.TagEventName:
			name = b[lo:hi]
		case traces.TagEventAttributes:
			a.attribute(a.events.attributes, b[lo:hi])
		case traces.TagEventDroppedCount:
			dropped = signal.Uint32(tag, b[lo:hi])
		}
		i = hi
	}
	// The column ends in the year 2262. Clamp later times to its end, or they would wrap
	// around.
	a.events.time.putUint64(min(time, math.MaxInt64))
	a.events.name.put(name)
	a.events.attributes.end()
	a.events.dropped.putUint32(dropped)
}

func (a *appender) spanLinks(b []byte, f *spanFields) {
	n := 0
	for i := f.linksAt; i >= 0 && i < f.linkEnd; {
		tag, lo, hi := signal.Next(b, i)
		if tag == traces.TagSpanLinks {
			a.link(b[lo:hi])
			n++
		}
		i = hi
	}
	a.links.endRow(n)
}

func (a *appender) link(b []byte) {
	var traceID, spanID, state []byte
	var dropped, flags uint32
	a.links.attributes.begin()
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		switch tag {
		case traces.TagLinkTraceID:
			traceID = b[lo:hi]
		case traces.TagLinkSpanID:
			spanID = b[lo:hi]
		case traces.TagLinkTraceState:
			state = b[lo:hi]
		case traces.TagLinkAttributes:
			a.attribute(a.links.attributes, b[lo:hi])
		case traces.TagLinkDroppedCount:
			dropped = signal.Uint32(tag, b[lo:hi])
		case traces.TagLinkFlags:
			flags = signal.Uint32(tag, b[lo:hi])
		}
		i = hi
	}
	a.links.traceID.putHex(traceID)
	a.links.spanID.putHex(spanID)
	a.links.traceState.put(state)
	a.links.attributes.end()
	a.links.dropped.putUint32(dropped)
	a.links.flags.putUint32(flags)
}
