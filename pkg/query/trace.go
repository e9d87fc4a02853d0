package query

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/ptrace"
)

// ErrNotFound means that no span of a trace is stored.
var ErrNotFound = errors.New("no span of this trace is stored")

// Range bounds the start times of spans: from Start on, before End. A zero time is open.
type Range struct{ Start, End time.Time }

// Trace is a trace as it is stored, with what the network did to its spans.
type Trace struct {
	OTLP ptrace.Traces
	// Cut is true if the trace has more spans than were read, by query.max_spans or
	// query.max_result_bytes.
	Cut bool
	// Spans is how many were read.
	Spans int
	// Network is what the network did; nil if it is not known.
	Network map[SpanKey]Network
	// NetworkMissing is true if it could not be read, or not within query.network_timeout.
	NetworkMissing bool
}

// NetworkKnown reports whether what the network did is known of any call.
func (t Trace) NetworkKnown() bool {
	for _, n := range t.Network {
		if n.Verdict != "" {
			return true
		}
	}
	return false
}

// TraceID checks an id of up to 32 hexadecimal digits, and pads it as Jaeger and Tempo do.
func TraceID(text string) (string, error) { return paddedID("trace", text, 32) }

// SpanID checks an id of up to 16 hexadecimal digits, and pads it likewise.
func SpanID(text string) (string, error) { return paddedID("span", text, 16) }

func paddedID(of, text string, digits int) (string, error) {
	id := strings.ToLower(text)
	if id == "" || len(id) > digits || strings.Trim(id, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%w: %s id %.64q is not up to %d hexadecimal digits", ErrBadRequest, of, text, digits)
	}
	return strings.Repeat("0", digits-len(id)) + id, nil
}

// ErrBadRequest is the class of errors for which the question is to blame.
var ErrBadRequest = errors.New("bad request")

const spanColumns = `trace_id, span_id, parent_span_id, trace_state, flags, name, toInt32(kind), toUnixTimestamp64Nano(start_time), duration_ns, toInt32(status_code), status_message,
	attributes, resource_attributes, arrayMap(t -> toUnixTimestamp64Nano(t), events.time), events.name, events.attributes, events.dropped_attributes_count,
	links.trace_id, links.span_id, links.trace_state, links.attributes, links.dropped_attributes_count, links.flags,
	scope_name, scope_version, scope_attributes, resource_schema_url, scope_schema_url,
	dropped_attributes_count, dropped_events_count, dropped_links_count, resource_dropped_attributes_count, scope_dropped_attributes_count`

// spanRow is a row of spanColumns.
type spanRow struct {
	traceID, spanID, parentID, state, name, message string
	flags                                           uint32
	kind, status                                    int32
	start, duration                                 int64
	attributes, resource                            map[string]string
	eventTimes                                      []int64
	eventNames                                      []string
	eventAttributes                                 []map[string]string
	eventDropped                                    []uint32
	linkTraces, linkSpans, linkStates               []string
	linkAttributes                                  []map[string]string
	linkDropped, linkFlags                          []uint32
	scope                                           scopeRow
	resourceURL                                     string
	dropped, droppedEvents, droppedLinks            uint32
	resourceDropped                                 uint32
}

type scopeRow struct {
	name, version, url string
	attributes         map[string]string
	dropped            uint32
}

func (r *spanRow) targets() []any {
	return []any{
		&r.traceID, &r.spanID, &r.parentID, &r.state, &r.flags, &r.name, &r.kind, &r.start, &r.duration, &r.status, &r.message,
		&r.attributes, &r.resource, &r.eventTimes, &r.eventNames, &r.eventAttributes, &r.eventDropped,
		&r.linkTraces, &r.linkSpans, &r.linkStates, &r.linkAttributes, &r.linkDropped, &r.linkFlags,
		&r.scope.name, &r.scope.version, &r.scope.attributes, &r.resourceURL, &r.scope.url,
		&r.dropped, &r.droppedEvents, &r.droppedLinks, &r.resourceDropped, &r.scope.dropped,
	}
}

