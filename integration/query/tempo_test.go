package query

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/metaflowys/metaflow-server/integration/internal/shop"
	"github.com/metaflowys/metaflow-server/pkg/query"
	"github.com/metaflowys/metaflow-server/pkg/query/tempo"
)

// tempoAPI is Tempo's API over the shop's hour.
type tempoAPI struct {
	t   *testing.T
	url string
}

func newTempo(t *testing.T) tempoAPI {
	t.Helper()
	r, _ := reader(t, config())
	s := httptest.NewServer(tempo.NewHandler(r))
	t.Cleanup(s.Close)
	return tempoAPI{t, s.URL}
}

func (a tempoAPI) get(path, accept string) (int, []byte) {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), http.MethodGet, a.url+path, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return resp.StatusCode, body
}

// into reads a JSON answer.
func (a tempoAPI) into(path string, v any) {
	a.t.Helper()
	code, body := a.get(path, "application/json")
	if err := json.Unmarshal(body, v); err != nil || code != http.StatusOK {
		a.t.Fatalf("%s: %d %v: %s", path, code, err, body)
	}
}

type foundTraces struct {
	Metrics struct {
		InspectedTraces int
		Partial         bool
	}
	Traces []struct {
		TraceID, RootServiceName, RootTraceName string
		DurationMs                              int
		SpanSets                                []struct {
			Matched int
			Spans   []struct {
				SpanID, Name, DurationNanos string
				Attributes                  []struct {
					Key   string
					Value struct{ StringValue string }
				}
			}
		}
	}
}

func (a tempoAPI) search(traceQL string) (found foundTraces) {
	a.t.Helper()
	a.into(fmt.Sprintf("/api/search?limit=5&spss=2&start=%d&end=%d&q=%s", shop.Start.Unix(), shop.End.Unix(), url.QueryEscape(traceQL)), &found)
	return found
}

// A search finds the traces with a span of each kind of condition, and no others.
func TestTempoSearch(t *testing.T) {
	a := newTempo(t)
	for traceQL, want := range map[string]struct{ span, root string }{
		`{ resource.service.name = "paymentservice" && status = error }`:                          {"Charge", "POST /checkout"},
		`{ .rpc.grpc.status_code = 9 && kind = client }`:                                          {"", "POST /checkout"},
		`{ span.http.response.status_code >= 500 }`:                                               {"POST /checkout", "POST /checkout"},
		`{ name =~ "Ch.*" && duration > 200ms } | select(span.rpc.method)`:                        {"Charge", "POST /checkout"},
		`{ status = error } && { name = "PlaceOrder" }`:                                           {"", "POST /checkout"},
		`{ name = "SearchProducts" } || { name = "nothing" }`:                                     {"SearchProducts", "GET /search"},
		`{ rootName = "GET /cart" && traceDuration > 1ms && name = "HGETALL" }`:                   {"HGETALL", "GET /cart"},
		`{ nestedSetParent < 0 && name != "GET /cart" && rootServiceName = "frontend" }`:          {"", ""},
		`{ event.exception.type = "payment.CardDeclined" }`:                                       {"Charge", "POST /checkout"},
		`{ event:name = "exception" }`:                                                            {"Charge", "POST /checkout"},
		`{ resource.k8s.pod.name =~ "payment.*" && .app.user.id = nil }`:                          {"Charge", "POST /checkout"},
		`{ span.db.system.name != nil && span.db.operation.name !~ "SELECT.*" && kind = client }`: {"", ""},
	} {
		found := a.search(traceQL)
		if len(found.Traces) == 0 {
			t.Errorf("%s: nothing found", traceQL)
		}
		for _, trace := range found.Traces {
			if want.root != "" && trace.RootTraceName != want.root || trace.RootServiceName != "frontend" {
				t.Errorf("%s: found a trace of %s %s", traceQL, trace.RootServiceName, trace.RootTraceName)
			}
			for _, s := range trace.SpanSets[0].Spans {
				if want.span != "" && s.Name != want.span {
					t.Errorf("%s: found the span %s", traceQL, s.Name)
				}
			}
		}
	}
	for _, nothing := range []string{`{ name = "nothing" }`, `{ false }`, `{ span.http.route = "/cart" && resource.service.name = "paymentservice" }`, `{ duration > 1h }`} {
		if found := a.search(nothing); len(found.Traces) != 0 {
			t.Errorf("%s: found %+v", nothing, found.Traces)
		}
	}
}

