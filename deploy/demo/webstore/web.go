package webstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// maxBody bounds a request or a page; the largest has a few kilobytes, unless
// Trouble asks for an attachment.
const maxBody = 1 << 20

// routes are the handlers of an HTTP server by pattern of http.ServeMux. A
// handler returns the page, which is sent as JSON.
type routes map[string]func(r *http.Request) (any, error)

func (s *service) newWebServer(routes routes) *http.Server {
	mux := http.NewServeMux()
	for pattern, handle := range routes {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, handle) })
	}
	// The span gets its name when it starts, and again when the mux knows the
	// route.
	named := otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string {
		return strings.TrimSpace(r.Method + " " + route(r))
	})
	handler := otelhttp.NewHandler(mux, "", append(s.webOptions(), named)...)
	return &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
}

func (s *service) answer(w http.ResponseWriter, r *http.Request, handle func(*http.Request) (any, error)) {
	// otelhttp starts the span before the mux knows the route.
	trace.SpanFromContext(r.Context()).SetAttributes(semconv.HTTPRoute(route(r)))

	var page any
	err := s.work(r.Context())
	if err == nil {
		page, err = handle(r)
	}
	if err != nil {
		http.Error(w, err.Error(), statusCode(err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(page) // the client is gone
}

// route returns the pattern that the mux matched, or "" before it did.
func route(r *http.Request) string {
	_, path, _ := strings.Cut(r.Pattern, " ")
	return strings.TrimSuffix(path, "{$}")
}

// statusCode maps an error to an HTTP status.
func statusCode(err error) int {
	switch status.Code(err) {
	case codes.InvalidArgument:
		return http.StatusBadRequest
	case codes.NotFound:
		return http.StatusNotFound
	case codes.FailedPrecondition:
		return http.StatusPaymentRequired
	case codes.Unavailable:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

// newWebClient returns a client with its own connection pool.
func (s *service) newWebClient() *http.Client {
	s.transport = &http.Transport{DialContext: s.dialer().DialContext, MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute}
	if s.idleLimit > 0 {
		s.transport.IdleConnTimeout = s.idleLimit
	}
	options := append(s.webOptions(),
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return r.Method }),
		otelhttp.WithClientTrace(func(ctx context.Context) *httptrace.ClientTrace {
			return &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) { setPeer(ctx, got.Conn.RemoteAddr()) }}
		}),
	)
	return &http.Client{Transport: otelhttp.NewTransport(s.transport, options...)}
}

func (s *service) webOptions() []otelhttp.Option {
	return []otelhttp.Option{
		otelhttp.WithTracerProvider(s.telemetry.provider),
		otelhttp.WithPropagators(propagator),
	}
}

// webError is a response that is not the page.
type webError struct {
	code int
	text string
}

func (e *webError) Error() string { return fmt.Sprintf("%d %s", e.code, e.text) }

// refused reports whether err is a refused card, which is not a failure of the
// shop.
func refused(err error) bool {
	var e *webError
	return errors.As(err, &e) && e.code == http.StatusPaymentRequired
}

// fetch sends body, if any, as JSON to another service and decodes the response
// into page, which may be nil.
func (s *service) fetch(ctx context.Context, to, method, path string, body, page any, cookies ...*http.Cookie) error {
	address, ok := s.sites[to]
	if !ok {
		return fmt.Errorf("call %s: %s has no edge to it", to, s.name)
	}
	req, err := newRequest(ctx, method, "http://"+address+path, body)
	if err != nil {
		return err
	}
	for _, c := range cookies {
		req.AddCookie(c)
	}
	resp, err := s.web.Do(req)
	if err != nil {
		return err
	}
	content, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if closeErr := resp.Body.Close(); err == nil {
		err = closeErr
	}
	switch {
	case err != nil:
		return fmt.Errorf("read response of %s %s: %w", method, path, err)
	case resp.StatusCode != http.StatusOK:
		return &webError{resp.StatusCode, strings.TrimSpace(string(content))}
	case page == nil:
		return nil
	}
	return json.Unmarshal(content, page)
}

func newRequest(ctx context.Context, method, url string, body any) (*http.Request, error) {
	if body == nil {
		return http.NewRequestWithContext(ctx, method, url, nil)
	}
	content, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(content))
	if err == nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, err
}

// readBody decodes the JSON of a request.
func readBody(r *http.Request, into any) error {
	if err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(into); err != nil {
		return status.Errorf(codes.InvalidArgument, "read body: %v", err)
	}
	return nil
}
