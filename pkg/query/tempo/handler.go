package tempo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/metaflowys/metaflow-server/pkg/query"
)

// apiVersion is the version of Tempo whose API this is: Grafana asks before it uses newer
// parts.
const apiVersion = "2.6.0"

// NewHandler returns a handler of /api/.
func NewHandler(reader *query.Reader) http.Handler {
	h := &handler{reader}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/echo", func(w http.ResponseWriter, _ *http.Request) {
		query.HTTPBody(w, "text/plain; charset=utf-8", []byte("echo"))
	})
	mux.HandleFunc("GET /api/status/buildinfo", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, map[string]string{"version": apiVersion, "revision": "metaflow"})
	})
	mux.HandleFunc("GET /api/traces/{id}", func(w http.ResponseWriter, r *http.Request) { h.trace(w, r, false) })
	mux.HandleFunc("GET /api/v2/traces/{id}", func(w http.ResponseWriter, r *http.Request) { h.trace(w, r, true) })
	mux.HandleFunc("GET /api/search", answer(h.search))
	mux.HandleFunc("GET /api/search/tags", answer(h.tags))
	mux.HandleFunc("GET /api/v2/search/tags", answer(h.scopedTags))
	mux.HandleFunc("GET /api/search/tag/{name}/values", answer(h.values))
	mux.HandleFunc("GET /api/v2/search/tag/{name}/values", answer(h.typedValues))
	mux.HandleFunc("GET /api/metrics/", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "TraceQL metrics are not supported: ask ClickHouse, or search for traces", http.StatusNotImplemented)
	})
	return mux
}

type handler struct{ reader *query.Reader }

// answer makes a handler of a function that returns what to encode as JSON.
func answer(f func(r *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			query.HTTPError(w, err)
			return
		}
		reply(w, v)
	}
}

func reply(w http.ResponseWriter, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	query.HTTPJSON(w, text)
}

// trace answers with a trace as protobuf or, by default, JSON. The second version wraps it.
func (h *handler) trace(w http.ResponseWriter, r *http.Request, wrapped bool) {
	id, err := query.TraceID(r.PathValue("id"))
	if err != nil {
		query.HTTPError(w, err)
		return
	}
	in, err := rangeOf(r.URL.Query())
	if err != nil {
		query.HTTPError(w, err)
		return
	}
	t, err := h.reader.Trace(r.Context(), id, in)
	if err != nil {
		query.HTTPError(w, err)
		return
	}
	message := ""
	if t.Cut {
		message = fmt.Sprintf("the trace has more than %d spans; the first are returned (query.max_spans, query.max_result_bytes)", t.Spans)
	}
	if strings.Contains(r.Header.Get("Accept"), "protobuf") {
		body, err := (&ptrace.ProtoMarshaler{}).MarshalTraces(t.OTLP)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if wrapped {
			body = wrap(body, message)
		}
		query.HTTPBody(w, "application/protobuf", body)
		return
	}
	text, err := (&ptrace.JSONMarshaler{}).MarshalTraces(t.OTLP)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	var body []byte
	if wrapped {
		body = append(append([]byte(`{"trace":`), text...), `,"metrics":{}`...)
		if t.Cut {
			quoted, _ := json.Marshal(message) // a string
			body = fmt.Appendf(body, `,"status":"PARTIAL","message":%s`, quoted)
		}
		body = append(body, '}')
	} else { // the trace's only member by Tempo's name for it
		body = append([]byte(`{"batches":`), bytes.TrimPrefix(text, []byte(`{"resourceSpans":`))...)
	}
	query.HTTPJSON(w, body)
}

// Fields of the reply of the second version, and its status of a trace that is cut.
const (
	fieldTrace   = 1
	fieldStatus  = 3
	fieldMessage = 4
	partial      = 1
)