// Trace returns a trace by its id, which TraceID has checked. A range with both ends makes
// the look-up cheaper. It fails with ErrNotFound if no span is stored.
func (r *Reader) Trace(ctx context.Context, id string, in Range) (Trace, error) {
	defer r.observe("trace")()
	network := make(chan networks, 1)
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	go func() { network <- r.tryNetworks(waiting, []candidate{{id: id}}, r.cfg.NetworkTimeout) }()
	found, err := r.fitting(ctx, id, in)
	if err != nil {
		return Trace{}, err
	}
	if len(found) == 0 {
		return Trace{}, ErrNotFound
	}
	r.add(<-network, found[0])
	return found[0].Trace, nil
}

// fitting returns a trace, or nothing if it is not stored. It reads fewer spans where they are
// too large for a result.
func (r *Reader) fitting(ctx context.Context, id string, in Range) ([]*readTrace, error) {
	most := r.cfg.MaxSpans
	found, err := r.traces(ctx, []string{id}, in, most)
	for r.db.TooLarge(err) && most > 1 {
		most /= 2
		found, err = r.traces(ctx, []string{id}, in, most)
	}
	return found, err
}

// readTrace is a trace whose spans are also known by their keys, which several may have.
type readTrace struct {
	Trace
	id    string
	spans map[SpanKey][]ptrace.Span
}

// traces returns the stored ones of the traces with these ids, in their order, each with
// the given number of spans at most.
func (r *Reader) traces(ctx context.Context, ids []string, in Range, most int) ([]*readTrace, error) {
	b := builder{}
	where := "trace_id = " + b.arg(ids[0])
	if len(ids) > 1 {
		where = "trace_id IN " + b.arg(ids)
	}
	where += b.within(in)
	builders := map[string]*traceBuilder{}
	query := fmt.Sprintf("SELECT %s FROM %s.spans WHERE %s ORDER BY start_time, span_id LIMIT %d BY trace_id", spanColumns, r.database, where, most+1)
	err := r.db.Query(ctx, query, func(scan func(...any) error) error {
		var row spanRow
		if err := scan(row.targets()...); err != nil {
			return err
		}
		t := builders[row.traceID]
		if t == nil {
			t = newTraceBuilder(row.traceID)
			builders[row.traceID] = t
		}
		if t.Spans == most {
			t.Cut = true
			return nil
		}
		return t.add(&row)
	}, b.args...)
	if err != nil {
		return nil, err
	}
	var found []*readTrace
	for _, id := range ids {
		if t := builders[id]; t != nil {
			found = append(found, &t.readTrace)
			delete(builders, id)
		}
	}
	return found, nil
}

// traceBuilder groups spans by resource and scope.
type traceBuilder struct {
	readTrace
	resources map[string]ptrace.ResourceSpans
	scopes    map[string]ptrace.ScopeSpans
}

func newTraceBuilder(id string) *traceBuilder {
	return &traceBuilder{
		readTrace: readTrace{Trace: Trace{OTLP: ptrace.NewTraces()}, id: id, spans: map[SpanKey][]ptrace.Span{}},
		resources: map[string]ptrace.ResourceSpans{}, scopes: map[string]ptrace.ScopeSpans{},
	}
}

