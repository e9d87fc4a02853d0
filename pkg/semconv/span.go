package semconv

// Kind is the kind of a span with the numbers of OTLP's SpanKind.
type Kind uint8

// The kinds of a span.
const (
	Unspecified Kind = iota
	Internal
	Server
	Client
	Producer
	Consumer
)

// Span collects the attributes of one span. The zero value is ready to use. Call Reset
// between spans.
//
// The exported fields are valid from Resolve to Reset. Addresses are IPv6,
// IPv4 as v4-mapped; they are zero, like ports, when unknown.
type Span struct {
	Protocol, Method, Endpoint, ResponseCode []byte

	IP, PeerIP     [16]byte
	Port, PeerPort uint16

	attributes attributes
	evidence   evidence

	// Room for results that are not in the input as they are.
	word   [longestProtocol]byte // Protocol
	verb   [longestVerb]byte     // Method
	joined []byte                // Endpoint
}

// Reset returns s to its zero state, but keeps its memory. It invalidates the results and
// releases all added values.
func (s *Span) Reset() {
	s.attributes.reset()
	s.evidence = 0
	s.clearResults()
}

func (s *Span) clearResults() {
	s.Protocol, s.Method, s.Endpoint, s.ResponseCode = nil, nil, nil, nil
	s.IP, s.PeerIP = [16]byte{}, [16]byte{}
	s.Port, s.PeerPort = 0, 0
}

// Add takes one attribute of the span. It keeps value, not key, until Reset.
func (s *Span) Add(key, value []byte) { s.Set(Lookup(key), value) }

// Set is Add for a name that has been looked up already.
func (s *Span) Set(key Key, value []byte) {
	if s.attributes.set(key, value) {
		s.evidence |= known[key].evidence
	}
}

// Resolve decides the exported fields from the attributes added since Reset,
// the span's kind and name, and the IP of its resource, zero when unknown. It may
// be called again, with other arguments or after further attributes.
func (s *Span) Resolve(kind Kind, name []byte, own [16]byte) {
	s.clearResults()
	family := s.evidence.family()
	s.resolveNetwork(kind, family, own)
	switch family {
	case familyDatabase:
		s.resolveDatabase()
	case familyMessaging:
		s.resolveMessaging(kind)
	case familyRPC:
		s.resolveRPC(name)
	case familyGraphQL:
		s.resolveGraphQL()
	case familyHTTP:
		s.resolveHTTP(name)
	case familyFaaS:
		s.resolveFaaS()
	case familyNone:
	}
	if s.Protocol == nil {
		s.Protocol = s.protocol(s.attributes.pick(keyNetworkProtocolName, keyNetAppProtocolName))
	}
	if s.ResponseCode == nil {
		s.ResponseCode = s.httpStatus()
	}
	if s.ResponseCode == nil {
		s.ResponseCode = s.errorType()
	}
}

// protocol returns the column's word for a value, nil for an absent one.
func (s *Span) protocol(value []byte) []byte {
	if value == nil {
		return nil
	}
	return protocolWord(&s.word, value)
}

// errorType returns the class of a failure (error.type, since 1.22): a status or an
// exception's type. It ignores _OTHER, which the span's status expresses better.
func (s *Span) errorType() []byte {
	if v := s.attributes.values[keyErrorType]; string(v) != "_OTHER" {
		return v
	}
	return nil
}

// resolveGraphQL follows the conventions for GraphQL servers, 1.13 and later.
func (s *Span) resolveGraphQL() {
	s.Protocol = protocolGraphQL
	s.Method = s.attributes.values[keyGraphQLOperationType]
	s.Endpoint = s.attributes.values[keyGraphQLOperationName]
}

// resolveFaaS follows the conventions for function as a service. A function's own spans
// identify it by their resource; only a caller names another function.
func (s *Span) resolveFaaS() {
	s.Protocol = protocolFaaS
	s.Method = s.attributes.values[keyFaaSTrigger]
	s.Endpoint = s.attributes.values[keyFaaSInvokedName]
}
