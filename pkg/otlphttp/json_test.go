package otlphttp

import (
	"bytes"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/metaflowys/metaflow-server/pkg/otlp"
)

// traceJSON has what is particular to OTLP's JSON: ids in hex of either case,
// enums as integers, 64-bit integers as strings or numbers, bytes in base64, and fields
// that nobody knows.
const traceJSON = `{"resourceSpans":[{
	"resource":{"attributes":[
		{"key":"service.name","value":{"stringValue":"shop \u00e9\ud83d\ude00"}},
		{"key":"many","value":{"arrayValue":{"values":[{"intValue":"-7"},{"doubleValue":1.5},{"boolValue":true},{"bytesValue":"AQID"}]}}}]},
	"scopeSpans":[{"scope":{"name":"lib","version":"1"},"schemaUrl":"s","spans":[{
		"traceId":"4BF92F3577b34da6a3ce929d0e0e4736","spanId":"00f067aa0ba902b7","parentSpanId":"","name":"GET /",
		"kind":2,"startTimeUnixNano":"1544712660000000000","endTimeUnixNano":1544712661000000000,
		"flags":257,"futureField":{"deep":[1,2,{"er":null}]},
		"events":[{"timeUnixNano":"1","name":"e"}],
		"links":[{"traceId":"4bf92f3577b34da6a3ce929d0e0e4736","spanId":"00f067aa0ba902b7"}],
		"status":{"code":2,"message":"no"}}]}]}],"unknown":[{}]}`

func TestJSONBecomesTheSameRequest(t *testing.T) {
	trace := []byte("\x4b\xf9\x2f\x35\x77\xb3\x4d\xa6\xa3\xce\x92\x9d\x0e\x0e\x47\x36")
	span := []byte("\x00\xf0\x67\xaa\x0b\xa9\x02\xb7")
	want := &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource: &resourcepb.Resource{Attributes: []*commonpb.KeyValue{
			{Key: "service.name", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: "shop é😀"}}},
			{Key: "many", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: &commonpb.ArrayValue{Values: []*commonpb.AnyValue{
				{Value: &commonpb.AnyValue_IntValue{IntValue: -7}},
				{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: 1.5}},
				{Value: &commonpb.AnyValue_BoolValue{BoolValue: true}},
				{Value: &commonpb.AnyValue_BytesValue{BytesValue: []byte{1, 2, 3}}},
			}}}}},
		}},
		ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{Name: "lib", Version: "1"}, SchemaUrl: "s", Spans: []*tracepb.Span{{
			TraceId: trace, SpanId: span, Name: "GET /", Kind: tracepb.Span_SPAN_KIND_SERVER,
			StartTimeUnixNano: 1544712660000000000, EndTimeUnixNano: 1544712661000000000, Flags: 257,
			Events: []*tracepb.Span_Event{{TimeUnixNano: 1, Name: "e"}},
			Links:  []*tracepb.Span_Link{{TraceId: trace, SpanId: span}},
			Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "no"},
		}}}},
	}}}
	for name, text := range map[string]string{"as it stands": traceJSON, "in snake case": strings.NewReplacer(
		"resourceSpans", "resource_spans", "traceId", "trace_id", "spanId", "span_id", "startTimeUnixNano", "start_time_unix_nano",
	).Replace(traceJSON)} {
		b, err := protobufOf([]byte(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got coltracepb.ExportTraceServiceRequest
		if err := proto.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, &got, protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if b, err := protobufOf([]byte("{}")); err != nil || len(b) != 0 {
		t.Errorf("an empty request became %x, %v", b, err)
	}
}

// What is granted for JSON covers what is allocated for it, whatever it is made of.
func TestJSONMemoryIsABound(t *testing.T) {
	const n = 200_000
	list := func(before, element, after string) string {
		return before + element + strings.Repeat(","+element, n) + after
	}
	spans := func(span string) string { return list(`{"resourceSpans":[{"scopeSpans":[{"spans":[`, span, `]}]}]}`) }
	attributes := func(kv string) string { return list(`{"resourceSpans":[{"resource":{"attributes":[`, kv, `]}}]}`) }
	for name, text := range map[string]string{
		"resources":    list(`{"resourceSpans":[`, `{}`, `]}`),
		"null":         list(`{"resourceSpans":[`, `null`, `]}`),
		"scopes":       list(`{"resourceSpans":[{"scopeSpans":[`, `{}`, `]}]}`),
		"spans":        spans(`{}`),
		"named spans":  spans(`{"name":"GET /"}`),
		"events":       spans(`{"events":[{}]}`),
		"links":        spans(`{"links":[{}]}`),
		"attributes":   attributes(`{}`),
		"texts":        attributes(`{"key":"k","value":{"stringValue":"v"}}`),
		"lists":        attributes(`{"value":{"arrayValue":{"values":[{}]}}}`),
		"numbers":      attributes(`{"value":{"intValue":1}}`),
		"one in other": `{"resourceSpans":[{"resource":{"attributes":[{"value":` + strings.Repeat(`{"arrayValue":{"values":[`, 3000) + strings.Repeat("]}}", 3000) + `}]}}]}`,
		"entities":     list(`{"resourceSpans":[{"resource":{"entityRefs":[`, `{}`, `]}}]}`),
		"keys":         list(`{"resourceSpans":[{"resource":{"entityRefs":[{"idKeys":[`, `""`, `]}]}}]}`),
	} {
		t.Run(name, func(t *testing.T) {
			body := []byte(text)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if _, err := protobufOf(body); err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
			used, granted := int64(after.TotalAlloc-before.TotalAlloc), jsonMemory(body)
			t.Logf("%d bytes of JSON: %d allocated, %d granted, %.0f an element", len(body), used, granted, float64(used)/n)
			if used > granted {
				t.Errorf("%d bytes of JSON allocate %d, %d granted", len(body), used, granted)
			}
		})
	}
}

// FuzzProtobufOf: no panic, and what is accepted is a valid request.
func FuzzProtobufOf(f *testing.F) {
	f.Add([]byte(traceJSON))
	f.Add([]byte(`{"resourceSpans":[null,{"resource":null,"scopeSpans":[{"spans":[{"traceId":null}]}]}]}`))
	f.Add([]byte(`{"":{},"resourceSpans":[{"":1}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		out, err := protobufOf(bytes.Clone(body))
		if err == nil && otlp.Check(out) != nil {
			t.Fatalf("%q became malformed protobuf %x", body, out)
		}
	})
}