// wrap returns the protobuf reply of the second version.
func wrap(trace []byte, message string) []byte {
	b := protowire.AppendBytes(protowire.AppendTag(nil, fieldTrace, protowire.BytesType), trace)
	if message != "" {
		b = protowire.AppendVarint(protowire.AppendTag(b, fieldStatus, protowire.VarintType), partial)
		b = protowire.AppendString(protowire.AppendTag(b, fieldMessage, protowire.BytesType), message)
	}
	return b
}

// rangeOf reads start and end, in seconds since 1970.
func rangeOf(q url.Values) (in query.Range, err error) {
	for key, to := range map[string]*time.Time{"start": &in.Start, "end": &in.End} {
		text := q.Get(key)
		if text == "" {
			continue
		}
		n, parseErr := strconv.ParseInt(text, 10, 64)
		if parseErr != nil || n < 0 || n > 1<<33 {
			return in, fmt.Errorf("%w: %s: %.40q is not a time in seconds since 1970", query.ErrBadRequest, key, text)
		}
		if n > 0 {
			*to = time.Unix(n, 0)
		}
	}
	return in, nil
}

func number(q url.Values, key string) (int, error) {
	text := q.Get(key)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%w: %s: %.40q is not a number", query.ErrBadRequest, key, text)
	}
	return n, nil
}

// conditions reads q, or tags and durations, which older clients send.
func conditions(q url.Values) (parsed, error) {
	var and query.And
	p := parsed{}
	if text := strings.TrimSpace(q.Get("q")); text != "" {
		var err error
		if p, err = parse(text); err != nil {
			return p, err
		}
		and = append(and, p.where)
	}
	tags, err := logfmt(q.Get("tags"))
	if err != nil {
		return p, err
	}
	if len(tags) > query.MaxConditions {
		return p, fmt.Errorf("%w: %d tags are more than %d", query.ErrBadRequest, len(tags), query.MaxConditions)
	}
	for _, t := range tags {
		f := query.Field{Scope: query.AnyScope, Name: t.key}
		if known, ok := intrinsics[t.key]; ok {
			f = query.Field{Name: known}
		}
		and = append(and, query.Compare{Field: f, Op: query.Equal, Value: query.Str(t.value)})
		p.add(f)
	}
	for key, op := range map[string]query.Op{"minDuration": query.GreaterEqual, "maxDuration": query.LessEqual} {
		text := q.Get(key)
		if text == "" {
			continue
		}
		d, err := time.ParseDuration(text)
		if err != nil {
			return p, fmt.Errorf("%w: %s: %.40q is not a duration such as 100ms", query.ErrBadRequest, key, text)
		}
		and = append(and, query.Compare{Field: query.Field{Name: query.FieldDuration}, Op: op, Value: query.Dur(d)})
	}
	p.where = and
	return p, nil
}

type tag struct{ key, value string }

// logfmt reads key=value pairs; values with spaces stand in quotes.
func logfmt(text string) (tags []tag, err error) {
	for text = strings.TrimSpace(text); text != ""; text = strings.TrimSpace(text) {
		key, rest, ok := strings.Cut(text, "=")
		if !ok || key == "" || strings.ContainsAny(key, " \"") {
			return nil, fmt.Errorf("%w: tags: %.60q does not begin with key=value", query.ErrBadRequest, text)
		}
		value, next := rest, ""
		if quoted, err := strconv.QuotedPrefix(rest); err == nil {
			next = rest[len(quoted):]
			value, _ = strconv.Unquote(quoted) // QuotedPrefix has checked it
		} else if i := strings.IndexByte(rest, ' '); i >= 0 {
			value, next = rest[:i], rest[i:]
		}
		tags = append(tags, tag{key, value})
		text = next
	}
	return tags, nil
}

