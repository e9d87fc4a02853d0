package otlphttp

import (
	"net/http"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/code"
)

// Headers of the protocol by which browsers ask whether a page may send.
const (
	headerOrigin        = "Origin"
	headerRequestMethod = "Access-Control-Request-Method"
)

// What pages of allowed origins may do beside what is configured.
const (
	allowedMethods = http.MethodPost
	// alwaysAllowed are the headers that exporters need.
	alwaysAllowed = "content-type, content-encoding"
	// exposed are the headers of answers that a page may read.
	exposed = "Retry-After"
)

// crossOrigin tells the browser in h whether the page may read the answer. It answers a
// preflight, which is the question whether the page may send, and returns nil for
// everything else. A request whose origin is not allowed is served as one without an
// origin: browsers send it only after a preflight, and nobody else has to be stopped.
func (s *Server) crossOrigin(h http.Header, r *http.Request) *reply {
	if !s.cfg.CORS.Enabled() {
		return nil
	}
	h.Add("Vary", headerOrigin)
	origin := r.Header.Get(headerOrigin)
	allowed, named := s.cfg.CORS.Allow(origin)
	if allowed {
		if named {
			h.Set("Access-Control-Allow-Origin", origin)
			h.Set("Access-Control-Allow-Credentials", "true")
		} else {
			h.Set("Access-Control-Allow-Origin", "*")
		}
		h.Set("Access-Control-Expose-Headers", exposed)
	}
	if r.Method != http.MethodOptions || origin == "" || r.Header.Get(headerRequestMethod) == "" || !served(r.URL.Path) {
		return nil
	}
	if !allowed {
		return s.refuse(http.StatusForbidden, code.Code_PERMISSION_DENIED, badOrigin,
			"pages of origin %q may not send: it is not among the allowed origins", origin)
	}
	h.Set("Access-Control-Allow-Methods", allowedMethods)
	h.Set("Access-Control-Allow-Headers", s.allowedHeaders)
	h.Set("Access-Control-Max-Age", strconv.FormatInt(int64(s.cfg.CORS.MaxAge.Seconds()), 10))
	return &reply{status: http.StatusNoContent}
}

// allowedHeaders is the list as browsers are told it.
func allowedHeaders(cfg *Config) string {
	names := []string{alwaysAllowed}
	for _, name := range cfg.CORS.AllowedHeaders {
		names = append(names, name.String())
	}
	return strings.Join(names, ", ")
}
