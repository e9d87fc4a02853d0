package traces

import "github.com/metaflowys/metaflow-server/pkg/signal"

// Tags of the fields that are read by name.
const (
	TagRequestResourceSpans = 1<<3 | signal.Bytes

	TagResourceSpansResource   = 1<<3 | signal.Bytes
	TagResourceSpansScopeSpans = 2<<3 | signal.Bytes
	TagResourceSpansSchemaURL  = 3<<3 | signal.Bytes

	TagScopeSpansScope     = 1<<3 | signal.Bytes
	TagScopeSpansSpans     = 2<<3 | signal.Bytes
	TagScopeSpansSchemaURL = 3<<3 | signal.Bytes

	TagResourceAttributes   = 1<<3 | signal.Bytes
	TagResourceDroppedCount = 2<<3 | signal.Varint

	TagScopeName         = 1<<3 | signal.Bytes
	TagScopeVersion      = 2<<3 | signal.Bytes
	TagScopeAttributes   = 3<<3 | signal.Bytes
	TagScopeDroppedCount = 4<<3 | signal.Varint

	TagSpanTraceID                = 1<<3 | signal.Bytes
	TagSpanSpanID                 = 2<<3 | signal.Bytes
	TagSpanTraceState             = 3<<3 | signal.Bytes
	TagSpanParentSpanID           = 4<<3 | signal.Bytes
	TagSpanName                   = 5<<3 | signal.Bytes
	TagSpanKind                   = 6<<3 | signal.Varint
	TagSpanStartTime              = 7<<3 | signal.Fixed64
	TagSpanEndTime                = 8<<3 | signal.Fixed64
	TagSpanAttributes             = 9<<3 | signal.Bytes
	TagSpanDroppedAttributesCount = 10<<3 | signal.Varint
	TagSpanEvents                 = 11<<3 | signal.Bytes
	TagSpanDroppedEventsCount     = 12<<3 | signal.Varint
	TagSpanLinks                  = 13<<3 | signal.Bytes
	TagSpanDroppedLinksCount      = 14<<3 | signal.Varint
	TagSpanStatus                 = 15<<3 | signal.Bytes
	TagSpanFlags                  = 16<<3 | signal.Fixed32

	TagEventTime         = 1<<3 | signal.Fixed64
	TagEventName         = 2<<3 | signal.Bytes
	TagEventAttributes   = 3<<3 | signal.Bytes
	TagEventDroppedCount = 4<<3 | signal.Varint

	TagLinkTraceID      = 1<<3 | signal.Bytes
	TagLinkSpanID       = 2<<3 | signal.Bytes
	TagLinkTraceState   = 3<<3 | signal.Bytes
	TagLinkAttributes   = 4<<3 | signal.Bytes
	TagLinkDroppedCount = 5<<3 | signal.Varint
	TagLinkFlags        = 6<<3 | signal.Fixed32

	TagStatusMessage = 2<<3 | signal.Bytes
	TagStatusCode    = 3<<3 | signal.Varint
)

var (
	attributes = signal.KeyValue
	entityRef  = signal.NewMessage([]int{1, 2, 3, 4}, nil)
	resource   = signal.NewMessage(nil, map[int]*signal.Message{1: attributes, 3: entityRef})
	scope      = signal.NewMessage([]int{1, 2}, map[int]*signal.Message{3: attributes})
	event      = signal.NewMessage([]int{2}, map[int]*signal.Message{3: attributes})
	link       = signal.NewMessage([]int{3}, map[int]*signal.Message{4: attributes})
	status     = signal.NewMessage([]int{2}, nil)
	span       = signal.NewMessage([]int{3, 5}, map[int]*signal.Message{9: attributes, 11: event, 13: link, 15: status})

	scopeSpans    = signal.NewMessage([]int{3}, map[int]*signal.Message{1: scope, 2: span})
	resourceSpans = signal.NewMessage([]int{3}, map[int]*signal.Message{1: resource, 2: scopeSpans})
	request       = signal.NewMessage(nil, map[int]*signal.Message{1: resourceSpans})
)

// How many levels may stand below each level of a request.
const (
	depthResourceSpans = signal.Depth - 1
	depthScopeSpans    = depthResourceSpans - 1
	depthSpan          = depthScopeSpans - 1
)
