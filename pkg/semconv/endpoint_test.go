package semconv_test

import (
	"fmt"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/semconv"
)

// endpointOf returns the endpoint of an HTTP client that requests a URL.
func endpointOf(t *testing.T, url, code string) string {
	t.Helper()
	var s semconv.Span
	return spanStory{
		kind: semconv.Client, name: "GET", attrs: pairs{"http.request.method", "GET", "url.full", url, "http.response.status_code", code},
	}.resolve(&s).Endpoint
}

// A path without a template has the ids of its request in it. What is kept of it
// does not depend on them.
func TestGuessedEndpoint(t *testing.T) {
	for url, want := range map[string]string{
		"http://shop/":                                "/",
		"http://shop/checkout":                        "/checkout",
		"http://shop/inner/7":                         "/inner/*",
		"http://shop/api/v1/orders/17/items":          "/api/v1/orders/*",
		"http://shop/api/v2":                          "/api/v2",
		"http://shop/v1/pay?token=t":                  "/v1/pay",
		"http://shop/17":                              "/*",
		"http://shop/6f1c2e9a-1111-4222-8333-abcdef0": "/*",
		"http://shop/v1/%2e%2e/x":                     "/v1/*",
		"http://shop/orders/":                         "/orders/*",
		"http://shop//double":                         "/*",
	} {
		if got := endpointOf(t, url, "200"); got != want {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
	if got := endpointOf(t, "http://shop/wp-admin/setup", "404"); got != "" {
		t.Errorf("a path that was not found: %q", got)
	}
	found := map[string]bool{}
	for i := range 10_000 {
		found[endpointOf(t, fmt.Sprintf("http://shop/users/%d/name-%x", i, i), "200")] = true
	}
	if len(found) != 1 {
		t.Errorf("%d endpoints of one route", len(found))
	}
}
