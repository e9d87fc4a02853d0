package otlphttp_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/cors"
	"github.com/metaflowys/metaflow-server/pkg/otlphttp"
	"github.com/metaflowys/metaflow-server/pkg/signal"
)

func policy(t *testing.T, headers []cors.Header, origins ...string) cors.Policy {
	t.Helper()
	p := cors.Policy{AllowedHeaders: headers, MaxAge: 5 * time.Minute}
	for _, text := range origins {
		o, err := cors.ParseOrigin(text)
		if err != nil {
			t.Fatal(err)
		}
		p.AllowedOrigins = append(p.AllowedOrigins, o)
	}
	return p
}

// ask sends a request with headers and returns the response and its CORS headers.
func (r *running) ask(t *testing.T, method, path string, headers map[string]string) (a answer, got map[string]string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+r.Addr().String()+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range headers {
		req.Header.Set(name, value)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	a = read(t, resp)
	got = map[string]string{}
	for name, values := range a.header {
		if strings.HasPrefix(name, "Access-Control-") || name == "Vary" {
			got[strings.TrimPrefix(name, "Access-Control-")] = strings.Join(values, ", ")
		}
	}
	return a, got
}

func TestBrowsersOfAllowedOriginsMaySend(t *testing.T) {
	const json = "application/json"
	preflight := func(origin string) map[string]string {
		return map[string]string{"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-api-key"}
	}
	yes := func(origin string) map[string]string {
		return map[string]string{"Vary": "Origin", "Allow-Origin": origin, "Allow-Credentials": "true", "Expose-Headers": "Retry-After"}
	}
	with := func(m map[string]string, pairs ...string) map[string]string {
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	no := map[string]string{"Vary": "Origin"}
	asked := []string{"Allow-Methods", "POST", "Allow-Headers", "content-type, content-encoding, x-api-key", "Max-Age", "300"}
	const app, sub = "https://app.example.com", "https://a.b.example.org:8443"
	named := policy(t, []cors.Header{"x-api-key"}, app, "https://*.example.org:8443")
	tests := map[string]struct {
		policy       cors.Policy
		method, path string
		headers      map[string]string
		want         int
		got          map[string]string
	}{
		"preflight":                       {named, "OPTIONS", "/v1/traces", preflight(app), 204, with(yes(app), asked...)},
		"preflight of a pattern":          {named, "OPTIONS", "/api/v1/otel/trace", preflight(sub), 204, with(yes(sub), asked...)},
		"preflight with doubled slashes":  {named, "OPTIONS", "//v1/traces/", preflight(app), 204, with(yes(app), asked...)},
		"preflight of another origin":     {named, "OPTIONS", "/v1/traces", preflight("https://evil.test"), 403, no},
		"preflight of an origin of files": {named, "OPTIONS", "/v1/traces", preflight("null"), 403, no},
		"preflight of another path":       {named, "OPTIONS", "/v1/logs", preflight(app), 404, yes(app)},
		"preflight where none is allowed": {cors.Policy{}, "OPTIONS", "/v1/traces", preflight(app), 405, map[string]string{}},
		"preflight where all are allowed": {
			policy(t, []cors.Header{"x-api-key"}, "*"), "OPTIONS", "/v1/traces", preflight("https://evil.test"), 204,
			with(map[string]string{"Vary": "Origin", "Allow-Origin": "*", "Expose-Headers": "Retry-After"}, asked...),
		},
		"no preflight":               {named, "OPTIONS", "/v1/traces", map[string]string{"Origin": app}, 405, yes(app)},
		"POST":                       {named, "POST", "/v1/traces", map[string]string{"Origin": app, "Content-Type": protobufType}, 200, yes(app)},
		"POST that is refused":       {named, "POST", "/v1/traces", map[string]string{"Origin": app, "Content-Type": json}, 400, yes(app)},
		"POST of another origin":     {named, "POST", "/v1/traces", map[string]string{"Origin": "https://evil.test", "Content-Type": protobufType}, 200, no},
		"POST without an origin":     {named, "POST", "/v1/traces", map[string]string{"Content-Type": protobufType}, 200, no},
		"POST where none is allowed": {cors.Policy{}, "POST", "/v1/traces", map[string]string{"Origin": app, "Content-Type": protobufType}, 200, map[string]string{}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.CORS = tc.policy
			a, got := start(t, cfg, accept, otlphttp.Options{}).ask(t, tc.method, tc.path, tc.headers)
			if a.status != tc.want {
				t.Errorf("status %d %q, want %d", a.status, a.body, tc.want)
			}
			if diff := cmp.Diff(tc.got, got); diff != "" {
				t.Errorf("CORS headers (-want +got):\n%s", diff)
			}
			if a.status == http.StatusNoContent && len(a.body)+len(a.header.Get("Content-Type")) > 0 {
				t.Errorf("response to a preflight has a body: %q", a.body)
			}
			if a.status == http.StatusForbidden {
				a.refused(t, 403, `origin "`+tc.headers["Origin"]+`" is not allowed`)
			}
		})
	}
}

// A path with extra slashes is served directly: a redirect would lose the body.
func TestExtraSlashesAreIgnored(t *testing.T) {
	const body = "\x0a\x00" // one ResourceSpans, empty
	got := make(chan string, 1)
	r := start(t, testConfig(), consumerFunc(func(_ context.Context, req signal.Request) (signal.Result, error) {
		got <- string(req.Body)
		return signal.Result{}, nil
	}), otlphttp.Options{})
	r.client.CheckRedirect = func(req *http.Request, _ []*http.Request) error {
		t.Errorf("redirected to %s", req.URL)
		return http.ErrUseLastResponse
	}
	for _, path := range []string{"/v1/traces/", "//v1/traces", "/v1//traces", "//v1//traces//", "/api/v1/otel/trace/", "//api/v1/otel//trace", "/v1/traces/?x=y"} {
		t.Run(path, func(t *testing.T) {
			a := r.send(t, http.MethodPost, "http://"+r.Addr().String()+path, protobufType, "", strings.NewReader(body))
			a.accepted(t)
			if req := <-got; req != body {
				t.Errorf("the consumer got %q", req)
			}
		})
	}
}
