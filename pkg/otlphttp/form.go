package otlphttp

import (
	"mime"
	"net/http"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/code"
)

// The paths of trace requests: OTLP's, and the one that MetaFlow's documentation gives
// for collectors.
const (
	pathOTLP     = "/v1/traces"
	pathMetaFlow = "/api/v1/otel/trace"
)

const (
	typeProtobuf = "application/x-protobuf"
	typeJSON     = "application/json"

	acceptedTypes     = typeProtobuf + ", " + typeJSON
	acceptedEncodings = "gzip, zstd, deflate, identity"
)

// form is the form of a request and of its response.
type form struct {
	json     bool
	header   []string // Content-Type of the response
	encoding string   // of the request's body; empty for none
}

var (
	inProtobuf = []string{typeProtobuf}
	inJSON     = []string{typeJSON}
)

// formOf reads the form from the headers. It replies to malformed headers in JSON, which
// people can read.
func (s *Server) formOf(r *http.Request) (form, *reply) {
	f := form{json: true, header: inJSON}
	contentType := mediaType(r.Header.Get("Content-Type"))
	if contentType == typeProtobuf {
		f = form{header: inProtobuf}
	}
	switch {
	case !served(r.URL.Path):
		return f, s.refuse(http.StatusNotFound, code.Code_NOT_FOUND, badPath,
			"path %q is not served; send traces to %s or %s", r.URL.Path, pathOTLP, pathMetaFlow)
	case r.Method != http.MethodPost:
		return f, s.refuseMethod(r.Method)
	case contentType != typeProtobuf && contentType != typeJSON:
		return f, s.refuse(http.StatusUnsupportedMediaType, code.Code_INVALID_ARGUMENT, badType,
			"content type %q is not supported, send %s or %s", contentType, typeProtobuf, typeJSON)
	}
	var refused *reply
	f.encoding, refused = s.encodingOf(r.Header.Values("Content-Encoding"))
	return f, refused
}

// served reports whether path receives traces. It ignores doubled and trailing slashes,
// which exporters add to endpoints that end with a slash. Such a path is served directly,
// because a redirect would lose the body of a POST.
func served(path string) bool {
	if path == pathOTLP || path == pathMetaFlow {
		return true
	}
	if !strings.HasSuffix(path, "/") && !strings.Contains(path, "//") {
		return false
	}
	single := "/" + strings.Join(strings.FieldsFunc(path, func(r rune) bool { return r == '/' }), "/")
	return single == pathOTLP || single == pathMetaFlow
}

// mediaType returns a Content-Type in lower case without parameters. It returns a
// malformed one unchanged.
func mediaType(header string) string {
	if header == typeProtobuf || header == typeJSON {
		return header
	}
	if parsed, _, err := mime.ParseMediaType(header); err == nil {
		return parsed
	}
	return header
}

func (s *Server) encodingOf(headers []string) (string, *reply) {
	found := ""
	for _, header := range headers {
		for name := range strings.SplitSeq(header, ",") {
			name = strings.ToLower(strings.TrimSpace(name))
			if name == "" || name == "identity" {
				continue
			}
			if found != "" || !known(name) {
				return "", s.refuse(http.StatusUnsupportedMediaType, code.Code_INVALID_ARGUMENT, badEncoding,
					"content encoding %q is not supported, send one of %s", strings.Join(headers, ", "), acceptedEncodings)
			}
			found = name
		}
	}
	return found, nil
}
