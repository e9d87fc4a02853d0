// Package mcp lets models ask about traces and the network by the Model Context Protocol:
// over standard I/O for a program on the same host, and over HTTP on the role query.
//
// The descriptions of the tools are what a model knows of them, so they say units, bounds
// and what is not known.
package mcp

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/metaflowys/metaflow-server/pkg/clickhouse"
	"github.com/metaflowys/metaflow-server/pkg/query"
)

// Tables runs SQL of a caller's.
type Tables interface {
	Table(ctx context.Context, query string, rows, bytes int) (clickhouse.Table, error)
}

// Server answers models. It is safe for concurrent use.
type Server struct {
	reader *query.Reader
	tables Tables
	sdk    *sdk.Server
}

const instructions = `MetaFlow stores OpenTelemetry spans beside the kernel's counters of their TCP connections.
Start with what_is_wrong. A verdict says what the network did to a call: "network clean", or for example "retransmission", "reset", "timed out", "connect refused", "receiver's window full", "slow network".
An empty verdict means that no flow data of that connection is known: say so, and do not call the network clean.`

// NewServer returns a server of the given version. It starts nothing.
func NewServer(reader *query.Reader, tables Tables, version string) *Server {
	s := &Server{reader: reader, tables: tables, sdk: sdk.NewServer(&sdk.Implementation{Name: "metaflow", Version: version}, &sdk.ServerOptions{Instructions: instructions})}
	add(s, "what_is_wrong", `Edges between services whose network was bad in the last minutes, the worst first. harmed counts requests that were slow or failed because of it. An empty list means that no trouble is known: edges shows which edges have flow data at all. Times end in _ms or _us.`, s.whatIsWrong)
	add(s, "edges", `Calls between services in the last minutes: requests, errors, latency (p50_ms, p99_ms) beside segments_sent, retransmits (segments), resets, connect_failures, rtt_us and the verdict. network_known is false where no agent reports the connections of an edge.`, s.edges)
	add(s, "find_traces", `The newest traces with one span that fulfils all conditions, with the spans that do. network is the worst verdict of a trace's calls, whichever spans were searched for; it is missing where nothing is known. Searches of more than an hour take longer. With verdict, only traces near such trouble are examined, the slowest or failed ones first: inspected_traces says how many. partial says that there may be more: limit was reached or, with verdict, not all traces were examined.`, s.findTraces)
	add(s, "trace", `One trace, spans in the order of their start, each with what the network did to its call. start_ms counts from the trace's first span. gap_ms is the time of a call at its client that the server did not spend. unmatched says why no connection was found for a span. network_missing: what the network did could not be read, or not in time; ask again.`, s.trace)
	add(s, "missing_span", `What is known about a span or trace that is not found: whether it is stored, which parents are missing, when its services were last seen (last_span is null for one without spans in the last day), and agents in trouble. It cannot see spans that wait in Kafka, in an agent's spool or among the dead letters: metaflow-server deadletter list and the metrics of each stage show those.`, s.missingSpan)
	add(s, "sql", `Read-only SQL on ClickHouse, at most 200 rows and 1 MiB: more_rows says that there is more. Tables: metaflow.spans (trace_id, span_id, parent_span_id, name, kind, service_name, start_time, duration_ns, status_code, attributes, ...), metaflow.flows (time, role, ip, port, peer_ip, retransmits, rtt_us, ...), metaflow.service_network (per minute and edge), metaflow.pods, metaflow.agents; views with parameters metaflow.trace_network(trace_id = '...'), metaflow.network_trouble(minutes = 15). Always bound start_time or time. DESCRIBE metaflow.spans lists columns.`, s.sql)
	return s
}

// add adds a tool that only reads.
func add[In any](s *Server, name, description string, f func(ctx context.Context, in In) (any, error)) {
	yes, no := true, false
	tool := &sdk.Tool{Name: name, Description: description, Annotations: &sdk.ToolAnnotations{ReadOnlyHint: true, DestructiveHint: &no, IdempotentHint: true, OpenWorldHint: &yes}}
	sdk.AddTool(s.sdk, tool, func(ctx context.Context, _ *sdk.CallToolRequest, in In) (*sdk.CallToolResult, any, error) {
		if request, ok := ctx.Value(requestKey{}).(context.Context); ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(request, cancel)()
		}
		made, err := s.reader.Answers().Make(ctx)
		if err != nil {
			return nil, nil, err
		}
		defer made()
		out, err := f(ctx, in)
		if err != nil {
			return nil, nil, err
		}
		// An answer returned as structured content would be sent as text a second time.
		text, err := json.Marshal(out)
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: string(text)}}}, nil, err
	})
}

// requestKey is the key of an HTTP request's context among the values of a tool's. The SDK
// keeps these values, but not the end of the request.
type requestKey struct{}

// Handler serves MCP over HTTP, without sessions: each request stands for itself, and its
// query stops when the client leaves.
func (s *Server) Handler() http.Handler {
	next := sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return s.sdk }, &sdk.StreamableHTTPOptions{Stateless: true, JSONResponse: true})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestKey{}, r.Context())))
	})
}

