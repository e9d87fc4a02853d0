package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A web page cannot reach the embedded ClickHouse; curl can.
func TestEngineDoorRefusesWebPages(t *testing.T) {
	reached := 0
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached++
		_, _ = io.Copy(w, r.Body)
	}))
	defer engine.Close()
	door, err := openEngineDoor(0, engine.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); door.run(ctx) }()
	defer func() { stop(); <-ended }()
	for name, tc := range map[string]struct {
		host, header, value string
		want                int
	}{
		"curl":                                {want: 200},
		"curl for localhost":                  {host: "localhost:8123", want: 200},
		"the address bar of a browser":        {header: "Sec-Fetch-Site", value: "none", want: 200},
		"the engine's own page":               {header: "Sec-Fetch-Site", value: "same-origin", want: 200},
		"a cross-site post":                   {header: "Origin", value: "http://evil.example", want: 403},
		"a post of a sandboxed page":          {header: "Origin", value: "null", want: 403},
		"a cross-site look":                   {header: "Sec-Fetch-Site", value: "cross-site", want: 403},
		"a page of another port of this host": {header: "Sec-Fetch-Site", value: "same-site", want: 403},
		"a page with a name for loopback":     {host: "evil.example:8123", want: 403},
	} {
		before := reached
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+door.addr()+"/", strings.NewReader("SELECT 1"))
		if err != nil {
			t.Fatal(err)
		}
		req.Host = tc.host
		if tc.header != "" {
			req.Header.Set(tc.header, tc.value)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tc.want || (reached > before) != (tc.want == 200) || tc.want == 200 && string(body) != "SELECT 1" {
			t.Errorf("%s: %d %q, want %d", name, resp.StatusCode, body, tc.want)
		}
	}
	engine.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+door.addr()+"/", strings.NewReader("SELECT 1"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 502 || !strings.Contains(string(body), "ClickHouse does not answer") {
		t.Errorf("without the engine: %d %q", resp.StatusCode, body)
	}
	http.DefaultClient.CloseIdleConnections()
}
