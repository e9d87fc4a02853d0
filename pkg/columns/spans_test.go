package columns_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/pkg/columns"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
	"github.com/metaflowys/metaflow-server/pkg/testkit/otlptest"
)

func str(s string) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: s}}
}

func integer(i int64) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: i}}
}

func double(f float64) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: f}}
}

func boolean(b bool) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: b}}
}

func binary(b string) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_BytesValue{BytesValue: []byte(b)}}
}

func array(v ...*commonpb.AnyValue) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: &commonpb.ArrayValue{Values: v}}}
}

func kvlist(v ...*commonpb.KeyValue) *commonpb.AnyValue {
	return &commonpb.AnyValue{Value: &commonpb.AnyValue_KvlistValue{KvlistValue: &commonpb.KeyValueList{Values: v}}}
}

func kv(key string, v *commonpb.AnyValue) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: v}
}

func newSpan(attributes ...*commonpb.KeyValue) *tracepb.Span {
	return &tracepb.Span{
		TraceId: []byte("0123456789abcdef"), SpanId: []byte("01234567"),
		StartTimeUnixNano: 1_700_000_000_000_000_001, EndTimeUnixNano: 1_700_000_000_000_000_009, Attributes: attributes,
	}
}

func request(spans ...*tracepb.Span) *coltracepb.ExportTraceServiceRequest {
	return &coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: []*commonpb.KeyValue{kv("service.name", str("shop"))}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans}},
	}}}
}