func TestTempoSearchRefuses(t *testing.T) {
	a := newTempo(t)
	for path, want := range map[string]string{
		"q=" + url.QueryEscape("{ kind = error }"):                            "not one of unspecified, internal",
		"q=" + url.QueryEscape("{ duration = 3 }"):                            "a duration such as 100ms",
		"q=" + url.QueryEscape(`{ name =~ "(" }`):                             "missing closing",
		"q=" + url.QueryEscape(`{ network.verdict = "reset" || name = "a" }`): "combined with other conditions by &&",
		"q=" + url.QueryEscape(`{ span.metaflow.network.why = "a" }`):         "it is not stored: search for the verdict",
		"q=" + url.QueryEscape(`{ network.verdict > 3 }`):                     "a verdict is compared with",
		"q=" + url.QueryEscape(`{ network.verdict = "bogus" }`):               "is no verdict: want one of connect refused, accept queue full",
		"q=" + url.QueryEscape(`{ network.verdict =~ "bog.*" }`):              "matches no verdict: want one of connect refused",
		"q=" + url.QueryEscape(`{ trace:id = "xyz" }`):                        "is not up to 32 hexadecimal digits",
		"q=" + url.QueryEscape(`{ span:id = "12345678901234567" }`):           "is not up to 16 hexadecimal digits",
		"q=" + url.QueryEscape(`{} >> {}`):                                    "structural operator",
		"limit=x":                                                             "limit",
		"start=yesterday":                                                     "seconds since 1970",
		"start=20&end=10":                                                     "the range ends at",
		"start=1&end=1000000":                                                 "query.max_range",
		"tags=x":                                                              "key=value",
		"minDuration=soon":                                                    "minDuration",
	} {
		if code, body := a.get("/api/search?"+path, ""); code != http.StatusBadRequest || !strings.Contains(string(body), want) {
			t.Errorf("%s: %d %s, want %q", path, code, body, want)
		}
	}
	for path, want := range map[string]int{
		"/api/traces/xyz":                                            http.StatusBadRequest,
		"/api/traces/" + strings.Repeat("1", 32):                     http.StatusNotFound,
		"/api/v2/traces/" + strings.Repeat("1", 33):                  http.StatusBadRequest,
		"/api/metrics/query_range?q=" + url.QueryEscape("{}|rate()"): http.StatusNotImplemented,
	} {
		if code, body := a.get(path, ""); code != want {
			t.Errorf("%s: %d %s, want %d", path, code, body, want)
		}
	}
}

// A search for a verdict finds the slow charges whose packets were lost; the trace says so
// in every form.
func TestTempoNetworkVerdict(t *testing.T) {
	a := newTempo(t)
	found := a.search(`{ network.verdict = "retransmission" && kind = client }`)
	if len(found.Traces) == 0 {
		t.Fatal("no trace has a retransmission")
	}
	trace := found.Traces[0]
	span := trace.SpanSets[0].Spans[0]
	if span.Name != "Charge" || span.Attributes[0].Value.StringValue != "retransmission" {
		t.Errorf("found %+v", span)
	}

	_, body := a.get("/api/traces/"+trace.TraceID, "application/protobuf")
	checkVerdict(t, body, trace.TraceID, span.SpanID)
	_, body = a.get("/api/v2/traces/"+trace.TraceID, "application/protobuf")
	number, kind, n := protowire.ConsumeTag(body)
	inner, m := protowire.ConsumeBytes(body[max(n, 0):])
	if number != 1 || kind != protowire.BytesType || m < 0 {
		t.Fatalf("the second version has the field %d first", number)
	}
	checkVerdict(t, inner, trace.TraceID, span.SpanID)

	var first struct{ Batches []json.RawMessage }
	a.into("/api/traces/"+trace.TraceID, &first)
	var second struct {
		Trace struct{ ResourceSpans []json.RawMessage }
	}
	a.into("/api/v2/traces/"+trace.TraceID, &second)
	if len(first.Batches) < 3 || len(first.Batches) != len(second.Trace.ResourceSpans) || !strings.Contains(string(slices.Concat(first.Batches...)[0:]), trace.TraceID) {
		t.Errorf("JSON has %d and %d resources", len(first.Batches), len(second.Trace.ResourceSpans))
	}
}

