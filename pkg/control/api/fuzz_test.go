package api_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/control/api"
)

// Any request gets a response with a known form, and none makes the handler panic.
func FuzzHandler(f *testing.F) {
	f.Add("POST", "/v1/agent-groups", []byte(`{"name":"shop"}`))
	f.Add("PUT", "/v1/agent-group-configs/shop?dry_run=true", []byte("log:\n  level: info\n"))
	f.Add("DELETE", "/v1/agents/a%2Fb", []byte(nil))
	f.Add("GET", "/v1/agents", []byte(nil))
	f.Fuzz(func(t *testing.T, method, target string, body []byte) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://server"+target, bytes.NewReader(body))
		if err != nil {
			return // no HTTP server passes it on
		}
		w := httptest.NewRecorder()
		api.NewHandler(&scripted{}, api.HandlerOptions{AnonymousWrites: true}).ServeHTTP(w, req)
		if w.Code >= http.StatusInternalServerError && w.Code != http.StatusNotImplemented {
			t.Errorf("%s %q: status %d: %s", method, target, w.Code, w.Body)
		}
		if w.Header().Get("Content-Type") == "application/json" && w.Body.Len() > 0 && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s %q: %q is no JSON", method, target, w.Body)
		}
	})
}
