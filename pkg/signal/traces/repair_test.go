package traces_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

// spoiled is a request with a byte that is not UTF-8 in the place of each tilde.
func spoiled(req []byte) []byte { return bytes.ReplaceAll(req, []byte("~"), []byte{0xff}) }

// mended is the text that a tilde in s stands for once it has been spoiled and repaired.
func mended(s string) string { return strings.ReplaceAll(s, "~", "\uFFFD") }

// everyText is a span, with resource and scope, that has the text wherever a text may stand.
func everyText(text string) *coltracepb.ExportTraceServiceRequest {
	value := func(v *commonpb.AnyValue) *commonpb.KeyValue { return &commonpb.KeyValue{Key: text, Value: v} }
	str := &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: text}}
	array := &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: &commonpb.ArrayValue{Values: []*commonpb.AnyValue{str, str}}}}
	object := &commonpb.AnyValue{Value: &commonpb.AnyValue_KvlistValue{KvlistValue: &commonpb.KeyValueList{Values: []*commonpb.KeyValue{value(array)}}}}
	attributes := []*commonpb.KeyValue{value(str), value(object)}
	return &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource: &resourcepb.Resource{Attributes: attributes, EntityRefs: []*commonpb.EntityRef{{
			SchemaUrl: text, Type: text, IdKeys: []string{text}, DescriptionKeys: []string{text, "ok"},
		}}},
		SchemaUrl: text,
		ScopeSpans: []*tracepb.ScopeSpans{{
			Scope: &commonpb.InstrumentationScope{Name: text, Version: text, Attributes: attributes}, SchemaUrl: text,
			Spans: []*tracepb.Span{newSpan(1, 1, func(s *tracepb.Span) {
				s.Name, s.TraceState, s.Attributes = text, text, attributes
				s.Status = &tracepb.Status{Message: text}
				s.Events = []*tracepb.Span_Event{{Name: text, Attributes: attributes}}
				s.Links = []*tracepb.Span_Link{{TraceState: text, Attributes: attributes}}
			})},
		}},
	}}}
}

// Wherever a text is not UTF-8, it alone is repaired, by the gateway's walk and the agent's, and each time in the
// same way.
func TestRepair(t *testing.T) {
	for _, text := range []string{"~", "a~", "~b", "a~b~c", strings.Repeat("x", 127) + "~", "日~本"} {
		in := spoiled(marshal(t, everyText(text)))
		want := everyText(mended(text))
		out, texts, err := traces.Signal.Repair(nil, in)
		if err != nil || texts == 0 {
			t.Fatalf("Repair: %d texts, %v", texts, err)
		}
		records, rejected, err := traces.Signal.NewSplitter().Split(in, options())
		if err != nil || len(records) != 1 || rejected.Total() != 0 || rejected.RepairedTexts != texts {
			t.Fatalf("Split: %d records, rejected %v, %v", len(records), rejected, err)
		}
		forwarded, _, err := traces.AddHostAddress(nil, in, "")
		if err != nil {
			t.Fatal(err)
		}
		selected, err := traces.Signal.Select(in, func(int) bool { return true })
		if err != nil {
			t.Fatal(err)
		}
		for name, got := range map[string][]byte{"Repair": out, "Split": records[0].Value, "AddHostAddress": forwarded, "Select": selected} {
			if diff := cmp.Diff(want, unmarshal(t, got), protocmp.Transform()); diff != "" {
				t.Errorf("%s of %q (-want +got):\n%s", name, text, diff)
			}
		}
		again, _, err := traces.Signal.NewSplitter().Split(in, options())
		if err != nil || !bytes.Equal(again[0].Value, records[0].Value) || !bytes.Equal(again[0].Content, records[0].Content) {
			t.Error("the second time gives other bytes")
		}
	}
}

// One span of many has a bad byte: all are stored, and the others keep every byte.
func TestOneBadByteCostsNoSpan(t *testing.T) {
	var spans []*tracepb.Span
	for i := range 500 {
		spans = append(spans, newSpan(byte(i%7), byte(i%255+1)))
	}
	spans[77].Attributes = append(spans[77].Attributes, otlptest.Text("note", "caf~"))
	records, rejected, err := traces.Signal.NewSplitter().Split(spoiled(marshal(t, newRequest("shop", spans...))), options())
	if err != nil || rejected.RepairedTexts != 1 {
		t.Fatal(rejected, err)
	}
	kept := 0
	for _, r := range records {
		kept += r.Items
	}
	if total := int64(kept) + rejected.Total(); total != 500 || rejected.Count[traces.BadTraceID] != rejected.Total() {
		t.Errorf("%d spans kept, rejected %v", kept, rejected.Count)
	}
}

// A run of bad bytes becomes one U+FFFD, and what only looks like a bad one stays.
func TestRepairedText(t *testing.T) {
	for in, want := range map[string]string{
		"\xff\xfe\xfd": "\uFFFD", "a\xe6\x97": "a\uFFFD", "\xffa\xff": "\uFFFDa\uFFFD", "\uFFFD\xff": "\uFFFD\uFFFD", "\xed\xa0\x80": "\uFFFD",
	} {
		req := newRequest("shop", newSpan(1, 1, func(s *tracepb.Span) { s.Name = strings.Repeat("#", len(in)) }))
		b := bytes.Replace(marshal(t, req), bytes.Repeat([]byte("#"), len(in)), []byte(in), 1)
		out, _, err := traces.Signal.Repair(nil, b)
		if err != nil {
			t.Fatal(err)
		}
		if got := unmarshal(t, out).GetResourceSpans()[0].GetScopeSpans()[0].GetSpans()[0].GetName(); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

// What partial_success says names the span, the field and what is wrong with it, and is short.
func TestMessageNamesSpans(t *testing.T) {
	req := newRequest("shop", newSpan(1, 1), newSpan(1, 2, func(s *tracepb.Span) { s.TraceId, s.Name = []byte{0xab, 0xcd}, "GET /cart" }), newSpan(1, 3),
		newSpan(1, 4, func(s *tracepb.Span) { s.EndTimeUnixNano = 1<<64 - 1 }))
	_, rejected, err := traces.Signal.NewSplitter().Split(marshal(t, req), options())
	if err != nil {
		t.Fatal(err)
	}
	got := traces.Signal.Explain(&rejected, window, 900<<10)
	for _, want := range []string{
		"1 spans rejected: trace_id is not 16 bytes or all zero", `span 1 (counted from 0; trace_id abcd, span_id 0202020202020202, name "GET /cart")`,
		"1 spans rejected: end_time is not between 2026-11-15T12:00:00Z and 2026-11-22T13:00:00Z", `name "span 1/4") has end_time 18446744073709551615`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("message %q\nlacks %q", got, want)
		}
	}

	var spans []*tracepb.Span
	for range 1000 {
		spans = append(spans, newSpan(1, 1, func(s *tracepb.Span) {
			s.TraceId, s.Name = bytes.Repeat([]byte{1}, 1000), strings.Repeat("\x00", 1000)
		}))
	}
	_, rejected, err = traces.Signal.NewSplitter().Split(marshal(t, newRequest("shop", spans...)), options())
	if text := traces.Signal.Explain(&rejected, window, 900<<10); err != nil || len(text) > 2<<10 || !strings.HasPrefix(text, "1000 spans rejected") {
		t.Errorf("%d bytes: %s, %v", len(text), text, err)
	}
}