func (t *traceBuilder) add(row *spanRow) error {
	key := fmt.Sprintf("%s\x00%d\x00%s", row.resourceURL, row.resourceDropped, joined(row.resource))
	rs, ok := t.resources[key]
	if !ok {
		rs = t.OTLP.ResourceSpans().AppendEmpty()
		rs.SetSchemaUrl(row.resourceURL)
		rs.Resource().SetDroppedAttributesCount(row.resourceDropped)
		fill(rs.Resource().Attributes(), row.resource)
		t.resources[key] = rs
	}
	key = fmt.Sprintf("%s\x00%s\x00%s\x00%s\x00%d\x00%s", key, row.scope.name, row.scope.version, row.scope.url, row.scope.dropped, joined(row.scope.attributes))
	ss, ok := t.scopes[key]
	if !ok {
		ss = rs.ScopeSpans().AppendEmpty()
		ss.SetSchemaUrl(row.scope.url)
		ss.Scope().SetName(row.scope.name)
		ss.Scope().SetVersion(row.scope.version)
		ss.Scope().SetDroppedAttributesCount(row.scope.dropped)
		fill(ss.Scope().Attributes(), row.scope.attributes)
		t.scopes[key] = ss
	}
	t.Spans++
	s := ss.Spans().AppendEmpty()
	span := SpanKey{row.spanID, ptrace.SpanKind(row.kind)}
	t.spans[span] = append(t.spans[span], s)
	return row.put(s)
}

// put sets what a span has.
func (r *spanRow) put(s ptrace.Span) error {
	ids := idReader{}
	s.SetTraceID(ids.trace(r.traceID))
	s.SetSpanID(ids.span(r.spanID))
	s.SetParentSpanID(ids.span(r.parentID))
	s.TraceState().FromRaw(r.state)
	s.SetFlags(r.flags)
	s.SetName(r.name)
	s.SetKind(ptrace.SpanKind(r.kind))
	s.SetStartTimestamp(pcommon.Timestamp(r.start))
	s.SetEndTimestamp(pcommon.Timestamp(r.start + r.duration))
	s.Status().SetCode(ptrace.StatusCode(r.status))
	s.Status().SetMessage(r.message)
	s.SetDroppedAttributesCount(r.dropped)
	s.SetDroppedEventsCount(r.droppedEvents)
	s.SetDroppedLinksCount(r.droppedLinks)
	fill(s.Attributes(), r.attributes)
	// What a sender says of the network must not pass for a verdict.
	s.Attributes().RemoveIf(func(key string, _ pcommon.Value) bool { return strings.HasPrefix(key, AttributePrefix) })
	for i, at := range r.eventTimes {
		e := s.Events().AppendEmpty()
		e.SetTimestamp(pcommon.Timestamp(at))
		e.SetName(r.eventNames[i])
		e.SetDroppedAttributesCount(r.eventDropped[i])
		fill(e.Attributes(), r.eventAttributes[i])
	}
	for i, id := range r.linkTraces {
		l := s.Links().AppendEmpty()
		l.SetTraceID(ids.trace(id))
		l.SetSpanID(ids.span(r.linkSpans[i]))
		l.TraceState().FromRaw(r.linkStates[i])
		l.SetDroppedAttributesCount(r.linkDropped[i])
		l.SetFlags(r.linkFlags[i])
		fill(l.Attributes(), r.linkAttributes[i])
	}
	return ids.err
}

// fill sets attributes, in the order of their keys.
func fill(to pcommon.Map, from map[string]string) {
	to.EnsureCapacity(len(from))
	for _, key := range slices.Sorted(maps.Keys(from)) {
		Value(key, from[key], to.PutEmpty(key))
	}
}

// joined returns a text that only equal attributes have.
func joined(m map[string]string) string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "%q=%q,", key, m[key])
	}
	return b.String()
}

// idReader reads hexadecimal ids and keeps the first error. An empty id is zero.
type idReader struct{ err error }

func (r *idReader) read(text string, into []byte) {
	if text == "" {
		return
	}
	b, err := hex.DecodeString(text)
	if err == nil && len(b) != len(into) {
		err = fmt.Errorf("stored id %q has %d bytes in place of %d", text, len(b), len(into))
	}
	copy(into, b)
	r.err = cmp.Or(r.err, err)
}

func (r *idReader) trace(text string) (id pcommon.TraceID) { r.read(text, id[:]); return id }

func (r *idReader) span(text string) (id pcommon.SpanID) { r.read(text, id[:]); return id }
