package semconv

// source is a pair of attributes with an address and its port.
type source struct {
	address, port Key
	// strict uses the port only with the address beside it: it belongs to a party that
	// may not be the other end of the socket.
	strict bool
	// hearsay marks attributes that OpenTracing left undefined: proxies write the address
	// of their own caller there, whatever the span's kind.
	hearsay bool
}

// Where the two ends of a connection are found, in order of precedence. The
// sockets come first (network.* since 1.22, *.socket.* in 1.21, net.sock.* from 1.13
// to 1.20, net.*.ip up to 1.12), then the names that clients use, which are
// taken when they are addresses.
var (
	serverAsPeer = []source{
		{address: keyNetworkPeerAddress, port: keyNetworkPeerPort},
		{address: keyNetSockPeerAddr, port: keyNetSockPeerPort},
		{address: keyServerSocketAddress, port: keyServerSocketPort},
		{address: keyNetPeerIP, port: keyNetPeerPort},
		{address: keyUpstreamAddress},
		{address: keyServerAddress, port: keyServerPort},
		{address: keyNetPeerName, port: keyNetPeerPort},
		{address: keyDestinationAddress, port: keyDestinationPort},
		{address: keyPeerAddress, port: keyPeerPort, hearsay: true},
		{address: keyPeerIPv4, port: keyPeerPort, hearsay: true},
		{address: keyPeerIPv6, port: keyPeerPort, hearsay: true},
	}
	clientAsPeer = []source{
		{address: keyNetworkPeerAddress, port: keyNetworkPeerPort},
		{address: keyNetSockPeerAddr, port: keyNetSockPeerPort},
		{address: keyClientSocketAddress, port: keyClientSocketPort},
		{address: keyNetPeerIP, port: keyNetPeerPort},
		{address: keyClientAddress, port: keyClientPort, strict: true},
		{address: keyNetPeerName, port: keyNetPeerPort},
		{address: keySourceAddress, port: keySourcePort, strict: true},
		{address: keyPeerAddress, port: keyPeerPort, hearsay: true},
		{address: keyPeerIPv4, port: keyPeerPort, hearsay: true},
		{address: keyPeerIPv6, port: keyPeerPort, hearsay: true},
		{address: keyHTTPClientIP, strict: true},
	}
	serverAsSelf = []source{
		{address: keyNetworkLocalAddress, port: keyNetworkLocalPort},
		{address: keyNetSockHostAddr, port: keyNetSockHostPort},
		{address: keyServerSocketAddress, port: keyServerSocketPort},
		{address: keyNetHostIP, port: keyNetHostPort},
		{address: keyNetHostName, port: keyNetHostPort},
		{address: keyDestinationAddress, port: keyDestinationPort},
		{address: keyServerAddress, port: keyServerPort},
	}
	clientAsSelf = []source{
		{address: keyNetworkLocalAddress, port: keyNetworkLocalPort},
		{address: keyNetSockHostAddr, port: keyNetSockHostPort},
		{address: keyClientSocketAddress, port: keyClientSocketPort},
		{address: keyNetHostIP, port: keyNetHostPort},
		{address: keyNetHostName, port: keyNetHostPort},
		{address: keySourceAddress, port: keySourcePort},
		{address: keyClientAddress, port: keyClientPort},
	}
	anyAsPeer = []source{
		{address: keyNetworkPeerAddress, port: keyNetworkPeerPort},
		{address: keyNetSockPeerAddr, port: keyNetSockPeerPort},
		{address: keyNetPeerIP, port: keyNetPeerPort},
		{address: keyNetPeerName, port: keyNetPeerPort},
	}
	anyAsSelf = []source{
		{address: keyNetworkLocalAddress, port: keyNetworkLocalPort},
		{address: keyNetSockHostAddr, port: keyNetSockHostPort},
		{address: keyNetHostIP, port: keyNetHostPort},
		{address: keyNetHostName, port: keyNetHostPort},
	}
)

