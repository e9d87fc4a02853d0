package main

import (
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

// public makes the server listen on all addresses.
func public(s *server) { s.GRPC.Listen, s.HTTP.Listen = "0.0.0.0:20035", "0.0.0.0:20417" }

// A server does not start in plain text on an address of the network, unless its
// configuration says so for that port.
func TestPlainTextNeedsConsent(t *testing.T) {
	encrypted := tlsconfig.Server{CertFile: "a", KeyFile: "b"}
	for name, tc := range map[string]struct {
		set  func(*server)
		want []string // one for each line of the error
	}{
		"the defaults": {func(*server) {}, nil},
		"the network": {
			public, []string{`grpc.listen: "0.0.0.0:20035" accepts plain text`, `http.listen: "0.0.0.0:20417" accepts plain text`},
		},
		"every port": {func(s *server) { public(s); s.Gateway.HTTPListen = ":4318" }, []string{
			`"grpc.insecure: true"`, `gateway.http_listen: ":4318" accepts plain text from other hosts: set grpc.tls.cert_file and grpc.tls.key_file, or allow it with the line "gateway.http_insecure: true", or listen on 127.0.0.1`, `"http.insecure: true"`,
		}},
		"with consent": {func(s *server) {
			public(s)
			s.Gateway.HTTPListen = "[::]:4318"
			s.GRPC.Insecure, s.HTTP.Insecure, s.Gateway.HTTPInsecure = true, true, true
		}, nil},
		"consent to one port":     {func(s *server) { public(s); s.GRPC.Insecure = true }, []string{"http.listen"}},
		"TLS":                     {func(s *server) { public(s); s.GRPC.TLS, s.HTTP.TLS = encrypted, encrypted }, nil},
		"a writer has no port":    {func(s *server) { public(s); s.Roles, s.HTTP.Listen = []string{roleWriter}, "localhost:1" }, nil},
		"an address of this host": {func(s *server) { s.GRPC.Listen, s.HTTP.Listen = "[::1]:1", "127.9.9.9:2" }, nil},
		"a name":                  {func(s *server) { s.GRPC.Listen = "server.example:1" }, []string{"server.example"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := defaultServer()
			tc.set(s)
			var got []string
			if err := s.Validate(); err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if len(got) != len(tc.want) {
				t.Fatalf("%q, want %d problems", got, len(tc.want))
			}
			for i, want := range tc.want {
				if !strings.Contains(got[i], want) {
					t.Errorf("%q does not say %q", got[i], want)
				}
			}
		})
	}
}

func TestExposuresAreReported(t *testing.T) {
	tests := map[string]struct {
		set  func(*server)
		want []string // one for each sentence
	}{
		"the defaults": {func(*server) {}, nil},
		"the network":  {public, []string{"grpc.listen 0.0.0.0:20035", "http.listen 0.0.0.0:20417", "control.agent_tokens"}},
		"loopback":     {func(s *server) { s.GRPC.Listen, s.HTTP.Listen = "127.0.0.1:1", "[::1]:2" }, nil},
		"TLS": {func(s *server) {
			public(s)
			s.GRPC.TLS, s.HTTP.TLS = tlsconfig.Server{CertFile: "a", KeyFile: "b", ClientCAFile: "c"}, tlsconfig.Server{CertFile: "a", KeyFile: "b"}
		}, nil},
		"tokens in plain text": {func(s *server) { public(s); s.HTTP.Listen = "127.0.0.1:1"; s.Control.AgentTokens = []string{"hush"} }, []string{"grpc.listen", ") travel in plain text"}},
		"OTLP over HTTP": {func(s *server) {
			s.GRPC.Listen, s.HTTP.Listen, s.Gateway.HTTPListen = "127.0.0.1:1", "127.0.0.1:2", "0.0.0.0:4318"
		}, []string{"gateway.http_listen"}},
		"a writer alone":     {func(s *server) { s.Roles = []string{roleWriter}; s.HTTP.Listen = "localhost:1" }, nil},
		"changes by anybody": {func(s *server) { public(s); s.GRPC.Listen = "127.0.0.1:1"; s.Control.AllowAnonymousWrites = true }, []string{"http.listen", "control.allow_anonymous_writes"}},
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