// The reply of a search.
type (
	searchReply struct {
		Traces  []foundTrace  `json:"traces"`
		Metrics searchMetrics `json:"metrics"`
	}
	searchMetrics struct {
		InspectedTraces int  `json:"inspectedTraces"`
		CompletedJobs   int  `json:"completedJobs"`
		TotalJobs       int  `json:"totalJobs"`
		Partial         bool `json:"partial,omitempty"`
	}
	foundTrace struct {
		TraceID           string                  `json:"traceID"`
		RootServiceName   string                  `json:"rootServiceName"`
		RootTraceName     string                  `json:"rootTraceName"`
		StartTimeUnixNano string                  `json:"startTimeUnixNano"`
		DurationMs        int64                   `json:"durationMs"`
		SpanSet           foundSpans              `json:"spanSet"`
		SpanSets          []foundSpans            `json:"spanSets"`
		ServiceStats      map[string]serviceStats `json:"serviceStats,omitempty"`
	}
	serviceStats struct {
		SpanCount  uint64 `json:"spanCount"`
		ErrorCount uint64 `json:"errorCount,omitempty"`
	}
	foundSpans struct {
		Spans   []foundSpan `json:"spans"`
		Matched int         `json:"matched"`
	}
	foundSpan struct {
		SpanID            string      `json:"spanID"`
		Name              string      `json:"name"`
		StartTimeUnixNano string      `json:"startTimeUnixNano"`
		DurationNanos     string      `json:"durationNanos"`
		Attributes        []attribute `json:"attributes,omitempty"`
	}
	attribute struct {
		Key   string `json:"key"`
		Value struct {
			StringValue string `json:"stringValue"`
		} `json:"value"`
	}
)

func attributeOf(key, value string) (a attribute) {
	a.Key, a.Value.StringValue = key, value
	return a
}

func (h *handler) search(r *http.Request) (any, error) {
	q := r.URL.Query()
	p, err := conditions(q)
	if err != nil {
		return nil, err
	}
	s := query.Search{Where: p.where, Show: p.show}
	if s.Range, err = rangeOf(q); err != nil {
		return nil, err
	}
	if s.Limit, err = number(q, "limit"); err != nil {
		return nil, err
	}
	if s.SpansPerTrace, err = number(q, "spss"); err != nil {
		return nil, err
	}
	found, err := h.reader.Find(r.Context(), s)
	if err != nil {
		return nil, err
	}
	out := searchReply{Traces: []foundTrace{}, Metrics: searchMetrics{InspectedTraces: found.Inspected, CompletedJobs: 1, TotalJobs: 1, Partial: found.Partial}}
	for _, t := range found.Traces {
		spans := foundSpans{Spans: []foundSpan{}, Matched: t.Matched}
		for _, m := range t.Matches {
			span := foundSpan{
				SpanID: m.SpanID, Name: m.Name,
				StartTimeUnixNano: strconv.FormatInt(m.Start.UnixNano(), 10), DurationNanos: strconv.FormatInt(m.Duration.Nanoseconds(), 10),
			}
			for _, f := range p.show {
				if v, ok := m.Shown[f.Name]; ok {
					span.Attributes = append(span.Attributes, attributeOf(f.Name, v))
				}
			}
			if m.Verdict != "" {
				span.Attributes = append(span.Attributes, attributeOf(query.AttributeVerdict, m.Verdict))
			}
			spans.Spans = append(spans.Spans, span)
		}
		stats := map[string]serviceStats{}
		for service, n := range t.Services {
			stats[service] = serviceStats{n, t.ErrorsOf[service]}
		}
		out.Traces = append(out.Traces, foundTrace{
			TraceID: t.TraceID, RootServiceName: t.RootService, RootTraceName: t.RootName,
			StartTimeUnixNano: strconv.FormatInt(t.Start.UnixNano(), 10), DurationMs: t.End.Sub(t.Start).Milliseconds(),
			SpanSet: spans, SpanSets: []foundSpans{spans}, ServiceStats: stats,
		})
	}
	return out, nil
}

// tagScopes are the scopes of attributes in the order in which they are listed.
var tagScopes = []struct {
	name  string
	scope query.Scope
}{{"span", query.SpanScope}, {"resource", query.Resource}, {"event", query.Event}, {"link", query.Link}, {"instrumentation", query.Instrument}}

