package otlphttp

import (
	"net/http"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/code"
)

// Headers of CORS requests.
const (
	headerOrigin        = "Origin"
	headerRequestMethod = "Access-Control-Request-Method"
)

// CORS permissions for allowed origins, beside the configured ones.
const (
	allowedMethods = http.MethodPost
	// alwaysAllowed are the request headers that exporters need.
	alwaysAllowed = "content-type, content-encoding"
	// exposed are the response headers that a page may read.
	exposed = "Retry-After"
)

// crossOrigin sets the CORS headers in h. It returns the response to a preflight, and nil
// for everything else. A request whose origin is not allowed is served like one without
// an origin: browsers send it only after a preflight, and other clients need not be
// stopped.
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
			"origin %q is not allowed", origin)
	}
	h.Set("Access-Control-Allow-Methods", allowedMethods)
	h.Set("Access-Control-Allow-Headers", s.allowedHeaders)
	h.Set("Access-Control-Max-Age", strconv.FormatInt(int64(s.cfg.CORS.MaxAge.Seconds()), 10))
	return &reply{status: http.StatusNoContent}
}

// allowedHeaders returns the value of Access-Control-Allow-Headers.
func allowedHeaders(cfg *Config) string {
	names := []string{alwaysAllowed}
	for _, name := range cfg.CORS.AllowedHeaders {
		names = append(names, name.String())
	}
	return strings.Join(names, ", ")
}
