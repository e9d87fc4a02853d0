package otlphttp_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/metaflowys/metaflow-server/pkg/cors"
	"github.com/metaflowys/metaflow-server/pkg/otlphttp"
	"github.com/metaflowys/metaflow-server/pkg/testkit/prom"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
)

func TestBearerTokens(t *testing.T) {
	set, err := tokens.Open(nil, tokens.List{Key: "k", Values: []string{"one", "two"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		header string
		want   int
	}{
		"a token":        {"Bearer one", http.StatusOK},
		"the next token": {"bearer two", http.StatusOK},
		"none":           {"", http.StatusUnauthorized},
		"a wrong one":    {"Bearer three", http.StatusUnauthorized},
		"a password":     {"Basic one", http.StatusUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			consumer := accept
			if tc.want != http.StatusOK {
				consumer = refuseAll(t)
			}
			r := start(t, testConfig(), consumer, otlphttp.Options{Bearer: set, BearerKey: "otlp.bearer_tokens", Metrics: otlphttp.NewMetrics(reg)})
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url(), strings.NewReader(`{"resourceSpans":[]}`))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", jsonType)
			if tc.header != "" {
				req.Header.Set("Authorization", tc.header)
			}
			resp, err := r.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			a := read(t, resp)
			if a.status != tc.want {
				t.Errorf("status %d, want %d", a.status, tc.want)
			}
			if tc.want == http.StatusOK {
				return
			}
			if !strings.Contains(string(a.body), "otlp.bearer_tokens") || !strings.Contains(string(a.body), `"code":16`) || a.header.Get("WWW-Authenticate") != "Bearer" {
				t.Errorf("%v %s", a.header, a.body)
			}
			if got := prom.Value(t, reg, "metaflow_otlphttp_refused_requests_total", "bearer_token"); got != 1 {
				t.Errorf("counted %v", got)
			}
		})
	}
}

// A browser asks for permission without its token, and must be answered.
func TestPreflightNeedsNoToken(t *testing.T) {
	set, err := tokens.Open(nil, tokens.List{Key: "k", Values: []string{"one"}})
	if err != nil {
		t.Fatal(err)
	}
	origin, err := cors.ParseOrigin("https://app.example.com")
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	cfg.CORS.AllowedOrigins = []cors.Origin{origin}
	r := start(t, cfg, refuseAll(t), otlphttp.Options{Bearer: set})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, r.url(), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Origin", "https://app.example.com")
	req.Header.Set("Access-Control-Request-Method", http.MethodPost)
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if a := read(t, resp); a.status != http.StatusNoContent {
		t.Errorf("status %d", a.status)
	}
}
