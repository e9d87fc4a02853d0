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

// TableSpans is the table whose columns Spans fills.
const TableSpans = "spans_local"

const (
	mapType    = "Map(LowCardinality(String), String)"
	eventsType = "Array(Tuple(time DateTime64(9, 'UTC'), name LowCardinality(String), attributes " + mapType +
		", dropped_attributes_count UInt32))"
	linksType = "Array(Tuple(trace_id String, span_id String, trace_state String, attributes " + mapType +
		", dropped_attributes_count UInt32, flags UInt32))"
	kindType   = "Enum8('unspecified' = 0, 'internal' = 1, 'server' = 2, 'client' = 3, 'producer' = 4, 'consumer' = 5)"
	statusType = "Enum8('unset' = 0, 'ok' = 1, 'error' = 2)"
)

// attributes is a column of type Map: a key and a text value per attribute. OTLP forbids a key to
// occur twice in a map; where one does, the last value stands alone, as in protobuf's own maps.
type attributes struct {
	nested
	keys   dict
	values text

	seen     []uint32 // by key: the last map that has it
	current  uint32   // the one being filled, counting from 1
	repeated bool     // a key stands in it twice
	fromKey  int      // where its keys and values begin
	fromText int
	fromRow  int
}

func (a *attributes) init() {
	a.keys = newDict()
	a.nested = newNested(mapType, &a.keys, &a.values)
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

// putKey appends a key, whose value the caller appends.
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

// dropRepeated leaves the last value of each key in the map.
func (a *attributes) dropRepeated() {
	keys := a.keys.keys[a.fromKey:]
	ends := make([]int, 0, len(keys)) // of the values; rare enough to allocate
	for i := a.fromText; i < len(a.values.buf); {
		size, n := binary.Uvarint(a.values.buf[i:])
		i += n + int(size)
		ends = append(ends, i)
	}
	a.current++ // now seen from the end
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

// each calls f with every key and value of the map that begin started.
func (a *attributes) each(f func(key uint32, value []byte)) {
	i := a.fromText
	for _, key := range a.keys.keys[a.fromKey:] {
		size, n := binary.Uvarint(a.values.buf[i:])
		i += n + int(size)
		f(key, a.values.buf[i-int(size):i:i])
	}
}

// Spans is one block of rows of spans_local. Make it with NewSpans. It belongs
// to one goroutine, and keeps its memory over Reset.
type Spans struct {
	rows  int
	input proto.Input
	all   []column

	traceID                  text
	spanID                   fixed
	parentSpanID, traceState text
	flags                    fixed
	name                     dict
	kind, start, duration    fixed
	statusCode               fixed
	statusMessage            text
	droppedAttributes        fixed
	droppedEvents            fixed
	droppedLinks             fixed
	protocol, method         dict
	endpoint, responseCode   dict
	ip, peerIP               fixed
	port, peerPort           fixed
	attributes               attributes

	events          nested
	eventTime       fixed
	eventName       dict
	eventAttributes attributes
	eventDropped    fixed

	links          nested
	linkTraceID    text
	linkSpanID     text
	linkTraceState text
	linkAttributes attributes
	linkDropped    fixed
	linkFlags      fixed

	resources resources
	scopes    scopes

	conv     semconv.Span
	convKeys []semconv.Key // of each key in attributes.keys
	scratch  []byte
}

// TracesTable is the table of traces.
func TracesTable() Table {
	return Table{Signal: traces.Signal, Name: TableSpans, New: func() Block { return NewSpans() }, Lookup: Lookup{
		Time:   "start_time",
		Select: "trace_id, span_id, toUnixTimestamp64Nano(start_time) AS start",
		Wanted: wantedSpans,
		Found:  foundSpans,
	}}
}

// wantedSpans names spans by a prefix of the sort key.
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

// decodeHex fills dst from its text.
func decodeHex(dst, text []byte) error {
	if len(text) != 2*len(dst) {
		return fmt.Errorf("it has %d characters, not %d", len(text), 2*len(dst))
	}
	_, err := hex.Decode(dst, text)
	return err
}

// NewSpans returns an empty block.
func NewSpans() *Spans {
	s := &Spans{
		spanID: newFixed("FixedString(16)", 16),
		flags:  newFixed("UInt32", 4), name: newDict(),
		kind: newFixed(kindType, 1), start: newFixed("DateTime64(9, 'UTC')", 8), duration: newFixed("Int64", 8),
		statusCode: newFixed(statusType, 1), droppedAttributes: newFixed("UInt32", 4),
		droppedEvents: newFixed("UInt32", 4), droppedLinks: newFixed("UInt32", 4),
		protocol: newDict(), method: newDict(), endpoint: newDict(), responseCode: newDict(),
		ip: newFixed("IPv6", 16), peerIP: newFixed("IPv6", 16), port: newFixed("UInt16", 2), peerPort: newFixed("UInt16", 2),
		eventTime: newFixed("DateTime64(9, 'UTC')", 8), eventName: newDict(), eventDropped: newFixed("UInt32", 4),
		linkDropped: newFixed("UInt32", 4), linkFlags: newFixed("UInt32", 4),
	}
	s.attributes.init()
	s.eventAttributes.init()
	s.linkAttributes.init()
	s.events = newNested(eventsType, &s.eventTime, &s.eventName, &s.eventAttributes, &s.eventDropped)
	s.links = newNested(linksType, &s.linkTraceID, &s.linkSpanID, &s.linkTraceState, &s.linkAttributes, &s.linkDropped, &s.linkFlags)
	s.resources.init()
	s.scopes.init()

	s.add("trace_id", &s.traceID)
	s.add("span_id", &s.spanID)
	s.add("parent_span_id", &s.parentSpanID)
	s.add("trace_state", &s.traceState)
	s.add("flags", &s.flags)
	s.add("name", &s.name)
	s.add("kind", &s.kind)
	s.add("start_time", &s.start)
	s.add("duration_ns", &s.duration)
	s.add("status_code", &s.statusCode)
	s.add("status_message", &s.statusMessage)
	s.add("attributes", &s.attributes)
	s.add("dropped_attributes_count", &s.droppedAttributes)
	s.add("events", &s.events)
	s.add("dropped_events_count", &s.droppedEvents)
	s.add("links", &s.links)
	s.add("dropped_links_count", &s.droppedLinks)
	s.add("protocol", &s.protocol)
	s.add("method", &s.method)
	s.add("endpoint", &s.endpoint)
	s.add("response_code", &s.responseCode)
	s.add("ip", &s.ip)
	s.add("port", &s.port)
	s.add("peer_ip", &s.peerIP)
	s.add("peer_port", &s.peerPort)
	s.resources.each(s.add)
	s.add("scope", &s.scopes.text)
	return s
}

func (s *Spans) add(name string, c column) {
	s.input = append(s.input, proto.InputColumn{Name: name, Data: c})
	s.all = append(s.all, c)
}

// Table is the table whose columns these are.
func (s *Spans) Table() string { return TableSpans }

// Rows is the number of spans in the block.
func (s *Spans) Rows() int { return s.rows }

// Bytes is the memory that the rows take, as they are sent before compression.
func (s *Spans) Bytes() int {
	n := 0
	for _, c := range s.all {
		n += c.bytes()
	}
	return n
}

// Input returns the columns with their names, valid until the next Append or Reset.
func (s *Spans) Input() proto.Input { return s.input }

// Keys calls f with the key of every row.
func (s *Spans) Keys(f func(signal.Key)) {
	for i := range s.rows {
		k := signal.Key{Time: int64(binary.LittleEndian.Uint64(s.start.buf[8*i:]))}
		traceID, spanID := traces.IDs(&k)
		// What putHex wrote decodes without an error.
		_, _ = hex.Decode(traceID, s.traceID.buf[33*i+1:33*i+33]) // its length stands before it
		_, _ = hex.Decode(spanID, s.spanID.buf[16*i:16*i+16])
		f(k)
	}
}

// Reset empties the block and keeps its memory.
func (s *Spans) Reset() {
	s.rows = 0
	for _, c := range s.all {
		c.reset()
	}
	s.resources.reset()
	s.scopes.reset()
	s.convKeys = s.convKeys[:0]
}

// Append decodes an ExportTraceServiceRequest and appends its spans.
func (s *Spans) Append(value []byte, src Source) ([]signal.Refused, error) {
	// Checked as a whole first, so that nothing has to be undone and no
	// decoder below has to doubt what it reads.
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
	return a.refused, nil
}

// appender is one Append under way.
type appender struct {
	*Spans
	src          *Source
	resource     source
	resourceKeys resourceKeys
	scope        source
	scopeKey     uint32     // in scopes.text
	fields       spanFields // of the span being read: here because Skip gets a part of it
	index        int
	refused      []signal.Refused
}

// source is the resource or the scope of the spans that come next. It is decoded
// when the first of them is stored.
type source struct {
	wire, schema []byte
	decoded      bool
}

func (a *appender) resourceSpans(b []byte) {
	// Singular fields may stand anywhere, and more than once: then their
	// pieces merge, which in protobuf is to concatenate them.
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

// sources makes sure that resource and scope of the row that begins are decoded.
func (a *appender) sources() {
	if !a.resource.decoded {
		a.resourceKeys = a.resources.get(a.resource.wire, a.resource.schema, a.src.Agent, &a.scratch)
		a.resource.decoded = true
	}
	if !a.scope.decoded {
		a.scopeKey = a.scopes.get(a.scope.wire, a.scope.schema, &a.scratch)
		a.scope.decoded = true
	}
}

// spanFields is what has to be known of a span before its row is begun.
type spanFields struct {
	traces.Head
	name, traceState                  []byte
	kind                              uint64
	flags                             uint32
	droppedAttributes                 uint32
	droppedEvents, droppedLinks       uint32
	statusMessage                     []byte
	statusCode                        uint64
	attributesAt, eventsAt, linksAt   int // first and last occurrence, to walk only that part again
	attributesEnd, eventsEnd, linkEnd int
}

func (a *appender) span(b []byte) {
	f := &a.fields
	*f = spanFields{attributesAt: -1, eventsAt: -1, linksAt: -1}
	f.read(b)
	if reason := f.Judge(a.src.Window); reason != traces.Accepted {
		a.refused = append(a.refused, signal.Refused{Index: a.index, Reason: reason.String()})
		return
	}
	if a.src.Skip != nil && a.src.Skip(a.index, f.Key()) {
		return
	}
	a.sources()
	a.row(f)
	a.conv.Reset()
	a.spanAttributes(b, f)
	a.conventions(f)
	a.spanEvents(b, f)
	a.spanLinks(b, f)
	a.resourceKeys.put(&a.resources)
	a.scopes.text.putKey(a.scopeKey)
	a.rows++
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
			f.kind = signal.Uint64(tag, value)
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
			f.statusCode = signal.Uint64(tag, b[lo:hi])
		}
		i = hi
	}
}

// row appends all but the attributes and what is derived from them.
func (a *appender) row(f *spanFields) {
	a.traceID.putHex(f.TraceID)
	a.spanID.putHex(f.SpanID)
	if allZero(f.ParentSpanID) {
		a.parentSpanID.putHex(nil)
	} else {
		a.parentSpanID.putHex(f.ParentSpanID)
	}
	a.traceState.put(f.traceState)
	a.flags.putUint32(f.flags)
	a.name.put(f.name)
	a.kind.putByte(enum(f.kind, 5))
	a.start.putUint64(f.Start)
	a.duration.putUint64(f.End - f.Start) // two's complement: negative when the clock was set back
	a.statusCode.putByte(enum(f.statusCode, 2))
	a.statusMessage.put(f.statusMessage)
	a.droppedAttributes.putUint32(f.droppedAttributes)
	a.droppedEvents.putUint32(f.droppedEvents)
	a.droppedLinks.putUint32(f.droppedLinks)
}

// enum is v, or 0 where v is none of the values that the enumeration has.
func enum(v, last uint64) byte {
	if v > last {
		return 0
	}
	return byte(v)
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
	a.Spans.attributes.begin()
	for i := f.attributesAt; i >= 0 && i < f.attributesEnd; {
		tag, lo, hi := signal.Next(b, i)
		if tag == traces.TagSpanAttributes {
			key, value := a.attribute(&a.Spans.attributes, b[lo:hi])
			if int(key) == len(a.convKeys) { // new to this block
				a.convKeys = append(a.convKeys, semconv.Lookup(a.Spans.attributes.keys.last))
			}
			a.conv.Set(a.convKeys[key], value)
		}
		i = hi
	}
	if a.Spans.attributes.repeated {
		a.Spans.attributes.dropRepeated()
		// What is derived says what the map says.
		a.conv.Reset()
		a.Spans.attributes.each(func(key uint32, value []byte) { a.conv.Set(a.convKeys[key], value) })
	}
	a.Spans.attributes.end()
}

// attribute appends one KeyValue to a Map column and returns the key's place
// in the dictionary and the value as text.
func (a *appender) attribute(to *attributes, b []byte) (key uint32, value []byte) {
	name, v := readKeyValue(b)
	key = to.keys.key(name)
	to.putKey(key)
	if v.tag == signal.TagAnyValueString {
		return key, to.values.put(v.wire)
	}
	a.scratch = v.appendText(a.scratch[:0])
	return key, to.values.put(a.scratch)
}

func (a *appender) conventions(f *spanFields) {
	a.conv.Resolve(semconv.Kind(enum(f.kind, 5)), f.name, a.resourceKeys.ip)
	a.protocol.put(a.conv.Protocol)
	a.method.put(a.conv.Method)
	a.endpoint.put(a.conv.Endpoint)
	a.responseCode.put(a.conv.ResponseCode)
	a.ip.putAddress(&a.conv.IP)
	a.port.putUint16(a.conv.Port)
	a.peerIP.putAddress(&a.conv.PeerIP)
	a.peerPort.putUint16(a.conv.PeerPort)
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
	a.eventAttributes.begin()
	for i := 0; i < len(b); {
		tag, lo, hi := signal.Next(b, i)
		switch tag {
		case traces.TagEventTime:
			time = signal.Uint64(tag, b[lo:hi])
		case traces.TagEventName:
			name = b[lo:hi]
		case traces.TagEventAttributes:
			a.attribute(&a.eventAttributes, b[lo:hi])
		case traces.TagEventDroppedCount:
			dropped = signal.Uint32(tag, b[lo:hi])
		}
		i = hi
	}
	// The column ends in the year 2262. What lies behind it shows as its end, not as 1969.
	a.eventTime.putUint64(min(time, math.MaxInt64))
	a.eventName.put(name)
	a.eventAttributes.end()
	a.eventDropped.putUint32(dropped)
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
	a.linkAttributes.begin()
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
			a.attribute(&a.linkAttributes, b[lo:hi])
		case traces.TagLinkDroppedCount:
			dropped = signal.Uint32(tag, b[lo:hi])
		case traces.TagLinkFlags:
			flags = signal.Uint32(tag, b[lo:hi])
		}
		i = hi
	}
	a.linkTraceID.putHex(traceID)
	a.linkSpanID.putHex(spanID)
	a.linkTraceState.put(state)
	a.linkAttributes.end()
	a.linkDropped.putUint32(dropped)
	a.linkFlags.putUint32(flags)
}