func checkVerdict(t *testing.T, body []byte, traceID, spanID string) {
	t.Helper()
	var data tracepb.TracesData
	if err := proto.Unmarshal(body, &data); err != nil {
		t.Fatal(err)
	}
	spans := 0
	for _, rs := range data.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				spans++
				if fmt.Sprintf("%x", s.TraceId) != traceID {
					t.Errorf("a span of the trace %x", s.TraceId)
				}
				if fmt.Sprintf("%x", s.SpanId) != spanID {
					continue
				}
				got := map[string]string{}
				for _, kv := range s.Attributes {
					if strings.HasPrefix(kv.Key, "metaflow.") || kv.Key == "server.port" {
						got[kv.Key] = strings.ReplaceAll(kv.Value.String(), "  ", " ") // the text of messages varies in its spaces
					}
				}
				if got[query.AttributeVerdict] != `string_value:"retransmission"` || !strings.Contains(got[query.AttributeWhy], "segments sent again") ||
					!strings.HasPrefix(got[query.AttributeRetransmits], "int_value:") || !strings.HasPrefix(got[query.AttributeRTT], "int_value:") || !strings.HasPrefix(got["server.port"], "int_value:") {
					t.Errorf("the span has %v", got)
				}
			}
		}
	}
	if spans != 22 {
		t.Errorf("%d spans, want 22", spans)
	}
}

func TestTempoNames(t *testing.T) {
	a := newTempo(t)
	during := fmt.Sprintf("start=%d&end=%d", shop.Start.Unix(), shop.End.Unix())
	var scoped struct {
		Scopes []struct {
			Name string
			Tags []string
		}
	}
	a.into("/api/v2/search/tags?"+during, &scoped)
	tags := map[string][]string{}
	for _, s := range scoped.Scopes {
		tags[s.Name] = s.Tags
	}
	for scope, want := range map[string]string{"span": "http.route", "resource": "k8s.pod.name", "event": "exception.type", "intrinsic": "network.verdict"} {
		if !slices.Contains(tags[scope], want) {
			t.Errorf("the scope %s has %q, want %s", scope, tags[scope], want)
		}
	}
	var flat struct{ TagNames []string }
	a.into("/api/search/tags?scope=resource&"+during, &flat)
	if !slices.Contains(flat.TagNames, "service.name") || slices.Contains(flat.TagNames, "http.route") {
		t.Errorf("tags of resources: %q", flat.TagNames)
	}
	type value struct{ Type, Value string }
	for path, want := range map[string][]value{
		"span.rpc.grpc.status_code": {{"int", "0"}, {"int", "9"}},
		"status":                    {{"keyword", "error"}},
		"kind":                      {{"keyword", "client"}, {"keyword", "server"}},
		"rootName":                  {{"string", "POST /checkout"}},
		"event.exception.type":      {{"string", "payment.CardDeclined"}},
		"resource.service.name":     {{"string", "checkoutservice"}, {"string", "frontend"}, {"string", "paymentservice"}},
	} {
		var got struct{ TagValues []value }
		q := "{ status = error }"
		if path == "span.rpc.grpc.status_code" {
			q = "{"
		}
		a.into("/api/v2/search/tag/"+path+"/values?"+during+"&q="+url.QueryEscape(q), &got)
		slices.SortFunc(got.TagValues, func(a, b value) int { return strings.Compare(a.Value, b.Value) })
		if diff := cmp.Diff(want, got.TagValues); diff != "" {
			t.Errorf("%s: -want +got:\n%s", path, diff)
		}
	}
	var old struct{ TagValues []string }
	a.into("/api/search/tag/service.name/values?"+during, &old)
	if len(old.TagValues) != 6 {
		t.Errorf("services: %q", old.TagValues)
	}
	if code, body := a.get("/api/echo", ""); code != http.StatusOK || string(body) != "echo" {
		t.Errorf("/api/echo: %d %s", code, body)
	}
}

