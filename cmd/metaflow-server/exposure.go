package main

import (
	"fmt"
	"net"
	"net/netip"
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
	grpc := s.servesPort() && !loopback(s.GRPC.Listen)
	http := !loopback(s.HTTP.Listen)
	warn(grpc && s.GRPC.TLS.CertFile == "", "grpc.listen %s accepts plain text from the network; set grpc.tls", s.GRPC.Listen)
	warn(s.has(roleGateway) && s.Gateway.HTTPListen != "" && !loopback(s.Gateway.HTTPListen) && s.GRPC.TLS.CertFile == "",
		"gateway.http_listen %s accepts plain text from the network; set grpc.tls", s.Gateway.HTTPListen)
	warn(http && s.HTTP.TLS.CertFile == "", "http.listen %s accepts plain text from the network; set http.tls", s.HTTP.Listen)
	warn(http && s.HTTP.Pprof, "http.pprof serves profiles to everybody who reaches %s", s.HTTP.Listen)
	warn(http && s.has(roleControl) && s.Control.AllowAnonymousWrites,
		"control.allow_anonymous_writes lets everybody who reaches %s configure all agents; set control.token instead", s.HTTP.Listen)
	warn(grpc && !s.Control.AgentsNeedTokens() && s.GRPC.TLS.ClientCAFile == "",
		"everybody who reaches grpc.listen %s may register a new agent; set control.group_tokens, control.agent_tokens or grpc.tls.client_ca_file", s.GRPC.Listen)
	warn(grpc && s.Control.AgentsNeedTokens() && s.GRPC.TLS.CertFile == "", "the tokens of agents (control.agent_tokens, control.group_tokens) travel in plain text; set grpc.tls")
	return found
}

// loopback reports whether a listen address is reachable from this host only.
func loopback(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}
