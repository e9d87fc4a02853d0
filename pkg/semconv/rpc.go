package semconv

import "bytes"

// resolveRPC follows the conventions for RPC spans: up to 1.38 a service and a
// method, since 1.39 one fully-qualified method. The grpc.* attributes are
// those that ASP.NET Core and Envoy write by themselves.
func (s *Span) resolveRPC(name []byte) {
	a := &s.attributes
	s.Protocol = s.protocol(a.pick(keyRPCSystemName, keyRPCSystem))
	grpc := a.has(keyGRPCMethod) || a.has(keyGRPCPath) || a.has(keyGRPCStatusCode) || a.has(keyRPCGRPCStatusCode)
	if s.Protocol == nil && grpc {
		s.Protocol = protocolGRPC
	}
	s.ResponseCode = a.pick(keyRPCResponseStatusCode, keyRPCJSONRPCErrorCode)

	method := trimSlash(a.pick(keyRPCMethod, keyGRPCPath))
	if method == nil && !a.has(keyRPCService) {
		method = s.methodOfTransport(name)
	}
	s.Method, s.Endpoint = method, method
	if slash := bytes.LastIndexByte(method, '/'); slash >= 0 {
		s.Method = method[slash+1:]
		return
	}
	if service := a.values[keyRPCService]; service != nil {
		s.Endpoint = service
		if method != nil {
			s.Endpoint = s.join(service, '/', method)
		}
	}
}

// methodOfTransport looks for a fully-qualified method if no RPC attribute has one: in
// the span's name, which the conventions derive from it, or in the path of the HTTP
// request, where gRPC and Connect transmit it.
func (s *Span) methodOfTransport(name []byte) []byte {
	method := trimSlash(name)
	if slash := bytes.IndexByte(method, '/'); slash > 0 && slash+1 < len(method) && !bytes.ContainsAny(method, " ?:") {
		return method
	}
	return trimSlash(s.httpPath())
}

// trimSlash removes the slash that gRPC puts before a full method. It returns nil if
// nothing is left.
func trimSlash(method []byte) []byte {
	if len(method) > 0 && method[0] == '/' {
		method = method[1:]
	}
	if len(method) == 0 {
		return nil
	}
	return method
}

// join writes left, sep and right into the span's own memory.
func (s *Span) join(left []byte, sep byte, right []byte) []byte {
	s.joined = append(s.joined[:0], left...)
	s.joined = append(s.joined, sep)
	s.joined = append(s.joined, right...)
	return s.joined
}