// The query that somebody types narrows tags and values, as far as it is understood.
func TestTempoNarrowsNames(t *testing.T) {
	a := newTempo(t)
	during := fmt.Sprintf("start=%d&end=%d", shop.Start.Unix(), shop.End.Unix())
	tags := func(scope, q string) []string {
		var scoped struct {
			Scopes []struct {
				Name string
				Tags []string
			}
		}
		a.into("/api/v2/search/tags?"+during+"&scope="+scope+"&q="+url.QueryEscape(q), &scoped)
		if len(scoped.Scopes) == 0 {
			return nil
		}
		return scoped.Scopes[0].Tags
	}
	values := func(tag, q string) []string {
		var got struct{ TagValues []struct{ Value string } }
		a.into("/api/v2/search/tag/"+url.PathEscape(tag)+"/values?"+during+"&q="+url.QueryEscape(q), &got)
		list := []string{}
		for _, v := range got.TagValues {
			list = append(list, v.Value)
		}
		slices.Sort(list)
		return list
	}
	for q, web := range map[string]bool{
		``:                                       true,
		`{}`:                                     true,
		`{ resource.service.name = "frontend" }`: true,
		`{ resource.service.name = "paymentservice" }`:                            false,
		`{ resource.service.name = "paymentservice" && span. }`:                   false,
		`{ resource.service.name = "paymentservice" && name =`:                    false,
		`{ resource.service.name = "paymentservice" && name =~ "(" }`:             false,
		`{ resource.service.name = "paymentservice" && network.verdict="reset" }`: false,
		`{ resource.service.name = "paymentservice" || `:                          true,
		`{ resource.service.name = "payme`:                                        true,
		`{ name = "nothing" } >> {`:                                               true,
		`{ status = 3 }`:                                                          true,
	} {
		if got := tags("span", q); slices.Contains(got, "http.route") != web || len(got) == 0 {
			t.Errorf("tags for %s: %q", q, got)
		}
		if got := values("span.http.route", q); (len(got) > 0) != web {
			t.Errorf("routes for %s: %q", q, got)
		}
		if got := values("network.verdict", q); len(got) != len(query.Verdicts) {
			t.Errorf("verdicts for %s: %q", q, got)
		}
	}
	if got := tags("event", `{ name = "HGETALL" }`); len(got) != 0 {
		t.Errorf("tags of events without any: %q", got)
	}
	for tag, want := range map[string]string{"trace:rootService": "frontend", "resource.service.name": "cartservice", "kind": "client", "name": "HGETALL"} {
		if got := values(tag, `{ name = "HGETALL" }`); len(got) != 1 || got[0] != want {
			t.Errorf("%s of spans in the cart's traces: %q, want %s", tag, got, want)
		}
	}
	if got := values("rootName", `{ name = "SearchProducts" }`); !slices.Equal(got, []string{"GET /search"}) {
		t.Errorf("roots of searches: %q", got)
	}
	if got := values("status", `{ status = }`); len(got) != 3 {
		t.Errorf("statuses while one is typed: %q", got)
	}
}