// Run serves MCP over in and out until ctx ends or in does. It closes neither.
func (s *Server) Run(ctx context.Context, in io.Reader, out io.Writer) error {
	return s.sdk.Run(ctx, transport(in, out))
}

// transport is a client at the other end of two streams.
func transport(in io.Reader, out io.Writer) sdk.Transport {
	client := newLines(in, out)
	return &sdk.IOTransport{Reader: client, Writer: client}
}

type lastMinutes struct {
	Minutes int `json:"minutes,omitempty" jsonschema:"how many minutes to look back, 1 to 1440; 15 by default"`
}

func (s *Server) whatIsWrong(ctx context.Context, in lastMinutes) (any, error) {
	found, err := s.reader.Troubles(ctx, cmp.Or(in.Minutes, 15))
	return map[string]any{"minutes": cmp.Or(in.Minutes, 15), "troubles": append([]query.Trouble{}, found...)}, err
}

func (s *Server) edges(ctx context.Context, in lastMinutes) (any, error) {
	found, err := s.reader.Edges(ctx, cmp.Or(in.Minutes, 15))
	return map[string]any{"minutes": cmp.Or(in.Minutes, 15), "edges": append([]query.Edge{}, found...)}, err
}

type search struct {
	Service    string            `json:"service,omitempty" jsonschema:"service of the span"`
	Name       string            `json:"name,omitempty" jsonschema:"name of the span"`
	Kind       string            `json:"kind,omitempty" jsonschema:"server, client, producer, consumer or internal"`
	Failed     bool              `json:"failed,omitempty" jsonschema:"only spans with the status error"`
	MinMillis  float64           `json:"min_ms,omitempty" jsonschema:"shortest duration of the span in milliseconds"`
	Attributes map[string]string `json:"attributes,omitempty" jsonschema:"attributes of the span or its resource, with their values as text"`
	Verdict    string            `json:"verdict,omitempty" jsonschema:"the network's verdict on the span's call, for example retransmission"`
	Minutes    int               `json:"minutes,omitempty" jsonschema:"how many minutes to look back; 60 by default"`
	Limit      int               `json:"limit,omitempty" jsonschema:"how many traces; 10 by default, at most 50"`
}

// condition returns what a span has to fulfil.
func (in search) condition() (and query.And) {
	is := func(f query.Field, op query.Op, v query.Literal) {
		and = append(and, query.Compare{Field: f, Op: op, Value: v})
	}
	for _, c := range []struct {
		field query.Field
		value string
	}{
		{query.Field{Scope: query.Resource, Name: "service.name"}, in.Service},
		{query.Field{Name: query.FieldName}, in.Name},
		{query.Field{Name: query.FieldKind}, in.Kind},
		{query.Field{Name: query.FieldVerdict}, in.Verdict},
	} {
		if c.value != "" {
			is(c.field, query.Equal, query.Str(c.value))
		}
	}
	if in.Failed {
		is(query.Field{Name: query.FieldStatus}, query.Equal, query.Keyword("error"))
	}
	if in.MinMillis > 0 {
		is(query.Field{Name: query.FieldDuration}, query.GreaterEqual, query.Dur(time.Duration(in.MinMillis*float64(time.Millisecond))))
	}
	for key, value := range in.Attributes {
		is(query.Field{Scope: query.AnyScope, Name: key}, query.Equal, query.Str(value))
	}
	return and
}

// validate bounds what would not fit a time.Duration. The Reader bounds the range further.
func (in search) validate() error {
	const longest, mostMillis = 10 * 366 * 24 * 60, 1e12
	switch {
	case in.Minutes < 0 || in.Minutes > longest:
		return fmt.Errorf("minutes: %d is not between 1 and %d", in.Minutes, longest)
	case in.MinMillis < 0 || in.MinMillis > mostMillis:
		return fmt.Errorf("min_ms: %g is not between 0 and %g", in.MinMillis, mostMillis)
	case len(in.Attributes) > query.MaxConditions:
		return fmt.Errorf("attributes: %d are more than %d", len(in.Attributes), query.MaxConditions)
	case in.Limit < 0:
		return fmt.Errorf("limit: %d is not between 1 and 50", in.Limit)
	}
	return nil
}

