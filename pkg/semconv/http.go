package semconv

import "bytes"

// longestMethod bounds http.request.method_original: the longest registered
// method, UPDATEREDIRECTREF, has 17 characters. What is longer, or no word, is
// noise that would only widen the column.
const longestMethod = 20

// resolveHTTP follows the conventions for HTTP spans, of 1.4 to 1.20 and the
// stable ones, 1.21 and later.
func (s *Span) resolveHTTP(name []byte) {
	s.Protocol = s.httpProtocol()
	s.Method = s.httpMethod()
	s.Endpoint = s.httpEndpoint(name)
	s.ResponseCode = s.httpStatus()
}

// httpProtocol returns http for whatever HTTP attributes describe. url.* attributes
// describe any URL, so alone they only count for the scheme they name.
func (s *Span) httpProtocol() []byte {
	if s.evidence&familyHTTP.defining() != 0 {
		return protocolHTTP
	}
	scheme := s.attributes.values[keyURLScheme]
	if scheme == nil {
		scheme = splitURL(s.attributes.values[keyURLFull]).scheme
	}
	return s.protocol(scheme)
}

func (s *Span) httpMethod() []byte {
	method := s.attributes.pick(keyHTTPRequestMethod, keyHTTPMethod)
	original := s.attributes.values[keyHTTPRequestMethodOriginal]
	if string(method) == "_OTHER" && isWord(original) && len(original) <= longestMethod {
		return original
	}
	return method
}

// httpStatus is the status of the response. Instrumentations that write 0 had
// none.
func (s *Span) httpStatus() []byte {
	if v := s.attributes.pick(keyHTTPResponseStatusCode, keyHTTPStatusCode); string(v) != "0" {
		return v
	}
	return nil
}

// httpEndpoint prefers low-cardinality attributes: the route, the template, then the
// name, which should have low cardinality by the specification and which old
// instrumentations built from method and route. Else it guesses.
func (s *Span) httpEndpoint(name []byte) []byte {
	if route := s.attributes.values[keyHTTPRoute]; route != nil {
		return route
	}
	if template := s.attributes.values[keyURLTemplate]; template != nil {
		return templatePath(template)
	}
	if path := s.pathOfName(name); path != nil && !s.isRequested(path) {
		return path
	}
	return s.guessEndpoint()
}

// isRequested reports whether a path in a span's name is the requested path with its ids,
// and not the route that it should be.
func (s *Span) isRequested(path []byte) bool {
	return bytes.ContainsAny(path[1:], "0123456789%") && bytes.Equal(path, s.httpPath())
}

// guessEndpoint makes a name of the requested path, which has the ids of the request in it
// and would make a value of every one. It keeps what begins most routes: prefixes such as
// /api and /v2, then one word, and writes "*" for the rest: /api/v2/orders/*. A path that
// was not found names nothing.
func (s *Span) guessEndpoint() []byte {
	path := s.httpPath()
	if len(path) < 2 || string(s.httpStatus()) == "404" {
		if string(path) == "/" {
			return path
		}
		return nil
	}
	end := 0
	for rest := path; len(rest) > 1 && rest[0] == '/'; rest = path[end:] {
		segment := rest[1:]
		if i := bytes.IndexByte(segment, '/'); i >= 0 {
			segment = segment[:i]
		}
		prefix := isPrefix(segment)
		if prefix || isRouteWord(segment) {
			end += 1 + len(segment)
		}
		if !prefix {
			break
		}
	}
	if end == len(path) {
		return path
	}
	return s.join(path[:end], '/', guessedRest)
}

// guessedRest stands for the segments that a guess leaves out.
var guessedRest = []byte("*")

// isPrefix recognizes segments before the first word of a route: api, v1, v12.
func isPrefix(segment []byte) bool {
	if string(segment) == "api" {
		return true
	}
	if len(segment) < 2 || len(segment) > 3 || segment[0] != 'v' {
		return false
	}
	for _, c := range segment[1:] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// isRouteWord recognizes words that people write into routes: short, and without the
// digits and escapes of ids.
func isRouteWord(segment []byte) bool {
	const longest = 32
	if len(segment) == 0 || len(segment) > longest {
		return false
	}
	for _, c := range segment {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}

// pathOfName returns the path in a name that reads "METHOD /path", nil where
// that is more than a path: a query, or the pattern of a route.
func (s *Span) pathOfName(name []byte) []byte {
	method := s.attributes.pick(keyHTTPRequestMethod, keyHTTPMethod)
	if method == nil || !bytes.HasPrefix(name, method) {
		return nil
	}
	rest := name[len(method):]
	if len(rest) < 2 || rest[0] != ' ' || rest[1] != '/' {
		return nil
	}
	if path := rest[1:]; len(cutPath(path)) == len(path) {
		return path
	}
	return nil
}

// httpPath returns the requested path, or nil if no attribute has it.
func (s *Span) httpPath() []byte {
	for k := keyURLPath; k <= keyHTTPURL; k++ {
		if v := s.attributes.values[k]; v != nil {
			return splitURL(v).path
		}
	}
	return nil
}

// templatePath returns the path of a URL template. The rest may be a plain query or an
// expression of RFC 6570: "{?page}".
func templatePath(template []byte) []byte {
	return bytes.TrimSuffix(splitURL(template).path, []byte("{"))
}

// urlParts are the parts of a URL that may be shown. User information, query
// and fragment may not.
type urlParts struct {
	scheme, authority, path []byte
}

// splitURL reads an absolute URL, or a request target, which is mostly path
// and query alone. A URL without a path has the path "/". Text that is neither
// has only a path: what follows its first slash, if any.
func splitURL(text []byte) (u urlParts) {
	rest := text
	if i := bytes.Index(text, []byte("://")); i > 0 && isScheme(text[:i]) {
		u.scheme, rest = text[:i], text[i+3:]
		u.authority = rest
		if end := bytes.IndexAny(rest, "/?#"); end >= 0 {
			u.authority, rest = rest[:end], rest[end:]
		} else {
			rest = nil
		}
		if at := bytes.LastIndexByte(u.authority, '@'); at >= 0 {
			u.authority = u.authority[at+1:]
		}
		if u.path = cutPath(rest); len(u.path) == 0 {
			u.path = rootPath
		}
		return u
	}
	rest = cutPath(rest)
	if slash := bytes.IndexByte(rest, '/'); slash >= 0 {
		u.path = rest[slash:]
	}
	return u
}

var rootPath = []byte("/")

// isScheme reports whether text may be the scheme of a URL.
func isScheme(text []byte) bool {
	for _, c := range text {
		if !isLetter(c) && (c < '0' || c > '9') && c != '+' && c != '-' && c != '.' {
			return false
		}
	}
	return true
}

// cutPath ends a path where the query, the fragment or path parameters begin;
// these last are where session ids are kept (";jsessionid=").
func cutPath(path []byte) []byte {
	for i, c := range path {
		if c == '?' || c == '#' || c == ';' {
			return path[:i]
		}
	}
	return path
}

// isWord reports whether text is made of letters, digits, "-" and "_" alone.
func isWord(text []byte) bool {
	for _, c := range text {
		if !isLetter(c) && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return len(text) > 0
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