// The calls of Grafana's Tempo data source without streaming, as Tempo's documentation of its
// HTTP API and Grafana's of the data source name them. START, END and TRACE stand for the
// hour in seconds and a trace in it.
var grafanaCalls = []struct {
	path, accept string
	code         int
	want         string
}{
	{"/api/echo", "", http.StatusOK, "echo"},
	{"/api/status/buildinfo", "application/json", http.StatusOK, `"version":"2.`},
	{"/api/v2/search/tags?start=START&end=END", "application/json", http.StatusOK, `"scopes":[{"name":"span","tags":[`},
	{"/api/v2/search/tags?scope=resource&limit=5000&start=START&end=END", "application/json", http.StatusOK, `"scopes":[{"name":"resource","tags":[`},
	{"/api/v2/search/tags?scope=intrinsic&start=START&end=END", "application/json", http.StatusOK, `{"scopes":[{"name":"intrinsic","tags":["duration"`},
	{"/api/v2/search/tags?scope=event&limit=1&start=START&end=END", "application/json", http.StatusOK, `{"scopes":[{"name":"event","tags":["exception.`},
	{"/api/search/tags?start=START&end=END", "application/json", http.StatusOK, `{"tagNames":["`},
	{"/api/v2/search/tag/resource.service.name/values?start=START&end=END&q=%7B%7D&limit=5000", "application/json", http.StatusOK, `{"type":"string","value":"frontend"}`},
	{"/api/v2/search/tag/span.http.route/values?start=START&end=END&q=%7Bresource.service.name%3D%22frontend%22%20%26%26%20status%3Derror%7D", "application/json", http.StatusOK, `"value":"/`},
	{"/api/v2/search/tag/status/values?q=%7Bstatus%3D%7D", "application/json", http.StatusOK, `{"type":"keyword","value":"error"}`},
	{"/api/v2/search/tag/network.verdict/values", "application/json", http.StatusOK, `"value":"retransmission"`},
	{"/api/v2/search/tag/metaflow.network.verdict/values", "application/json", http.StatusOK, `"value":"retransmission"`},
	{"/api/search/tag/service.name/values", "application/json", http.StatusOK, `"frontend"`},
	{"/api/search?q=%7Bname%3D%22Charge%22%7D&limit=20&spss=3&start=START&end=END", "application/json", http.StatusOK, `"spanSets":[{"spans":[{"spanID":"`},
	{"/api/search?tags=service.name%3Dpaymentservice&minDuration=1us&maxDuration=1h&limit=20&start=START&end=END", "application/json", http.StatusOK, `"rootServiceName":"frontend"`},
	{"/api/v2/traces/TRACE?start=START&end=END", "application/protobuf", http.StatusOK, "Charge"},
	{"/api/v2/traces/TRACE", "application/json", http.StatusOK, `{"trace":{"resourceSpans":[`},
	{"/api/traces/TRACE", "application/protobuf", http.StatusOK, "Charge"},
	{"/api/traces/TRACE", "application/json", http.StatusOK, `{"batches":[`},
	{"/api/v2/traces/00000000000000000000000000000abc", "application/protobuf", http.StatusNotFound, "no span of this trace is stored"},
	{"/api/metrics/query_range?q=%7B%7D%20%7C%20rate()&start=START&end=END&step=1m", "application/json", http.StatusNotImplemented, "TraceQL metrics are not supported"},
	{"/api/metrics/query?q=%7B%7D%20%7C%20rate()&start=START&end=END", "application/json", http.StatusNotImplemented, "TraceQL metrics are not supported"},
	{"/api/metrics/summary?q=%7B%7D&groupBy=name", "application/json", http.StatusNotImplemented, "TraceQL metrics are not supported"},
}

func TestTempoAnswersGrafana(t *testing.T) {
	a := newTempo(t)
	trace := a.search(`{ name = "Charge" }`).Traces[0].TraceID
	fill := strings.NewReplacer("START", strconv.FormatInt(shop.Start.Unix(), 10), "END", strconv.FormatInt(shop.End.Unix(), 10), "TRACE", trace)
	for _, c := range grafanaCalls {
		if code, body := a.get(fill.Replace(c.path), c.accept); code != c.code || !strings.Contains(string(body), c.want) {
			t.Errorf("%s: %d %.300s, want %d %s", c.path, code, body, c.code, c.want)
		}
	}
}
