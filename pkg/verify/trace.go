package verify

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"strconv"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// traceID is the id of one trace.
type traceID [16]byte

func (id traceID) String() string { return hex.EncodeToString(id[:]) }

// Span is a span as the view metaflow.spans shows it, in the columns that a
// Verifier compares.
type Span struct {
	TraceID, SpanID, ParentSpanID string // lower-case hex
	Name                          string
	Kind                          string // internal, server, client
	Service                       string
	Start                         time.Time // UTC
	Duration                      time.Duration
	Status                        string // unset, ok, error
	Attributes                    map[string]string
}

// differs reports the first column in which two spans differ, or "".
func (s *Span) differs(o *Span) string {
	switch {
	case s.ParentSpanID != o.ParentSpanID:
		return "parent_span_id"
	case s.Name != o.Name:
		return "name"
	case s.Kind != o.Kind:
		return "kind"
	case s.Service != o.Service:
		return "service_name"
	case !s.Start.Equal(o.Start):
		return "start_time"
	case s.Duration != o.Duration:
		return "duration_ns"
	case s.Status != o.Status:
		return "status_code"
	case !maps.Equal(s.Attributes, o.Attributes):
		return "attributes"
	}
	return ""
}

// maker makes traces whose every field follows from the run, the number of the
// trace and its start, so that the ledger need not keep them.
type maker struct {
	run      [8]byte // random; first half of each trace id
	runID    string
	hostname string
}

func newMaker(hostname string) *maker {
	m := &maker{hostname: hostname}
	_, _ = rand.Read(m.run[:]) // never fails
	m.runID = hex.EncodeToString(m.run[:])
	return m
}

func (m *maker) id(number uint64) (id traceID) {
	copy(id[:8], m.run[:])
	// Kafka's partition is a hash of the whole id, so a counter spreads well.
	binary.BigEndian.PutUint64(id[8:], number+1)
	return id
}

var kinds = [spansOfTrace]string{"client", "server", "internal", "client"}

// spans returns the first n spans of a trace.
func (m *maker) spans(number uint64, start time.Time, n int) []Span {
	id := m.id(number).String()
	spans := make([]Span, n)
	for i := range spans {
		s := &spans[i]
		*s = Span{
			TraceID: id, SpanID: spanID(number, i),
			Name: fmt.Sprintf("verify %d", i), Kind: kinds[i], Service: ServiceName,
			Start: start.Add(time.Duration(i) * 1001 * time.Nanosecond).UTC(), Duration: time.Duration(spansOfTrace-i) * time.Millisecond,
			Status: "unset",
			Attributes: map[string]string{
				"metaflow.verify.trace": strconv.FormatUint(number, 10),
				"metaflow.verify.span":  strconv.Itoa(i),
				"metaflow.verify.text":  "käse, 漢字, \"quotes\" and a \\ backslash",
			},
		}
		if i > 0 {
			s.ParentSpanID = spanID(number, i-1)
		}
		if i == spansOfTrace-1 {
			s.Status = "error"
		}
	}
	return spans
}

func spanID(number uint64, i int) string {
	return fmt.Sprintf("%016x", number*spansOfTrace+uint64(i)+1)
}

// resource returns the resource of every span.
func (m *maker) resource() *resourcepb.Resource {
	return &resourcepb.Resource{Attributes: []*commonpb.KeyValue{
		text("service.name", ServiceName), text("service.instance.id", m.runID), text("host.name", m.hostname),
	}}
}

var (
	kindOf   = map[string]tracepb.Span_SpanKind{"client": tracepb.Span_SPAN_KIND_CLIENT, "server": tracepb.Span_SPAN_KIND_SERVER, "internal": tracepb.Span_SPAN_KIND_INTERNAL}
	statusOf = map[string]tracepb.Status_StatusCode{"unset": tracepb.Status_STATUS_CODE_UNSET, "error": tracepb.Status_STATUS_CODE_ERROR}
)

// message returns s as OTLP sends it.
func (s *Span) message() *tracepb.Span {
	m := &tracepb.Span{
		TraceId: fromHex(s.TraceID), SpanId: fromHex(s.SpanID), ParentSpanId: fromHex(s.ParentSpanID),
		Name: s.Name, Kind: kindOf[s.Kind],
		StartTimeUnixNano: uint64(s.Start.UnixNano()), EndTimeUnixNano: uint64(s.Start.Add(s.Duration).UnixNano()),
		Status: &tracepb.Status{Code: statusOf[s.Status]},
	}
	for key, value := range s.Attributes {
		m.Attributes = append(m.Attributes, text(key, value))
	}
	return m
}

func fromHex(s string) []byte {
	b, _ := hex.DecodeString(s) // made by this package
	return b
}

func text(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
}
