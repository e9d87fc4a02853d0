package controlapi_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/controlapi"
)

// Whoever reaches the port could open any port of every agent.
func TestAnonymousWrites(t *testing.T) {
	const afar, here = "192.0.2.7:40000", "127.0.0.1:40000"
	tests := map[string]struct {
		opts         controlapi.HandlerOptions
		method, from string
		header       string
		want         int
	}{
		"a change from afar":                   {method: http.MethodPatch, from: afar, want: 403},
		"a deletion from afar":                 {method: http.MethodDelete, from: afar, want: 403},
		"a replacement from afar":              {method: http.MethodPut, from: afar, want: 403},
		"a look from afar":                     {method: http.MethodGet, from: afar, want: 200},
		"a change from here":                   {method: http.MethodPatch, from: here, want: 200},
		"a change from here by IPv6":           {method: http.MethodPatch, from: "[::1]:40000", want: 200},
		"a change through a proxy here":        {method: http.MethodPatch, from: here, header: "X-Forwarded-For", want: 403},
		"a change from afar that is asked for": {opts: controlapi.HandlerOptions{AnonymousWrites: true}, method: http.MethodPatch, from: afar, want: 200},
		"a change from here without the token": {opts: controlapi.HandlerOptions{Token: "hush"}, method: http.MethodPatch, from: here, want: 401},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), tc.method, "/v1/agent-group-configs/g-default000", strings.NewReader(""))
			r.RemoteAddr = tc.from
			if tc.header != "" {
				r.Header.Set(tc.header, "192.0.2.7")
			}
			w := httptest.NewRecorder()
			controlapi.NewHandler(&scripted{}, tc.opts).ServeHTTP(w, r)
			if w.Code != tc.want {
				t.Errorf("status %d %s, want %d", w.Code, w.Body, tc.want)
			}
			if w.Code == http.StatusForbidden && !strings.Contains(w.Body.String(), "control.token") {
				t.Errorf("%s does not say what to do", w.Body)
			}
		})
	}
}
