package main

import (
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

func TestExposuresAreReported(t *testing.T) {
	tests := map[string]struct {
		set  func(*server)
		want []string // one for each sentence
	}{
		"the defaults": {func(*server) {}, []string{"grpc.listen 0.0.0.0:20035", "http.listen 0.0.0.0:20417", "control.agent_tokens"}},
		"loopback":     {func(s *server) { s.GRPC.Listen, s.HTTP.Listen = "127.0.0.1:1", "[::1]:2" }, nil},
		"TLS": {func(s *server) {
			s.GRPC.TLS, s.HTTP.TLS = tlsconfig.Server{CertFile: "a", KeyFile: "b", ClientCAFile: "c"}, tlsconfig.Server{CertFile: "a", KeyFile: "b"}
		}, nil},
		"tokens in plain text": {func(s *server) { s.HTTP.Listen = "127.0.0.1:1"; s.Control.AgentTokens = []string{"hush"} }, []string{"grpc.listen", ") travel in plain text"}},
		"OTLP over HTTP": {func(s *server) {
			s.GRPC.Listen, s.HTTP.Listen, s.Gateway.HTTPListen = "127.0.0.1:1", "127.0.0.1:2", "0.0.0.0:4318"
		}, []string{"gateway.http_listen"}},
		"a writer alone":     {func(s *server) { s.Roles = []string{roleWriter}; s.HTTP.Listen = "localhost:1" }, nil},
		"changes by anybody": {func(s *server) { s.GRPC.Listen = "127.0.0.1:1"; s.Control.AllowAnonymousWrites = true }, []string{"http.listen", "control.allow_anonymous_writes"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := defaultServer()
			tc.set(s)
			got := s.exposures()
			if len(got) != len(tc.want) {
				t.Fatalf("%q, want %d sentences", got, len(tc.want))
			}
			for i, want := range tc.want {
				if !strings.Contains(got[i], want) {
					t.Errorf("%q does not name %s", got[i], want)
				}
			}
		})
	}
}
