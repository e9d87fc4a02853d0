package api_test

import (
	"cmp"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/metaflowys/metaflow-server/pkg/control/api"
)

// A client that reaches the port could open any port of every agent.
func TestAnonymousWrites(t *testing.T) {
	const afar, here = "192.0.2.7:40000", "127.0.0.1:40000"
	tests := map[string]struct {
		opts         api.HandlerOptions
		method, from string
		header       string
		host         string // "localhost:20417" when empty
		want         int
	}{
		"a change from afar":                          {method: http.MethodPatch, from: afar, want: 403},
		"a deletion from afar":                        {method: http.MethodDelete, from: afar, want: 403},
		"a replacement from afar":                     {method: http.MethodPut, from: afar, want: 403},
		"a look from afar":                            {method: http.MethodGet, from: afar, want: 200},
		"a change from here":                          {method: http.MethodPatch, from: here, want: 200},
		"a change from here by IPv6":                  {method: http.MethodPatch, from: "[::1]:40000", want: 200},
		"a change through a proxy here":               {method: http.MethodPatch, from: here, header: "X-Forwarded-For", want: 403},
		"a change for a host behind a proxy here":     {method: http.MethodPatch, from: here, header: "X-Forwarded-Host", want: 403},
		"a change through a sidecar here":             {method: http.MethodPatch, from: here, header: "X-Envoy-External-Address", want: 403},
		"a change of a page with a name for loopback": {method: http.MethodPatch, from: here, host: "evil.example:20417", want: 403},
		"a look of a page with a name for loopback":   {method: http.MethodGet, from: here, host: "evil.example:20417", want: 403},
		"such a look that claims a proxy":             {method: http.MethodGet, from: here, header: "X-Forwarded-For", host: "evil.example", want: 403},
		"a change for an address of loopback":         {method: http.MethodPatch, from: here, host: "127.0.0.1", want: 200},
		"a change for an IPv6 address of loopback":    {method: http.MethodPatch, from: here, host: "[::1]:20417", want: 200},
		"a look from afar by the server's name":       {method: http.MethodGet, from: afar, host: "metaflow.example:20417", want: 200},
		"a change from afar that is asked for":        {opts: api.HandlerOptions{AnonymousWrites: true}, method: http.MethodPatch, from: afar, want: 200},
		"a change from here without the token":        {opts: api.HandlerOptions{Tokens: writing(t, "hush")}, method: http.MethodPatch, from: here, want: 401},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), tc.method, "/v1/agent-group-configs/g-default000", strings.NewReader(""))
			r.RemoteAddr = tc.from
			r.Host = cmp.Or(tc.host, "localhost:20417")
			if tc.header != "" {
				r.Header.Set(tc.header, "192.0.2.7")
			}
			w := httptest.NewRecorder()
			api.NewHandler(&scripted{}, tc.opts).ServeHTTP(w, r)
			if w.Code != tc.want {
				t.Errorf("status %d %s, want %d", w.Code, w.Body, tc.want)
			}
			if w.Code == http.StatusForbidden && !strings.Contains(w.Body.String(), "control.token") {
				t.Errorf("%s does not name the remedy", w.Body)
			}
		})
	}
}

// waiting returns lists when released, and counts the concurrent calls.
type waiting struct {
	scripted

	release   chan struct{}
	now, most atomic.Int32
}

func (s *waiting) Agents(context.Context) ([]api.Agent, error) {
	s.most.Store(max(s.most.Load(), s.now.Add(1)))
	<-s.release
	s.now.Add(-1)
	return nil, nil
}

// Each list holds memory until it is written, so only a few are built concurrently. All
// get a response.
func TestListsAreAnsweredInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &waiting{release: make(chan struct{})}
		h := api.NewHandler(s, api.HandlerOptions{})
		var asking sync.WaitGroup
		for range 100 {
			asking.Go(func() {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/agents", http.NoBody))
				if w.Code != http.StatusOK {
					t.Errorf("status %d %s", w.Code, w.Body)
				}
			})
		}
		synctest.Wait()
		if got := s.now.Load(); got != 4 {
			t.Errorf("%d lists are built concurrently, want 4", got)
		}
		close(s.release)
		asking.Wait()
		if got := s.most.Load(); got > 4 {
			t.Errorf("%d lists were built concurrently, want at most 4", got)
		}
	})
}
