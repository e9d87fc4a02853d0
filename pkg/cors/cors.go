package cors

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// anyOrigin is the pattern that every origin matches.
const anyOrigin = "*"

// maxTextBytes is longer than any host name (253 bytes) with scheme and port, and than
// any header name in use.
const maxTextBytes = 300

// Origin is an origin, such as https://app.example.com or http://localhost:3000, or a
// pattern: https://*.example.com matches every subdomain of example.com at any depth, but
// not example.com itself; * matches every origin. The zero value matches nothing.
type Origin struct {
	text   string
	prefix string // of a pattern: the part before the subdomain
	suffix string // of a pattern: the dot and the part after it
}

// ParseOrigin parses an origin as an operator writes it. It lowercases the text, as
// browsers do. Its errors continue a sentence about the text.
func ParseOrigin(text string) (Origin, error) {
	lower := strings.ToLower(text)
	if lower == anyOrigin {
		return Origin{text: anyOrigin}, nil
	}
	scheme, host, found := strings.Cut(lower, "://")
	switch {
	case len(text) > maxTextBytes:
		return Origin{}, fmt.Errorf("is longer than %d bytes", maxTextBytes)
	case !found || !isScheme(scheme):
		return Origin{}, fmt.Errorf("is not an origin such as https://app.example.com or http://localhost:3000")
	case strings.ContainsAny(host, "/?#"):
		return Origin{}, fmt.Errorf("has a path; an origin ends with its host or port")
	case strings.Contains(host, "@"):
		return Origin{}, fmt.Errorf("has a user; an origin is only scheme, host and port")
	}
	o := Origin{text: lower}
	if rest, pattern := strings.CutPrefix(host, "*."); pattern {
		o.prefix, o.suffix = scheme+"://", "."+rest
		host = rest
	}
	name, port, err := splitPort(host)
	switch {
	case err != nil:
		return Origin{}, err
	case strings.Contains(name, "*"):
		return Origin{}, fmt.Errorf("has a * that is not the whole first part of the host, as in https://*.example.com")
	case !isHost(name):
		return Origin{}, fmt.Errorf("has the host %q, which is neither a name nor an address", name)
	case scheme == "https" && port == "443", scheme == "http" && port == "80":
		return Origin{}, fmt.Errorf("names the default port %s, which browsers leave out", port)
	}
	return o, nil
}

// splitPort splits off the port, if there is one.
func splitPort(host string) (name, port string, err error) {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || strings.HasSuffix(host, "]") { // an IPv6 address without a port
		return host, "", nil
	}
	name, port = host[:i], host[i+1:]
	if port == "" || len(port) > 5 || strings.Trim(port, "0123456789") != "" {
		return "", "", fmt.Errorf("has the port %q, which is not a number", port)
	}
	return name, port, nil
}

func isScheme(s string) bool {
	return s != "" && s[0] >= 'a' && s[0] <= 'z' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789+-.") == ""
}

// isHost accepts ASCII names, to which browsers convert international ones, and
// addresses.
func isHost(s string) bool {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		return ok && inner != "" && strings.Trim(inner, "0123456789abcdef:.") == ""
	}
	return s != "" && !strings.HasPrefix(s, ".") && !strings.Contains(s, "..") &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-._") == ""
}

// Matches reports whether o matches the value of an Origin header.
func (o Origin) Matches(origin string) bool {
	switch {
	case o.text == anyOrigin:
		return origin != ""
	case o.suffix == "":
		return o.text != "" && strings.EqualFold(origin, o.text)
	}
	least := len(o.prefix) + len(o.suffix)
	if len(origin) <= least || len(origin) > least+maxTextBytes {
		return false
	}
	end := len(origin) - len(o.suffix)
	middle := origin[len(o.prefix):end]
	return strings.EqualFold(origin[:len(o.prefix)], o.prefix) && strings.EqualFold(origin[end:], o.suffix) &&
		isHost(strings.ToLower(middle)) && !strings.HasSuffix(middle, ".") && middle[0] != '['
}