func (s *Server) findTraces(ctx context.Context, in search) (any, error) {
	if err := in.validate(); err != nil {
		return nil, err
	}
	end := time.Now()
	found, err := s.reader.Find(ctx, query.Search{
		Range: query.Range{Start: end.Add(-time.Duration(cmp.Or(in.Minutes, 60)) * time.Minute), End: end},
		Where: in.condition(), Limit: min(cmp.Or(in.Limit, 10), 50), SpansPerTrace: 3,
	})
	if err != nil {
		return nil, err
	}
	type hit struct {
		SpanID  string  `json:"span_id"`
		Service string  `json:"service"`
		Name    string  `json:"name"`
		Millis  float64 `json:"duration_ms"`
		Verdict string  `json:"verdict,omitempty"`
	}
	type line struct {
		TraceID string    `json:"trace_id"`
		Root    string    `json:"root"`
		Start   time.Time `json:"start"`
		Millis  float64   `json:"duration_ms"`
		Spans   int       `json:"spans"`
		Errors  int       `json:"errors"`
		Matched int       `json:"matching_spans"`
		Network string    `json:"network,omitempty"`
		Hits    []hit     `json:"first_matches"`
	}
	verdicts := s.reader.WorstOf(ctx, found.Traces)
	lines := []line{}
	for _, t := range found.Traces {
		l := line{t.TraceID, t.RootService + " " + t.RootName, t.Start, millis(t.End.Sub(t.Start)), t.Spans, t.Errors, t.Matched, verdicts[t.TraceID], []hit{}}
		for _, m := range t.Matches {
			l.Hits = append(l.Hits, hit{m.SpanID, m.Service, m.Name, millis(m.Duration), m.Verdict})
		}
		lines = append(lines, l)
	}
	return map[string]any{"traces": lines, "partial": found.Partial, "inspected_traces": found.Inspected}, nil
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

type oneTrace struct {
	TraceID string `json:"trace_id" jsonschema:"id of the trace, 32 hexadecimal digits"`
}

// maxSpans bounds the spans of an answer: a model reads no more.
const maxSpans = 300

func (s *Server) trace(ctx context.Context, in oneTrace) (any, error) {
	id, err := query.TraceID(in.TraceID)
	if err != nil {
		return nil, err
	}
	t, err := s.reader.Trace(ctx, id, query.Range{})
	if err != nil {
		return nil, err
	}
	type span struct {
		SpanID     string            `json:"span_id"`
		ParentID   string            `json:"parent_span_id,omitempty"`
		Service    string            `json:"service"`
		Name       string            `json:"name"`
		Kind       string            `json:"kind"`
		Start      float64           `json:"start_ms"`
		Millis     float64           `json:"duration_ms"`
		Status     string            `json:"status"`
		Message    string            `json:"status_message,omitempty"`
		Attributes map[string]string `json:"attributes,omitempty"`
		Network    *query.Network    `json:"network,omitempty"`
		at         int64
	}
	var spans []span
	for _, rs := range t.OTLP.ResourceSpans().All() {
		service := ""
		if v, ok := rs.Resource().Attributes().Get("service.name"); ok {
			service = v.AsString()
		}
		for _, ss := range rs.ScopeSpans().All() {
			for _, o := range ss.Spans().All() {
				line := span{
					SpanID: o.SpanID().String(), ParentID: o.ParentSpanID().String(), Service: service, Name: o.Name(), Kind: strings.ToLower(o.Kind().String()),
					Millis: float64(o.EndTimestamp()-o.StartTimestamp()) / 1e6, Status: strings.ToLower(o.Status().Code().String()), Message: o.Status().Message(), at: int64(o.StartTimestamp()),
					Attributes: map[string]string{},
				}
				for key, v := range o.Attributes().All() {
					if !strings.HasPrefix(key, "metaflow.network.") {
						line.Attributes[key] = v.AsString()
					}
				}
				if n, ok := t.Network[query.KeyOf(o)]; ok {
					line.Network = &n
				}
				spans = append(spans, line)
			}
		}
	}
	slices.SortStableFunc(spans, func(a, b span) int { return cmp.Compare(a.at, b.at) })
	for i := range spans {
		spans[i].Start = float64(spans[i].at-spans[0].at) / 1e6
	}
	cut := t.Cut || len(spans) > maxSpans
	return map[string]any{
		"trace_id": id, "start": time.Unix(0, spans[0].at).UTC(), "spans": spans[:min(len(spans), maxSpans)], "cut": cut, "network_known": t.NetworkKnown(), "network_missing": t.NetworkMissing,
	}, nil
}

type missingSpan struct {
	TraceID string `json:"trace_id" jsonschema:"id of the trace, 32 hexadecimal digits"`
	SpanID  string `json:"span_id,omitempty" jsonschema:"id of the span, 16 hexadecimal digits; empty asks about the whole trace"`
	Service string `json:"service,omitempty" jsonschema:"service that should have sent it"`
}

func (s *Server) missingSpan(ctx context.Context, in missingSpan) (any, error) {
	id, err := query.TraceID(in.TraceID)
	if err != nil {
		return nil, err
	}
	span := ""
	if in.SpanID != "" {
		if span, err = query.SpanID(in.SpanID); err != nil {
			return nil, err
		}
	}
	return s.reader.Missing(ctx, id, span, in.Service)
}

type statement struct {
	Query string `json:"query" jsonschema:"one SELECT, WITH, SHOW, DESCRIBE or EXPLAIN statement of ClickHouse"`
}

// maxRows and maxBytes bound an answer to SQL.
const (
	maxRows  = 200
	maxBytes = 1 << 20
)

func (s *Server) sql(ctx context.Context, in statement) (any, error) {
	if err := reads(in.Query); err != nil {
		return nil, err
	}
	t, err := s.tables.Table(ctx, in.Query, maxRows, maxBytes)
	if err != nil {
		return nil, err
	}
	return map[string]any{"columns": t.Columns, "types": t.Types, "rows": append([][]json.RawMessage{}, t.Rows...), "more_rows": t.More}, nil
}
