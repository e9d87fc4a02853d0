// Package ui serves the page of the role query: the services of the last minutes with what
// the network does to their calls, the history of an edge, and a trace with the network's
// verdict beside each span.
//
// The page is embedded, has no build step, and loads nothing from elsewhere. Its own files
// hold no data and are served without a token.
package ui

import (
	"cmp"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/query"
)

//go:embed page
var files embed.FS

// Options are set by code.
type Options struct {
	// Guard wraps the handler of the page's data.
	Guard func(http.Handler) http.Handler
	// Grafana and Jaeger are addresses that the page links to, or empty.
	Grafana, Jaeger string
}

// NewHandler returns a handler of /ui/.
func NewHandler(reader *query.Reader, opts Options) http.Handler {
	h := &handler{reader, opts}
	data := http.NewServeMux()
	data.HandleFunc("GET /ui/data/links", answer(h.links))
	data.HandleFunc("GET /ui/data/edges", answer(h.edges))
	data.HandleFunc("GET /ui/data/edge", answer(h.edge))
	data.HandleFunc("GET /ui/data/traces", answer(h.traces))
	data.HandleFunc("GET /ui/data/trace/{id}", answer(h.trace))
	page, err := fs.Sub(files, "page")
	if err != nil {
		panic(err) // the directory is embedded
	}
	mux := http.NewServeMux()
	mux.Handle("GET /ui/data/", opts.Guard(data))
	mux.Handle("GET /ui/", http.StripPrefix("/ui/", http.FileServerFS(page)))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("Cache-Control", "no-cache")
		mux.ServeHTTP(w, r)
	})
}

type handler struct {
	reader *query.Reader
	opts   Options
}

// answer makes a handler of a function that returns what to encode as JSON.
func answer(f func(r *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			query.HTTPError(w, err)
			return
		}
		text, err := json.Marshal(v)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		query.HTTPJSON(w, text)
	}
}

func (h *handler) links(*http.Request) (any, error) {
	return map[string]string{"grafana": strings.TrimSuffix(h.opts.Grafana, "/"), "jaeger": strings.TrimSuffix(h.opts.Jaeger, "/")}, nil
}

func minutes(r *http.Request) (int, error) {
	text := cmp.Or(r.URL.Query().Get("minutes"), "15")
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("%w: minutes: %.20q is not a number", query.ErrBadRequest, text)
	}
	return n, nil
}

func (h *handler) edges(r *http.Request) (any, error) {
	n, err := minutes(r)
	if err != nil {
		return nil, err
	}
	return h.reader.Edges(r.Context(), n)
}

func (h *handler) edge(r *http.Request) (any, error) {
	n, err := minutes(r)
	if err != nil {
		return nil, err
	}
	return h.reader.History(r.Context(), r.URL.Query().Get("client"), r.URL.Query().Get("server"), n)
}

// line is a trace in a list.
type line struct {
	TraceID     string    `json:"trace_id"`
	RootService string    `json:"root_service"`
	RootName    string    `json:"root_name"`
	Start       time.Time `json:"start"`
	Millis      float64   `json:"duration_ms"`
	Spans       int       `json:"spans"`
	Errors      int       `json:"errors"`
	Verdict     string    `json:"verdict,omitempty"` // the worst of its calls
}

// slowOf is how many of the newest traces the slow ones are taken from.
const (
	slowOf = 200
	slow   = 10
)

// traces lists slow traces with both services of an edge, and what the network did to them.
func (h *handler) traces(r *http.Request) (any, error) {
	n, err := minutes(r)
	if err != nil {
		return nil, err
	}
	end := time.Now()
	search := query.Search{Range: query.Range{Start: end.Add(-time.Duration(n) * time.Minute), End: end}, Limit: slowOf, SpansPerTrace: 1}
	var and query.And
	for _, key := range []string{"client", "server"} {
		if service := r.URL.Query().Get(key); service != "" {
			is := query.Compare{Field: query.Field{Scope: query.Resource, Name: "service.name"}, Op: query.Equal, Value: query.Str(service)}
			if key == "client" {
				and = append(and, is)
			} else {
				and = append(and, query.Or{query.InTrace{Where: is}, query.Compare{Field: query.Field{Scope: query.SpanScope, Name: "server.address"}, Op: query.Equal, Value: query.Str(service)}})
			}
		}
	}
	search.Where = and
	found, err := h.reader.Find(r.Context(), search)
	if err != nil {
		return nil, err
	}
	slowest := found.Traces
	slices.SortStableFunc(slowest, func(a, b query.Summary) int { return cmp.Compare(b.End.Sub(b.Start), a.End.Sub(a.Start)) })
	slowest = slowest[:min(len(slowest), slow)]
	verdicts := h.reader.WorstOf(r.Context(), slowest)
	lines := []line{}
	for _, t := range slowest {
		lines = append(lines, line{t.TraceID, t.RootService, t.RootName, t.Start, float64(t.End.Sub(t.Start)) / 1e6, t.Spans, t.Errors, verdicts[t.TraceID]})
	}
	return lines, nil
}

// span is a span of a trace on the page.
type span struct {
	ID         string            `json:"id"`
	Parent     string            `json:"parent,omitempty"`
	Service    string            `json:"service"`
	Name       string            `json:"name"`
	Kind       string            `json:"kind"`
	Status     string            `json:"status"`
	Message    string            `json:"message,omitempty"`
	Start      int64             `json:"start_us"`
	Duration   float64           `json:"duration_us"`
	Network    *query.Network    `json:"network,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
}

func (h *handler) trace(r *http.Request) (any, error) {
	id, err := query.TraceID(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	t, err := h.reader.Trace(r.Context(), id, query.Range{})
	if err != nil {
		return nil, err
	}
	spans := make([]span, 0, t.Spans)
	for _, rs := range t.OTLP.ResourceSpans().All() {
		service := ""
		if v, ok := rs.Resource().Attributes().Get("service.name"); ok {
			service = v.AsString()
		}
		for _, ss := range rs.ScopeSpans().All() {
			for _, s := range ss.Spans().All() {
				out := span{
					ID: s.SpanID().String(), Parent: s.ParentSpanID().String(), Service: service, Name: s.Name(),
					Kind: strings.ToLower(s.Kind().String()), Status: strings.ToLower(s.Status().Code().String()), Message: s.Status().Message(),
					Start: int64(s.StartTimestamp()) / 1000, Duration: float64(s.EndTimestamp()-s.StartTimestamp()) / 1000, Attributes: map[string]string{},
				}
				if n, ok := t.Network[query.KeyOf(s)]; ok {
					out.Network = &n
				}
				for key, v := range s.Attributes().All() {
					if !strings.HasPrefix(key, query.AttributePrefix) {
						out.Attributes[key] = v.AsString()
					}
				}
				spans = append(spans, out)
			}
		}
	}
	slices.SortStableFunc(spans, func(a, b span) int { return cmp.Compare(a.Start, b.Start) })
	return map[string]any{"spans": spans, "cut": t.Cut, "network_known": t.NetworkKnown(), "network_missing": t.NetworkMissing}, nil
}