// String returns the parsed origin in lower case.
func (o Origin) String() string { return o.text }

// MarshalText implements encoding.TextMarshaler.
func (o Origin) MarshalText() ([]byte, error) { return []byte(o.text), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (o *Origin) UnmarshalText(text []byte) (err error) {
	*o, err = ParseOrigin(string(text))
	return err
}

// Header is the name of a request header, in lower case.
type Header string

// ParseHeader parses the name of a header. Its errors continue a sentence about the text.
func ParseHeader(text string) (Header, error) {
	lower := strings.ToLower(text)
	if text == "" || len(text) > maxTextBytes || strings.Trim(lower, "abcdefghijklmnopqrstuvwxyz0123456789!#$%&'+-.^_`|~") != "" {
		return "", fmt.Errorf("is not the name of a header such as X-Api-Key")
	}
	return Header(lower), nil
}

// String returns the name.
func (h Header) String() string { return string(h) }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Header) UnmarshalText(text []byte) (err error) {
	*h, err = ParseHeader(string(text))
	return err
}

// maxItems is far above practical lists, and comparing a request with that many items
// takes microseconds.
const maxItems = 256

// Policy is what web pages may do. The zero value allows nothing.
type Policy struct {
	// AllowedOrigins: origins of web pages that may send, such as
	// https://app.example.com, https://*.example.com for its subdomains, or
	// * for every page; none refuses all web pages.
	AllowedOrigins []Origin `mapstructure:"allowed_origins" doc:"origins of web pages that may send, such as https://app.example.com, https://*.example.com for its subdomains, or * for every page; none refuses all web pages"`
	// AllowedHeaders: headers that those pages may send besides
	// Content-Type and Content-Encoding, such as X-Api-Key.
	AllowedHeaders []Header `mapstructure:"allowed_headers" doc:"headers that those pages may send besides Content-Type and Content-Encoding, such as X-Api-Key"`
	// MaxAge: how long a browser may cache a preflight response; a longer
	// time means fewer preflights, and changes take effect later.
	MaxAge time.Duration `mapstructure:"max_age" doc:"how long a browser may cache a preflight response; a longer time means fewer preflights, and changes take effect later"`
}

// DefaultPolicy returns a policy that allows nothing.
func DefaultPolicy() Policy { return Policy{MaxAge: 10 * time.Minute} }

// Validate reports every problem at once, by keys under key.
func (p Policy) Validate(key string) error {
	var errs []error
	if n := len(p.AllowedOrigins); n > maxItems {
		errs = append(errs, fmt.Errorf("%s.allowed_origins: %d origins are more than %d; use patterns such as https://*.example.com", key, n, maxItems))
	}
	if n := len(p.AllowedHeaders); n > maxItems {
		errs = append(errs, fmt.Errorf("%s.allowed_headers: %d headers are more than %d", key, n, maxItems))
	}
	if p.MaxAge < 0 {
		errs = append(errs, fmt.Errorf("%s.max_age: %s is negative", key, p.MaxAge))
	}
	return errors.Join(errs...)
}

// Enabled reports whether any page may send.
func (p Policy) Enabled() bool { return len(p.AllowedOrigins) > 0 }

// Allow reports whether pages of the origin may send. named is true if an origin other
// than * allows it: only then may the browser send credentials such as cookies, because *
// does not identify the page.
func (p Policy) Allow(origin string) (allowed, named bool) {
	for _, o := range p.AllowedOrigins {
		if !o.Matches(origin) {
			continue
		}
		if o.text != anyOrigin {
			return true, true
		}
		allowed = true
	}
	return allowed, false
}

// Equal reports whether p and q are the same.
func (p Policy) Equal(q Policy) bool {
	return p.MaxAge == q.MaxAge && slices.Equal(p.AllowedOrigins, q.AllowedOrigins) && slices.Equal(p.AllowedHeaders, q.AllowedHeaders)
}