// resolveNetwork decides both ends of the connection.
func (s *Span) resolveNetwork(kind Kind, family family, own address) {
	peer, self := anyAsPeer, anyAsSelf
	calls := kind == Client || kind == Producer || kind == Consumer && family == familyMessaging
	serves := !calls && (kind == Server || kind == Consumer)
	switch {
	case calls:
		peer, self = serverAsPeer, clientAsSelf
	case serves:
		peer, self = clientAsPeer, serverAsSelf
	}
	s.IP, s.Port = s.find(self, true)
	if own != (address{}) {
		s.IP = own
	}
	proxy := s.isProxy()
	s.PeerIP, s.PeerPort = s.find(peer, (!calls || !proxy) && !s.namesItself())
	switch {
	case calls && proxy: // the URL is what the proxy's caller asked for
	case calls:
		s.completeFromURL(family)
	case serves && s.Port == 0:
		_, s.Port = parseAuthority(s.authority())
	}
}

// isProxy reports whether the span comes from a proxy such as Envoy, which writes its
// caller's address to peer.address in every span, including those of its own calls.
func (s *Span) isProxy() bool {
	return s.attributes.has(keyUpstreamAddress) || s.attributes.has(keyUpstreamCluster) || s.attributes.has(keyUpstreamClusterName)
}

// namesItself reports whether hearsay gives the span's own address as its peer.
func (s *Span) namesItself() bool {
	if s.IP == (address{}) {
		return false
	}
	for _, k := range [...]Key{keyPeerAddress, keyPeerIPv4, keyPeerIPv6} {
		if text := s.attributes.values[k]; text != nil {
			if ip, _, ok := parseEndpoint(text); ok && ip == s.IP {
				return true
			}
		}
	}
	return false
}

// find returns the first address among sources, with its port or else the first port of
// any source. It skips hearsay unless believeHearsay is set.
func (s *Span) find(sources []source, believeHearsay bool) (ip address, port uint16) {
	spare := uint16(0)
	for i := range sources {
		src := &sources[i]
		if src.hearsay && !believeHearsay {
			continue
		}
		text, portText := s.attributes.values[src.address], s.attributes.values[src.port]
		if text == nil && portText == nil {
			continue
		}
		here, herePort, ok := parseEndpoint(text)
		if ok && src.address == keyUpstreamAddress && here == s.IP {
			continue // a proxy's call to the program beside it, which has the same address
		}
		if p, valid := parsePort(portText); valid {
			herePort = p
		}
		switch {
		case ok && ip == address{} && !here.unspecified():
			ip, port = here, herePort
		case ok && here == ip && port == 0:
			port = herePort
		}
		if spare == 0 && !src.strict {
			spare = herePort
		}
		if port != 0 {
			return ip, port
		}
	}
	return ip, spare
}

// completeFromURL adds the called server from the URL. The conventions omit the scheme's
// default port.
func (s *Span) completeFromURL(family family) {
	if s.PeerPort != 0 && s.PeerIP != [16]byte{} {
		return
	}
	ip, port := parseAuthority(s.authority())
	if s.PeerIP == [16]byte{} {
		s.PeerIP = ip
	}
	if s.PeerPort == 0 {
		s.PeerPort = port
	}
	if s.PeerPort == 0 && family == familyHTTP {
		s.PeerPort = s.defaultPort()
	}
}

// authority returns the host and port that the request was addressed to.
func (s *Span) authority() []byte {
	if u := splitURL(s.attributes.pick(keyURLFull, keyHTTPURL)); u.authority != nil {
		return u.authority
	}
	return s.attributes.values[keyHTTPHost]
}

// defaultPort is the port of the scheme of an HTTP request, 0 when unknown.
func (s *Span) defaultPort() uint16 {
	scheme := s.attributes.pick(keyHTTPScheme, keyURLScheme)
	if scheme == nil {
		scheme = splitURL(s.attributes.pick(keyURLFull, keyHTTPURL)).scheme
	}
	switch string(scheme) {
	case "http":
		return 80
	case "https":
		return 443
	}
	return 0
}

// parseAuthority reads "host", "host:port" and the same with an address for
// host. What is not there is zero.
func parseAuthority(text []byte) (ip address, port uint16) {
	host, tail := splitPort(text)
	if a, ok := parseAddress(host); ok && !a.unspecified() {
		ip = a
	}
	port, _ = parsePort(tail)
	return ip, port
}