// decode appends the request and reads the rows back.
func decode(t *testing.T, wire []byte) []row {
	t.Helper()
	s := columns.NewSpans()
	refused, err := s.Append(wire, columns.Source{Agent: "node-1", Window: everything})
	if err != nil || len(refused) > 0 {
		t.Fatalf("Append: refused %v, %v", refused, err)
	}
	rows, err := read(s)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Every type of attribute keeps its value as lossless text.
func TestAttributeValues(t *testing.T) {
	tests := map[string]struct {
		value *commonpb.AnyValue
		want  string
	}{
		"text":                      {str("GET"), "GET"},
		"text that looks like json": {str(`{"a"`), `{"a"`},
		"empty text":                {str(""), ""},
		"no value":                  {&commonpb.AnyValue{}, ""},
		"missing value":             {nil, ""},
		"largest integer":           {integer(math.MaxInt64), "9223372036854775807"},
		"smallest integer":          {integer(math.MinInt64), "-9223372036854775808"},
		"true":                      {boolean(true), "true"},
		"false":                     {boolean(false), "false"},
		"double":                    {double(0.1), "0.1"},
		"whole double":              {double(100_000_000), "100000000"},
		"large double":              {double(1e300), "1e+300"},
		"tiny double":               {double(5e-324), "5e-324"},
		"negative zero":             {double(math.Copysign(0, -1)), "-0"},
		"not a number":              {double(math.NaN()), "NaN"},
		"infinity":                  {double(math.Inf(-1)), "-Inf"},
		"bytes":                     {binary("\x00\xff"), "AP8="},
		"array":                     {array(str("a"), integer(1), boolean(true), double(1.5), binary("\x00"), &commonpb.AnyValue{}), `["a",1,true,1.5,"AA==",null]`},
		"array of odd numbers":      {array(double(math.NaN()), double(math.Inf(1))), `["NaN","+Inf"]`},
		"empty array":               {array(), "[]"},
		"nested lists":              {kvlist(kv("a", array(kvlist(kv("b", integer(math.MaxInt64)))))), `{"a":[{"b":9223372036854775807}]}`},
		"text in a list":            {array(str("quote \" backslash \\ newline \n bell \a é")), `["quote \" backslash \\ newline \n bell \u0007 é"]`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			rows := decode(t, marshal(t, request(newSpan(kv("key", tc.value)))))
			if diff := cmp.Diff([]pair{{"key", tc.want}}, rows[0].Attributes); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Protobuf allows what encoders never write: repeated singular fields. The last one
// counts, and messages merge.
func TestFieldsGivenTwice(t *testing.T) {
	value := append(marshal(t, array(integer(1))), marshal(t, array(integer(2)))...)
	pieces := marshal(t, &commonpb.KeyValue{Key: "list"})
	for _, v := range [][]byte{marshal(t, str("replaced")), value} {
		pieces = append(append(pieces, 0x12, byte(len(v))), v...)
	}
	span := append(marshal(t, newSpan()), 0x4a, byte(len(pieces)))
	span = append(span, pieces...)
	span = append(span, marshal(t, &tracepb.Span{Name: "first", Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR}})...)
	span = append(span, marshal(t, &tracepb.Span{Name: "last", Status: &tracepb.Status{Message: "why"}})...)
	scope := append([]byte{0x12, byte(len(span) | 0x80), byte(len(span) >> 7)}, span...)
	resource := append([]byte{0x12, byte(len(scope) | 0x80), byte(len(scope) >> 7)}, scope...)
	for _, name := range []string{"first", "last"} {
		r := marshal(t, &resourcepb.Resource{Attributes: []*commonpb.KeyValue{kv("attribute."+name, str("x"))}})
		resource = append(append(resource, 0x0a, byte(len(r))), r...)
	}
	req := append([]byte{0x0a, byte(len(resource) | 0x80), byte(len(resource) >> 7)}, resource...)

	rows := decode(t, req)
	if len(rows) != 1 {
		t.Fatalf("%d rows", len(rows))
	}
	got := rows[0]
	if got.Name != "last" || got.StatusCode != "error" || got.StatusMessage != "why" {
		t.Errorf("name %q, status %s %q", got.Name, got.StatusCode, got.StatusMessage)
	}
	if diff := cmp.Diff([]pair{{"list", "[1,2]"}}, got.Attributes); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	if want := `{"attribute.first":"x","attribute.last":"x"}`; got.Resource != want {
		t.Errorf("resource %s, want %s", got.Resource, want)
	}
}

// The last value of a repeated key counts everywhere: in maps, in JSON, and in derived
// columns.
func TestRepeatedKeys(t *testing.T) {
	twice := []*commonpb.KeyValue{kv("a", integer(1)), kv("b", str("x")), kv("a", kvlist(kv("c", integer(1)), kv("c", integer(2))))}
	span := newSpan(append(twice, kv("http.request.method", str("GET")), kv("http.response.status_code", integer(200)),
		kv("http.request.method", str("POST")), kv("http.response.status_code", str("")))...)
	span.Kind = tracepb.Span_SPAN_KIND_SERVER
	span.Events = []*tracepb.Span_Event{{Attributes: twice}, {Attributes: twice[:2]}}
	span.Links = []*tracepb.Span_Link{{Attributes: twice}}
	req := request(span, newSpan(twice[:2]...))
	req.GetResourceSpans()[0].Resource.Attributes = append(twice, kv("service.name", str("first")), kv("service.name", str("last")))
	req.GetResourceSpans()[0].GetScopeSpans()[0].Scope = &commonpb.InstrumentationScope{Attributes: twice}
	rows := decode(t, marshal(t, req))
	want := []pair{{"b", "x"}, {"a", `{"c":2}`}}
	got := rows[0]
	for name, pairs := range map[string][]pair{"span": got.Attributes[:2], "event": got.Events[0].Attributes, "link": got.Links[0].Attributes} {
		if diff := cmp.Diff(want, pairs); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if diff := cmp.Diff([]pair{{"http.request.method", "POST"}, {"http.response.status_code", ""}}, got.Attributes[2:]); diff != "" || got.Method != "POST" || got.ResponseCode != "" {
		t.Errorf("method %q, response code %q (-want +got):\n%s", got.Method, got.ResponseCode, diff)
	}
	if want := `{"b":"x","a":"{\"c\":2}","service.name":"last"}`; got.Resource != want || got.Service != "last" {
		t.Errorf("resource %s of %s, want %s", got.Resource, got.Service, want)
	}
	if want := `{"attributes":"{\"b\":\"x\",\"a\":\"{\\\"c\\\":2}\"}"}`; got.Scope != want {
		t.Errorf("scope %s, want %s", got.Scope, want)
	}
	whole := []pair{{"a", "1"}, {"b", "x"}}
	if diff := cmp.Diff(whole, rows[1].Attributes); diff != "" {
		t.Errorf("the next span (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(whole, got.Events[1].Attributes); diff != "" {
		t.Errorf("the next event (-want +got):\n%s", diff)
	}
}

// A time beyond the column's range becomes the last one in range.
func TestEventTimeBehindTheColumn(t *testing.T) {
	span := newSpan()
	for _, at := range []uint64{0, math.MaxInt64, math.MaxInt64 + 1, math.MaxUint64} {
		span.Events = append(span.Events, &tracepb.Span_Event{TimeUnixNano: at})
	}
	var got []uint64
	for _, e := range decode(t, marshal(t, request(span)))[0].Events {
		got = append(got, e.Time)
	}
	if diff := cmp.Diff([]uint64{0, math.MaxInt64, math.MaxInt64, math.MaxInt64}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Both ends of the connection appear in the columns as resolved by the conventions.
func TestAddressesAndPorts(t *testing.T) {
	span := newSpan(kv("network.local.address", str("10.0.0.1")), kv("network.local.port", integer(8080)),
		kv("network.peer.address", str("10.0.0.2")), kv("network.peer.port", str("40001")))
	span.Kind = tracepb.Span_SPAN_KIND_SERVER
	got := decode(t, marshal(t, request(span)))[0]
	if got.IP != "::ffff:10.0.0.1" || got.Port != 8080 || got.PeerIP != "::ffff:10.0.0.2" || got.PeerPort != 40001 {
		t.Errorf("%s:%d and %s:%d", got.IP, got.Port, got.PeerIP, got.PeerPort)
	}
}

// Rarely queried attributes are in one text per resource and agent.
func TestOrigin(t *testing.T) {
	req := request(newSpan())
	rs := req.GetResourceSpans()[0]
	rs.SchemaUrl = "https://opentelemetry.io/schemas/1.40.0"
	rs.Resource.DroppedAttributesCount = 3
	rs.Resource.Attributes = []*commonpb.KeyValue{
		kv("service.namespace", str("shop")), kv("service.instance.id", str("i-1")), kv("k8s.cluster.name", str("c")),
		kv("k8s.pod.uid", str("u")), kv("k8s.pod.name", str("p")), kv("k8s.node.name", str("n \"quoted\"")),
	}
	got := decode(t, marshal(t, req))[0]
	want := `{"agent_id":"node-1","service_namespace":"shop","service_instance_id":"i-1","cluster":"c","node":"n \"quoted\"","pod_uid":"u",` +
		`"schema_url":"https://opentelemetry.io/schemas/1.40.0","dropped_attributes_count":3}`
	if got.Origin != want || got.Pod != "p" {
		t.Errorf("pod %q, origin %s, want %s", got.Pod, got.Origin, want)
	}
}

func TestAppendRefuses(t *testing.T) {
	good, bad := newSpan(), newSpan()
	bad.TraceId = bad.TraceId[:3]
	s := columns.NewSpans()
	refused, err := s.Append(marshal(t, request(good, bad, good)), columns.Source{Window: everything})
	if err != nil || s.Rows() != 2 {
		t.Errorf("%d rows, %v", s.Rows(), err)
	}
	if diff := cmp.Diff([]signal.Refused{{Index: 1, Reason: traces.Signal.Label(traces.BadTraceID)}}, refused); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := s.Append([]byte("garbage"), columns.Source{Window: everything}); !errors.Is(err, signal.ErrMalformed) {
		t.Errorf("garbage: %v", err)
	}
	if rows, err := read(s); err != nil || len(rows) != 2 {
		t.Errorf("the block has %d rows after garbage, %v", len(rows), err)
	}
}

func TestAppendSkips(t *testing.T) {
	a, b := newSpan(), newSpan()
	b.SpanId = []byte("76543210")
	s := columns.NewSpans()
	_, err := s.Append(marshal(t, request(a, b)), columns.Source{Window: everything, Skip: func(i int, key signal.Key) bool {
		_, id := traces.IDs(&key)
		return i == 0 && string(id) == "01234567"
	}})
	if err != nil || s.Rows() != 1 {
		t.Fatalf("%d rows, %v", s.Rows(), err)
	}
	s.Keys(func(key signal.Key) {
		traceID, spanID := traces.IDs(&key)
		if string(spanID) != "76543210" || string(traceID) != "0123456789abcdef" || uint64(key.Time) != b.StartTimeUnixNano {
			t.Errorf("key %+v", key)
		}
	})
}

// A reused block contains nothing of its first use.
func TestResetForgets(t *testing.T) {
	s := columns.NewSpans()
	for round := range 3 {
		s.Reset()
		for i := range 300 { // more names than fit in one byte
			span := newSpan(kv(fmt.Sprint("key", i), str("v")))
			span.Name = fmt.Sprint("name ", round, i)
			if _, err := s.Append(marshal(t, request(span)), columns.Source{Window: everything}); err != nil {
				t.Fatal(err)
			}
		}
		rows, err := read(s)
		if err != nil || len(rows) != 300 {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		if want := fmt.Sprint("name ", round, 299); rows[299].Name != want {
			t.Errorf("name %q, want %q", rows[299].Name, want)
		}
	}
}

// For any request, the rows match the official runtime's messages.
func TestAppendAgreesWithTheOfficialRuntime(t *testing.T) {
	s := columns.NewSpans()
	rapid.Check(t, func(t *rapid.T) {
		req := drawRequest(t)
		wire, err := proto.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		s.Reset()
		if _, err := s.Append(wire, columns.Source{Window: everything}); err != nil {
			t.Fatal(err)
		}
		got, err := read(s)
		if err != nil {
			t.Fatal(err)
		}
		for i := range got { // the conventions have their own tests
			g := &got[i]
			g.Service, g.Pod, g.Protocol, g.Method, g.Endpoint, g.ResponseCode, g.IP, g.PeerIP, g.Port, g.PeerPort = "", "", "", "", "", "", "", "", 0, 0
			g.Origin = ""
		}
		if diff := cmp.Diff(expect(req), got); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}

func expect(req *coltracepb.ExportTraceServiceRequest) []row {
	var rows []row
	for _, rs := range req.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			for _, sp := range ss.GetSpans() {
				r := row{
					TraceID: hex.EncodeToString(sp.GetTraceId()), SpanID: hex.EncodeToString(sp.GetSpanId()),
					ParentSpanID: hex.EncodeToString(sp.GetParentSpanId()), TraceState: sp.GetTraceState(), Flags: sp.GetFlags(), Name: sp.GetName(),
					Kind:       strings.ToLower(strings.TrimPrefix(sp.GetKind().String(), "SPAN_KIND_")),
					StatusCode: strings.ToLower(strings.TrimPrefix(sp.GetStatus().GetCode().String(), "STATUS_CODE_")), StatusMessage: sp.GetStatus().GetMessage(),
					Start: sp.GetStartTimeUnixNano(), Duration: int64(sp.GetEndTimeUnixNano() - sp.GetStartTimeUnixNano()),
					Attributes: expectPairs(sp.GetAttributes()),
					Dropped:    [3]uint32{sp.GetDroppedAttributesCount(), sp.GetDroppedEventsCount(), sp.GetDroppedLinksCount()},
					Resource:   expectObject(rs.GetResource().GetAttributes()),
					Scope:      expectScope(ss),
				}
				for _, e := range sp.GetEvents() {
					r.Events = append(r.Events, event{min(e.GetTimeUnixNano(), math.MaxInt64), e.GetName(), expectPairs(e.GetAttributes()), e.GetDroppedAttributesCount()})
				}
				for _, l := range sp.GetLinks() {
					r.Links = append(r.Links, link{
						hex.EncodeToString(l.GetTraceId()), hex.EncodeToString(l.GetSpanId()), l.GetTraceState(),
						expectPairs(l.GetAttributes()), l.GetDroppedAttributesCount(), l.GetFlags(),
					})
				}
				rows = append(rows, r)
			}
		}
	}
	return rows
}

func expectPairs(kvs []*commonpb.KeyValue) []pair {
	var out []pair
	for _, a := range lastOfEachKey(kvs) {
		out = append(out, pair{a.GetKey(), expectText(a.GetValue())})
	}
	return out
}

// lastOfEachKey omits values that a later value of the same key replaces.
func lastOfEachKey(kvs []*commonpb.KeyValue) (out []*commonpb.KeyValue) {
	last := map[string]int{}
	for i, a := range kvs {
		last[a.GetKey()] = i
	}
	for i, a := range kvs {
		if last[a.GetKey()] == i {
			out = append(out, a)
		}
	}
	return out
}

func expectObject(kvs []*commonpb.KeyValue) string {
	if len(kvs) == 0 {
		return ""
	}
	var fields []string
	for _, a := range lastOfEachKey(kvs) {
		fields = append(fields, quote(a.GetKey())+":"+quote(expectText(a.GetValue())))
	}
	return "{" + strings.Join(fields, ",") + "}"
}

func expectScope(ss *tracepb.ScopeSpans) string {
	var fields []string
	for _, f := range [][2]string{
		{"name", ss.GetScope().GetName()},
		{"version", ss.GetScope().GetVersion()},
		{"schema_url", ss.GetSchemaUrl()},
		{"attributes", expectObject(ss.GetScope().GetAttributes())},
	} {
		if f[1] != "" {
			fields = append(fields, quote(f[0])+":"+quote(f[1]))
		}
	}
	if n := ss.GetScope().GetDroppedAttributesCount(); n > 0 {
		fields = append(fields, fmt.Sprintf(`"dropped_attributes_count":%d`, n))
	}
	if len(fields) == 0 {
		return ""
	}
	return "{" + strings.Join(fields, ",") + "}"
}

func expectText(v *commonpb.AnyValue) string {
	switch v := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return v.StringValue
	case *commonpb.AnyValue_BytesValue:
		return base64.StdEncoding.EncodeToString(v.BytesValue)
	case *commonpb.AnyValue_DoubleValue:
		return expectDouble(v.DoubleValue)
	case nil:
		return ""
	}
	return expectJSON(v)
}

func expectDouble(v float64) string {
	if abs := math.Abs(v); abs >= 1e-6 && abs < 1e21 || abs == 0 {
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

func expectJSON(v *commonpb.AnyValue) string {
	switch v := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return quote(v.StringValue)
	case *commonpb.AnyValue_BytesValue:
		return quote(base64.StdEncoding.EncodeToString(v.BytesValue))
	case *commonpb.AnyValue_IntValue:
		return strconv.FormatInt(v.IntValue, 10)
	case *commonpb.AnyValue_BoolValue:
		return strconv.FormatBool(v.BoolValue)
	case *commonpb.AnyValue_DoubleValue:
		if math.IsNaN(v.DoubleValue) || math.IsInf(v.DoubleValue, 0) {
			return quote(expectDouble(v.DoubleValue))
		}
		return expectDouble(v.DoubleValue)
	case *commonpb.AnyValue_ArrayValue:
		var parts []string
		for _, e := range v.ArrayValue.GetValues() {
			parts = append(parts, expectJSON(e))
		}
		return "[" + strings.Join(parts, ",") + "]"
	case *commonpb.AnyValue_KvlistValue:
		var parts []string
		for _, e := range lastOfEachKey(v.KvlistValue.GetValues()) {
			parts = append(parts, quote(e.GetKey())+":"+expectJSON(e.GetValue()))
		}
		return "{" + strings.Join(parts, ",") + "}"
	default:
		return "null"
	}
}

func quote(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case c == '"' || c == '\\':
			b.WriteString("\\" + string(c))
		case c == '\n':
			b.WriteString("\\n")
		case c == '\t':
			b.WriteString("\\t")
		case c == '\r':
			b.WriteString("\\r")
		case c < ' ':
			fmt.Fprintf(&b, "\\u%04x", c)
		default:
			b.WriteByte(c)
		}
	}
	return `"` + b.String() + `"`
}

// words are the parts of random texts: everything that JSON treats specially.
var words = rapid.SampledFrom([]string{"", "a", "é", "\"", "\\", "\n", "日本", "service.name", strings.Repeat("long ", 60)})

func drawText(t *rapid.T, label string) string {
	return words.Draw(t, label) + words.Draw(t, label)
}

func drawValue(t *rapid.T, depth int) *commonpb.AnyValue {
	last := 7
	if depth == 0 {
		last = 5
	}
	switch rapid.IntRange(0, last).Draw(t, "type") {
	case 0:
		return nil
	case 1:
		return integer(rapid.Int64().Draw(t, "int"))
	case 2:
		return boolean(rapid.Bool().Draw(t, "bool"))
	case 3:
		return double(float64(rapid.Int64Range(-1<<40, 1<<40).Draw(t, "double")) / 64)
	case 4:
		return binary(drawText(t, "bytes"))
	case 6:
		var v []*commonpb.AnyValue
		for range rapid.IntRange(0, 3).Draw(t, "array") {
			v = append(v, &commonpb.AnyValue{Value: drawValue(t, depth-1).GetValue()})
		}
		return array(v...)
	case 7:
		return kvlist(drawAttributes(t, depth-1)...)
	default:
		return str(drawText(t, "text"))
	}
}

func drawAttributes(t *rapid.T, depth int) []*commonpb.KeyValue {
	var out []*commonpb.KeyValue
	for range rapid.IntRange(0, 4).Draw(t, "attributes") {
		out = append(out, kv(drawText(t, "key"), drawValue(t, depth)))
	}
	return out
}

func drawRequest(t *rapid.T) *coltracepb.ExportTraceServiceRequest {
	id := func(n int) []byte {
		return []byte(strings.Repeat(string(rune('a'+rapid.IntRange(0, 20).Draw(t, "id"))), n))
	}
	count := rapid.Uint32()
	req := &coltracepb.ExportTraceServiceRequest{}
	for range rapid.IntRange(0, 3).Draw(t, "resources") {
		rs := &tracepb.ResourceSpans{Resource: &resourcepb.Resource{Attributes: drawAttributes(t, 1)}, SchemaUrl: drawText(t, "schema")}
		for range rapid.IntRange(0, 2).Draw(t, "scopes") {
			ss := &tracepb.ScopeSpans{SchemaUrl: drawText(t, "schema"), Scope: &commonpb.InstrumentationScope{
				Name: drawText(t, "scope"), Version: drawText(t, "version"), Attributes: drawAttributes(t, 0), DroppedAttributesCount: rapid.Uint32Range(0, 2).Draw(t, "dropped"),
			}}
			for range rapid.IntRange(0, 4).Draw(t, "spans") {
				sp := newSpan(drawAttributes(t, 2)...)
				sp.TraceId, sp.SpanId = id(16), id(8)
				if rapid.Bool().Draw(t, "child") {
					sp.ParentSpanId = id(8)
				}
				sp.Name, sp.TraceState, sp.Flags = drawText(t, "name"), drawText(t, "state"), count.Draw(t, "flags")
				sp.Kind = tracepb.Span_SpanKind(rapid.IntRange(0, 5).Draw(t, "kind"))
				sp.EndTimeUnixNano = sp.StartTimeUnixNano + rapid.Uint64Range(0, 1<<40).Draw(t, "duration") - 1<<20
				sp.Status = &tracepb.Status{Code: tracepb.Status_StatusCode(rapid.IntRange(0, 2).Draw(t, "status")), Message: drawText(t, "message")}
				sp.DroppedAttributesCount, sp.DroppedEventsCount, sp.DroppedLinksCount = count.Draw(t, "a"), count.Draw(t, "e"), count.Draw(t, "l")
				for range rapid.IntRange(0, 2).Draw(t, "events") {
					sp.Events = append(sp.Events, &tracepb.Span_Event{TimeUnixNano: rapid.Uint64().Draw(t, "time"), Name: drawText(t, "event"), Attributes: drawAttributes(t, 0), DroppedAttributesCount: 7})
				}
				for range rapid.IntRange(0, 2).Draw(t, "links") {
					sp.Links = append(sp.Links, &tracepb.Span_Link{TraceId: id(16), SpanId: id(8), TraceState: "s", Attributes: drawAttributes(t, 0), Flags: 3})
				}
				ss.Spans = append(ss.Spans, sp)
			}
			rs.ScopeSpans = append(rs.ScopeSpans, ss)
		}
		req.ResourceSpans = append(req.ResourceSpans, rs)
	}
	return req
}

// FuzzSpans checks Append's contract for arbitrary bytes: no panic, everything that
// Repair accepts is accepted, and attributes, events and links match the official
// runtime's messages.
func FuzzSpans(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte("garbage"))
	f.Add(bytes.ReplaceAll(marshal(f, request(newSpan(kv("k~", str("~"))))), []byte("~"), []byte{0xff}))
	f.Add(marshal(f, request(newSpan(kv("list", array(kvlist(kv("a", double(1.5))), binary("x"), boolean(true)))))))
	for _, b := range otlptest.Hostile(60, 1_700_000_000_000_000_000) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		repaired, _, wantErr := traces.Signal.Repair(nil, in)
		s := columns.NewSpans()
		refused, err := s.Append(in, columns.Source{Window: everything})
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("Append = %v, Repair = %v", err, wantErr)
		}
		if err != nil || s.Rows() == 0 {
			return
		}
		var req coltracepb.ExportTraceServiceRequest
		if err := proto.Unmarshal(repaired, &req); err != nil {
			t.Fatal(err)
		}
		out := map[int]bool{}
		for _, r := range refused {
			out[r.Index] = true
		}
		got, err := read(s)
		if err != nil {
			t.Fatal(err)
		}
		row := 0
		for i, want := range expect(&req) {
			if out[i] {
				continue
			}
			g := got[row]
			row++
			if diff := cmp.Diff(
				[]any{want.TraceID, want.Name, want.StatusMessage, want.Resource, want.Scope, want.Attributes, want.Events, want.Links},
				[]any{g.TraceID, g.Name, g.StatusMessage, g.Resource, g.Scope, g.Attributes, g.Events, g.Links},
			); diff != "" {
				t.Fatalf("span %d (-want +got):\n%s", i, diff)
			}
		}
		if row != len(got) {
			t.Fatalf("%d rows for %d spans", len(got), row)
		}
	})
}