// listed are the intrinsics that are offered.
var listed = []string{
	"duration", "event:name", "instrumentation:name", "instrumentation:version", "kind", "name", "network.verdict",
	"rootName", "rootServiceName", "span:duration", "span:id", "span:kind", "span:name", "span:parentID", "span:status", "span:statusMessage", "status", "statusMessage",
	"trace:duration", "trace:id", "trace:rootName", "trace:rootService", "traceDuration",
}

type tagScope struct {
	Name string   `json:"name"`
	Tags []string `json:"tags"`
}

func (h *handler) listTags(r *http.Request) (found []tagScope, err error) {
	q := r.URL.Query()
	in, err := rangeOf(q)
	if err != nil {
		return nil, err
	}
	limit, err := number(q, "limit")
	if err != nil {
		return nil, err
	}
	wanted, where := q.Get("scope"), filterOf(q.Get("q"))
	for _, s := range tagScopes {
		if wanted != "" && wanted != "none" && wanted != s.name {
			continue
		}
		keys, err := h.reader.Keys(r.Context(), s.scope, where, in)
		if err != nil {
			return nil, err
		}
		if limit > 0 {
			keys = keys[:min(limit, len(keys))]
		}
		if len(keys) > 0 {
			found = append(found, tagScope{s.name, keys})
		}
	}
	if wanted == "" || wanted == "none" || wanted == "intrinsic" {
		found = append(found, tagScope{"intrinsic", listed})
	}
	return found, nil
}

func (h *handler) scopedTags(r *http.Request) (any, error) {
	found, err := h.listTags(r)
	return map[string][]tagScope{"scopes": found}, err
}

func (h *handler) tags(r *http.Request) (any, error) {
	found, err := h.listTags(r)
	names := []string{}
	for _, s := range found {
		names = append(names, s.Tags...)
	}
	return map[string][]string{"tagNames": names}, err
}

// fixed are the values of intrinsics that have few, where no filter narrows them.
var fixed = map[string][]string{
	query.FieldStatus:  {"error", "ok", "unset"},
	query.FieldKind:    {"client", "consumer", "internal", "producer", "server", "unspecified"},
	query.FieldVerdict: query.Verdicts,
}

func (h *handler) list(r *http.Request) (f query.Field, found []string, err error) {
	name := r.PathValue("name")
	if f, err = fieldOf(name); err != nil { // older clients leave the dot out
		if f, err = fieldOf("." + name); err != nil {
			f = query.Field{Scope: query.AnyScope, Name: name}
		}
	}
	q := r.URL.Query()
	in, err := rangeOf(q)
	if err != nil {
		return f, nil, err
	}
	limit, err := number(q, "limit")
	if err != nil {
		return f, nil, err
	}
	where := filterOf(q.Get("q"))
	if known := fixed[f.Name]; f.Scope == query.Intrinsic && known != nil && (where == nil || f.Name == query.FieldVerdict) {
		found = known
	} else {
		found, err = h.reader.Values(r.Context(), f, where, in)
	}
	if limit > 0 {
		found = found[:min(limit, len(found))]
	}
	return f, found, err
}

func (h *handler) values(r *http.Request) (any, error) {
	_, found, err := h.list(r)
	return map[string][]string{"tagValues": append([]string{}, found...)}, err
}

type typedValue struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

func (h *handler) typedValues(r *http.Request) (any, error) {
	f, found, err := h.list(r)
	kind := "string"
	if f.Scope == query.Intrinsic && (f.Name == query.FieldStatus || f.Name == query.FieldKind) {
		kind = "keyword"
	}
	out := []typedValue{}
	for _, v := range found {
		of := kind
		if f.Scope != query.Intrinsic {
			of = query.TypeOf(f.Name, v)
		}
		out = append(out, typedValue{of, v})
	}
	return map[string][]typedValue{"tagValues": out}, err
}
