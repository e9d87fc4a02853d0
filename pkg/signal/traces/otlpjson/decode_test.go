package otlpjson_test

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces/otlpjson"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
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
		b, problems, err := otlpjson.Decode([]byte(text))
		if err != nil || problems.Message() != "" {
			t.Fatalf("%s: %v, %v", name, problems.Message(), err)
		}
		var got coltracepb.ExportTraceServiceRequest
		if err := proto.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, &got, protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if b, _, err := otlpjson.Decode([]byte("{}")); err != nil || len(b) != 0 {
		t.Errorf("an empty request became %x, %v", b, err)
	}
}

// spanWith is a request of three spans, the second of which has these members too.
func spanWith(members string) string {
	const span = `{"traceId":"4bf92f3577b34da6a3ce929d0e0e4736","spanId":"00f067aa0ba902b%d","name":"span %d","startTimeUnixNano":1,"endTimeUnixNano":2%s}`
	var spans []string
	for i, more := range []string{"", "," + members, ""} {
		spans = append(spans, fmt.Sprintf(span, i, i, more))
	}
	return `{"resourceSpans":[{"scopeSpans":[{"spans":[` + strings.Join(spans, ",") + `]}]}]}`
}

func decode(t *testing.T, text string) (*coltracepb.ExportTraceServiceRequest, otlpjson.Problems) {
	t.Helper()
	b, problems, err := otlpjson.Decode([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if b, _, err = traces.Signal.Repair(nil, b); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	req := new(coltracepb.ExportTraceServiceRequest)
	if err := proto.Unmarshal(b, req); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return req, problems
}

func spansOf(req *coltracepb.ExportTraceServiceRequest) []*tracepb.Span {
	return req.GetResourceSpans()[0].GetScopeSpans()[0].GetSpans()
}

// What proto3's JSON mapping allows is read as it is meant.
func TestValues(t *testing.T) {
	attribute := func(value string) string { return `"attributes":[{"key":"k","value":` + value + `}]` }
	any := func(v *commonpb.AnyValue) func(*tracepb.Span) {
		return func(s *tracepb.Span) { s.Attributes = []*commonpb.KeyValue{{Key: "k", Value: v}} }
	}
	integer := func(i int64) func(*tracepb.Span) {
		return any(&commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: i}})
	}
	double := func(f float64) func(*tracepb.Span) {
		return any(&commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: f}})
	}
	text := func(s string) func(*tracepb.Span) {
		return any(&commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: s}})
	}
	binary := any(&commonpb.AnyValue{Value: &commonpb.AnyValue_BytesValue{BytesValue: []byte{0xfb, 0xff, 0xfe, 0x01}}})
	same := func(*tracepb.Span) {}
	for member, want := range map[string]func(*tracepb.Span){
		`"parentSpanId":null`:                                   same,
		`"parentSpanId":""`:                                     same,
		`"attributes":null,"events":null`:                       same,
		`"status":null,"kind":null,"flags":null`:                same,
		`"attributes":[null]`:                                   same,
		attribute(`null`):                                       any(nil),
		attribute(`{}`):                                         any(&commonpb.AnyValue{}),
		attribute(`{"doubleValue":null}`):                       any(&commonpb.AnyValue{}),
		attribute(`{"stringValue":null,"intValue":3}`):          integer(3),
		attribute(`{"intValue":3,"stringValue":null}`):          integer(3),
		attribute(`{"intValue":42}`):                            integer(42),
		attribute(`{"intValue":"42"}`):                          integer(42),
		attribute(`{"intValue":42.0}`):                          integer(42),
		attribute(`{"intValue":4.2e1}`):                         integer(42),
		attribute(`{"intValue":"420e-1"}`):                      integer(42),
		attribute(`{"intValue":-0.0}`):                          integer(0),
		attribute(`{"intValue":9223372036854775807}`):           integer(math.MaxInt64),
		attribute(`{"intValue":-9223372036854775808}`):          integer(math.MinInt64),
		attribute(`{"intValue":-9.223372036854775808e18}`):      integer(math.MinInt64),
		attribute(`{"doubleValue":1}`):                          double(1),
		attribute(`{"doubleValue":"1.5"}`):                      double(1.5),
		attribute(`{"doubleValue":"NaN"}`):                      double(math.NaN()),
		attribute(`{"doubleValue":"-Infinity"}`):                double(math.Inf(-1)),
		attribute(`{"doubleValue":5e-324}`):                     double(5e-324),
		attribute(`{"bytesValue":"+//+AQ=="}`):                  binary,
		attribute(`{"bytesValue":"-__-AQ=="}`):                  binary,
		attribute(`{"bytesValue":"-__-AQ"}`):                    binary,
		attribute(`{"bytesValue":"+//+AQ"}`):                    binary,
		attribute(`{"string_value":"a\u00e9\n\ud83d\ude00\/"}`): text("aé\n😀/"),
		attribute(`{"stringValue":"\ud800x"}`):                  text("\uFFFDx"),
		attribute("{\"stringValue\":\"caf\xc3\"}"):              text("caf\uFFFD"),
		attribute(`{"arrayValue":{"values":[null,{"intValue":1}]}}`): any(&commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: &commonpb.ArrayValue{
			Values: []*commonpb.AnyValue{{}, {Value: &commonpb.AnyValue_IntValue{IntValue: 1}}},
		}}}),
		`"kind":"SPAN_KIND_CLIENT"`:                    func(s *tracepb.Span) { s.Kind = 3 },
		`"kind":3.0`:                                   func(s *tracepb.Span) { s.Kind = 3 },
		`"kind":77`:                                    func(s *tracepb.Span) { s.Kind = 77 },
		`"status":{"code":"STATUS_CODE_ERROR"}`:        func(s *tracepb.Span) { s.Status = &tracepb.Status{Code: 2} },
		`"flags":4294967295`:                           func(s *tracepb.Span) { s.Flags = math.MaxUint32 },
		`"endTimeUnixNano":"1.8446744073709551615e19"`: func(s *tracepb.Span) { s.EndTimeUnixNano = math.MaxUint64 },
		`"na\u006de":"renamed"`:                        func(s *tracepb.Span) { s.Name = "renamed" },
		`"future":[{"a":"}"},"]"]`:                     same,
	} {
		req, problems := decode(t, spanWith(member))
		if text := problems.Message(); text != "" || len(spansOf(req)) != 3 {
			t.Errorf("%s: %d spans, %s", member, len(spansOf(req)), text)
			continue
		}
		expected, _ := decode(t, spanWith(`"name":"span 1"`))
		want(spansOf(expected)[1])
		if diff := cmp.Diff(expected, req, protocmp.Transform(), protocmp.IgnoreEmptyMessages(), cmp.Comparer(func(a, b float64) bool { return a == b || a != a && b != b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", member, diff)
		}
	}
}

// A bad value costs its span alone, and the sender hears which span, field and value it is.
func TestBadValueCostsItsSpan(t *testing.T) {
	for member, want := range map[string]string{
		`"attributes":[{"key":"k","value":{"intValue":"abc"}}]`:             `attributes.value.intValue: "abc" is not a whole number of 64 bits`,
		`"attributes":[{"value":{"intValue":42.5}}]`:                        `intValue: 42.5 is not a whole number`,
		`"attributes":[{"value":{"intValue":9223372036854775808}}]`:         `intValue: 9223372036854775808 is not`,
		`"attributes":[{"value":{"intValue":1e999999999999}}]`:              `intValue: 1e999999999999 is not`,
		`"attributes":[{"value":{"doubleValue":1e999}}]`:                    `doubleValue: 1e999 is not a number`,
		`"attributes":[{"value":{"boolValue":"yes"}}]`:                      `boolValue: "yes" is not true or false`,
		`"attributes":[{"value":{"bytesValue":"!"}}]`:                       `bytesValue: "!" is not base64`,
		`"attributes":[{"value":{"stringValue":7}}]`:                        `stringValue: 7 is not a string`,
		`"attributes":[{"value":{"kvlistValue":{"values":[{"value":5}]}}}]`: `attributes.value.kvlistValue.values.value: 5 is not an object`,
		`"attributes":{"key":"k"}`:                                          `attributes: {"key":"k"} is not a list`,
		`"attributes":["` + strings.Repeat("x", 10_000) + `"]`:              `xxx... is not an object`,
		`"parentSpanId":"xyz"`:                                              `parentSpanId: "xyz" is not hexadecimal`,
		`"links":[{"traceId":"abc"}]`:                                       `links.traceId: "abc" is not hexadecimal`,
		`"kind":"SPAN_KIND_WRONG"`:                                          `kind: "SPAN_KIND_WRONG" is not`,
		`"droppedEventsCount":-1`:                                           `droppedEventsCount: -1 is not`,
		`"flags":4294967296`:                                                `flags: 4294967296 is not`,
		`"startTimeUnixNano":"18446744073709551616"`:                        `startTimeUnixNano: "18446744073709551616" is not`,
	} {
		req, problems := decode(t, spanWith(member))
		got := problems.Message()
		if problems.Spans != 1 || !strings.Contains(got, want) || len(got) > 2<<10 ||
			!strings.Contains(got, `span 1 (counted from 0; traceId "4bf92f3577b34da6a3ce929d0e0e4736", spanId "00f067aa0ba902b1", name "span 1")`) {
			t.Errorf("%s: %d spans rejected: %s", member, problems.Spans, got)
		}
		if s := spansOf(req); len(s) != 2 || s[0].GetName() != "span 0" || s[1].GetName() != "span 2" {
			t.Errorf("%s: kept %v", member, s)
		}
	}
}

// In a resource or scope a bad value costs no span.
func TestBadValueOfResourceIsLeftOut(t *testing.T) {
	req, problems := decode(t, `{"resourceSpans":[{"schemaUrl":7,"resource":{"attributes":[{"key":"a","value":{"intValue":"x"}},{"key":"b","value":{"intValue":1}}],
		"droppedAttributesCount":-1},"scopeSpans":[{"scope":{"name":[]},"spans":[{"name":"kept"}]}]}]}`)
	want := &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: []*commonpb.KeyValue{{Key: "b", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: 1}}}}},
		ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{}, Spans: []*tracepb.Span{{Name: "kept"}}}},
	}}}
	if diff := cmp.Diff(want, req, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if text := problems.Message(); problems.Spans != 0 || problems.Values != 4 || !strings.Contains(text, `attributes.value.intValue: "x" is not`) && !strings.Contains(text, `value.intValue: "x" is not`) {
		t.Errorf("%+v: %s", problems, text)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, text := range []string{"", "[]", "null", `{"resourceSpans":{}}`, `{"resourceSpans":[7]}`, `{"resourceSpans":[{"scopeSpans":[{"spans":7}]}]}`, `{"resourceSpans":[]} x`, `{"a":`} {
		if _, _, err := otlpjson.Decode([]byte(text)); err == nil {
			t.Errorf("%s was accepted", text)
		}
	}
}

// Whatever a request is made of, the work on it grows with its bytes, and so does the memory.
func TestWorkIsLinear(t *testing.T) {
	span := func(members string) string {
		return `{"resourceSpans":[{"scopeSpans":[{"spans":[{` + members + `}]}]}]}`
	}
	list := func(n int, s string) string { return strings.Repeat(s+",", n/(len(s)+1)) + s }
	for name, text := range map[string]func(n int) string{
		"empty elements": func(n int) string { return span(`"events":[` + list(n, "{}") + `]`) },
		"empty spans":    func(n int) string { return `{"resourceSpans":[{"scopeSpans":[{"spans":[` + list(n, "{}") + `]}]}]}` },
		"bad spans":      func(n int) string { return `{"resourceSpans":[{"scopeSpans":[{"spans":[` + list(n, "1") + `]}]}]}` },
		"bad attributes": func(n int) string { return `{"resourceSpans":[{"resource":{"attributes":[` + list(n, "1") + `]}}]}` },
		"field again":    func(n int) string { return span(list(n, `"status":{"code":1}`)) },
		"nested": func(n int) string {
			return span(`"attributes":[{"value":` + strings.Repeat(`{"arrayValue":{"values":[`, 3000) + `{"stringValue":"` + strings.Repeat("x", n) + `"}` + strings.Repeat("]}}", 3000) + `}]`)
		},
		"nested and bad": func(n int) string {
			return span(`"attributes":[{"value":` + strings.Repeat(`{"arrayValue":{"values":[`, 3000) + `{"intValue":"` + strings.Repeat("x", n) + `"}` + strings.Repeat("]}}", 3000) + `}]`)
		},
		"escapes":        func(n int) string { return span(`"name":"` + strings.Repeat(`\u0041`, n/6) + `"`) },
		"digits":         func(n int) string { return span(`"flags":0.` + strings.Repeat("0", n) + `e5`) },
		"unknown fields": func(n int) string { return span(list(n, `"x":[{},[[]]]`)) },
	} {
		t.Run(name, func(t *testing.T) {
			requests := [2][]byte{[]byte(text(otlptest.SmallRequest)), []byte(text(otlptest.LargeRequest))}
			otlptest.Linear(t, 60, requests, func(body []byte) {
				if _, _, err := otlpjson.Decode(body); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// FuzzDecode holds Decode to its contract for bytes from anyone: no panic, a well-formed request comes out, and
// where the collector's decoder accepts the same bytes and nothing is left out, both say the same.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(traceJSON))
	f.Add([]byte(spanWith(`"attributes":[{"key":"k","value":{"intValue":"abc"}}]`)))
	f.Add([]byte(spanWith(`"attributes":[{"key":"k","value":{"doubleValue":null,"bytesValue":"-_"}}],"kind":"SPAN_KIND_SERVER"`)))
	f.Add([]byte(`{"resourceSpans":[null,{"resource":null,"scopeSpans":[{"spans":[{"traceId":null}]}]}]}`))
	f.Add([]byte(`{"":{},"resourceSpans":[{"":1}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		kept := string(body)
		out, problems, err := otlpjson.Decode(body)
		if string(body) != kept {
			t.Fatal("the body was written to")
		}
		if err != nil {
			return
		}
		out, texts, err := traces.Signal.Repair(nil, out)
		if err != nil {
			t.Fatalf("%q became malformed protobuf %x", body, out)
		}
		if problems.Message() != "" || texts > 0 || strings.Contains(kept, "null") || strings.Contains(kept, `\u`) || strings.Contains(kept, `""`) { // they take a key without a name for the end
			return
		}
		theirs := ptraceotlp.NewExportRequest()
		if theirs.UnmarshalJSON(body) != nil {
			return
		}
		b, err := theirs.MarshalProto()
		if err != nil {
			t.Fatal(err)
		}
		var got, want coltracepb.ExportTraceServiceRequest
		if err := proto.Unmarshal(b, &want); err != nil {
			return // they keep texts that are not UTF-8
		}
		if err := proto.Unmarshal(out, &got); err != nil {
			t.Fatal(err)
		}
		fill(got.ProtoReflect())
		fill(want.ProtoReflect())
		if diff := cmp.Diff(&want, &got, protocmp.Transform()); diff != "" {
			t.Fatalf("%q (-collector +got):\n%s", body, diff)
		}
	})
}

// fill sets every single message field outside of a oneof, as the collector does of some of them, and
// clears ids of zeros, which the collector takes for none.
func fill(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		switch f := fields.Get(i); {
		case f.Kind() == protoreflect.BytesKind && strings.HasSuffix(string(f.Name()), "_id") && len(bytes.Trim(m.Get(f).Bytes(), "\x00")) == 0:
			m.Clear(f)
		case f.Kind() != protoreflect.MessageKind:
		case f.IsList():
			for j := range m.Get(f).List().Len() {
				fill(m.Get(f).List().Get(j).Message())
			}
		case f.ContainingOneof() == nil || m.Has(f):
			fill(m.Mutable(f).Message())
		}
	}
}

// BenchmarkDecode reads requests of 512 spans.
func BenchmarkDecode(b *testing.B) {
	body := jsonOf(b)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := otlpjson.Decode(body); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCollector does the same with the collector's decoder.
func BenchmarkCollector(b *testing.B) {
	body := jsonOf(b)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		req := ptraceotlp.NewExportRequest()
		if err := req.UnmarshalJSON(body); err != nil {
			b.Fatal(err)
		}
		if _, err := req.MarshalProto(); err != nil {
			b.Fatal(err)
		}
	}
}

func jsonOf(b *testing.B) []byte {
	b.Helper()
	req := ptraceotlp.NewExportRequest()
	if err := req.UnmarshalProto(otlptest.New(1, otlptest.Options{Start: time.Unix(1_700_000_000, 0)}).RequestBytes(512)); err != nil {
		b.Fatal(err)
	}
	body, err := req.MarshalJSON()
	if err != nil {
		b.Fatal(err)
	}
	return body
}
