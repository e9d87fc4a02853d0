package main

import (
	"fmt"

	"github.com/metaflowys/metaflow-server/pkg/values"
)

// exposures describes what strangers on the network may do to this server, one sentence
// each.
func (s *server) exposures() []string {
	var found []string
	warn := func(when bool, format string, args ...any) {
		if when {
			found = append(found, fmt.Sprintf(format, args...))
		}
	}
	grpc := s.servesPort() && !values.Loopback(s.GRPC.Listen)
	http := !values.Loopback(s.HTTP.Listen)
	warn(grpc && s.GRPC.TLS.CertFile == "", "grpc.listen %s accepts plain text from the network (grpc.insecure); set grpc.tls", s.GRPC.Listen)
	warn(s.has(roleGateway) && s.Gateway.HTTPListen != "" && !values.Loopback(s.Gateway.HTTPListen) && s.GRPC.TLS.CertFile == "",
		"gateway.http_listen %s accepts plain text from the network (gateway.http_insecure); set grpc.tls", s.Gateway.HTTPListen)
	warn(http && s.HTTP.TLS.CertFile == "", "http.listen %s accepts plain text from the network (http.insecure); set http.tls", s.HTTP.Listen)
	warn(http && s.HTTP.Pprof, "http.pprof serves profiles to everybody who reaches %s", s.HTTP.Listen)
	warn(http && s.has(roleControl) && s.Control.AllowAnonymousWrites,
		"control.allow_anonymous_writes lets everybody who reaches %s configure all agents; set control.token instead", s.HTTP.Listen)
	warn(grpc && !s.Control.AgentsNeedTokens() && s.GRPC.TLS.ClientCAFile == "",
		"everybody who reaches grpc.listen %s may register a new agent; set control.group_tokens, control.agent_tokens or grpc.tls.client_ca_file", s.GRPC.Listen)
	warn(grpc && s.Control.AgentsNeedTokens() && s.GRPC.TLS.CertFile == "", "the tokens of agents (control.agent_tokens, control.group_tokens) travel in plain text; set grpc.tls")
	if s.has(roleQuery) {
		for _, l := range []struct{ key, address string }{{"query.http_listen", s.Query.HTTPListen}, {"query.grpc_listen", s.Query.GRPCListen}} {
			open := !values.Loopback(l.address)
			warn(open && s.Query.TLS.CertFile == "", "%s %s accepts plain text from the network (query.insecure); set query.tls", l.key, l.address)
			warn(open && s.Query.Open(), "everybody who reaches %s %s may read all traces; set query.tokens or query.tls.client_ca_file", l.key, l.address)
		}
	}
	return found
}
