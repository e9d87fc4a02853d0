package verify

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

// ServiceName is the service.name of every span that a Verifier sends.
const ServiceName = "metaflow-verify"

// Config is what an operator may set. Start from DefaultConfig.
type Config struct {
	// Endpoint: URL to send spans to: http:// or https:// for OTLP/HTTP (an
	// agent's port 38086, a server's 4318), grpc:// or grpcs:// for
	// OTLP/gRPC (a server's port 20035).
	Endpoint string           `mapstructure:"endpoint" doc:"URL to send spans to: http:// or https:// for OTLP/HTTP (an agent's port 38086, a server's 4318), grpc:// or grpcs:// for OTLP/gRPC (a server's port 20035)"`
	TLS      tlsconfig.Client `mapstructure:"tls"`
	// TokenFile: file with a bearer token to send along; read again for
	// each request.
	TokenFile string `mapstructure:"token_file" doc:"file with a bearer token to send along; read again for each request"`
	// Spans: spans to send in total; 0 sends until duration ends.
	Spans int `mapstructure:"spans" doc:"spans to send in total; 0 sends until duration ends"`
	// Duration: how long to send; 0 sends until spans are sent, or for ever
	// if that is 0 too.
	Duration time.Duration `mapstructure:"duration" doc:"how long to send; 0 sends until spans are sent, or for ever if that is 0 too"`
	// Rate: spans per second; a slow pipeline holds it back.
	Rate float64 `mapstructure:"rate" doc:"spans per second; a slow pipeline holds it back"`
	// Batch: spans in one request; they belong to traces of four.
	Batch int `mapstructure:"batch" doc:"spans in one request; they belong to traces of four"`
	// Late: a span that becomes visible in SQL later than this after its
	// acknowledgement is late.
	Late time.Duration `mapstructure:"late" doc:"a span that becomes visible in SQL later than this after its acknowledgement is late"`
	// LostAfter: a span that is still not visible this long after its
	// acknowledgement is lost; also how long a request is retried.
	LostAfter time.Duration `mapstructure:"lost_after" doc:"a span that is still not visible this long after its acknowledgement is lost; also how long a request is retried"`
	// Recheck: how long after the first lookup a span is looked up again,
	// to find copies that arrive later.
	Recheck time.Duration `mapstructure:"recheck" doc:"how long after the first lookup a span is looked up again, to find copies that arrive later"`
	// Poll: pause between lookups in ClickHouse, and the resolution of the
	// measured delays.
	Poll time.Duration `mapstructure:"poll" doc:"pause between lookups in ClickHouse, and the resolution of the measured delays"`
	// Keep: delete the verifier's spans of whole days that ended longer ago
	// than this; needs ALTER DELETE on the table of spans; 0 keeps them as
	// long as all spans.
	Keep time.Duration `mapstructure:"keep" doc:"delete the verifier's spans of whole days that ended longer ago than this; needs ALTER DELETE on the table of spans; 0 keeps them as long as all spans"`
}

// DefaultConfig checks an agent on this machine with a thousand spans.
func DefaultConfig() Config {
	return Config{
		Endpoint:  "http://127.0.0.1:38086",
		Spans:     1000,
		Rate:      100,
		Batch:     20,
		Late:      10 * time.Second,
		LostAfter: time.Minute,
		Recheck:   15 * time.Second,
		Poll:      250 * time.Millisecond,
	}
}

// spansOfTrace is how many spans each trace has.
const spansOfTrace = 4

// maxOutstanding bounds the spans that wait for a lookup, and so the memory: a
// trace takes about half a kilobyte.
const maxOutstanding = 1_000_000

// Validate reports every problem at once, each by its key.
func (c Config) Validate() error {
	var errs []error
	problem := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if _, err := parseEndpoint(c.Endpoint); err != nil {
		errs = append(errs, err)
	}
	if c.Spans < 0 {
		problem("spans: %d is negative", c.Spans)
	}
	if !(c.Rate > 0 && c.Rate <= maxOutstanding) {
		problem("rate: %g is not more than 0 and at most %d", c.Rate, maxOutstanding)
	}
	if c.Batch < 1 || c.Batch > 10_000 {
		problem("batch: %d is not between 1 and 10000", c.Batch)
	}
	for _, d := range []struct {
		key   string
		value time.Duration
		least time.Duration
	}{
		{"duration", c.Duration, 0},
		{"late", c.Late, time.Millisecond},
		{"lost_after", c.LostAfter, time.Second},
		{"recheck", c.Recheck, 0},
		{"poll", c.Poll, 10 * time.Millisecond},
		{"keep", c.Keep, 0},
	} {
		if d.value < d.least {
			problem("%s: %s is less than %s", d.key, d.value, d.least)
		}
	}
	if c.LostAfter < c.Late {
		problem("lost_after: %s is less than late, %s", c.LostAfter, c.Late)
	}
	if held := c.Rate * (c.LostAfter + c.Recheck).Seconds(); held > maxOutstanding {
		problem("rate: %g spans/s over lost_after and recheck are %.0f spans to remember, more than %d", c.Rate, held, maxOutstanding)
	}
	return errors.Join(append(errs, c.TLS.Validate("tls"))...)
}

// endpoint is the parsed Config.Endpoint.
type endpoint struct {
	grpc, tls bool
	host      string // host:port
	url       string // of OTLP/HTTP's traces
}

func parseEndpoint(text string) (endpoint, error) {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" {
		return endpoint{}, fmt.Errorf("endpoint: %q is not a URL such as http://127.0.0.1:38086 or grpc://127.0.0.1:20035", text)
	}
	e := endpoint{host: u.Host}
	port := ""
	switch u.Scheme {
	case "http":
		port = "38086"
	case "https":
		e.tls, port = true, "38086"
	case "grpc":
		e.grpc, port = true, "20035"
	case "grpcs":
		e.grpc, e.tls, port = true, true, "20035"
	default:
		return endpoint{}, fmt.Errorf("endpoint: %q has the scheme %q, not http, https, grpc or grpcs", text, u.Scheme)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" || e.grpc && strings.Trim(u.Path, "/") != "" {
		return endpoint{}, fmt.Errorf("endpoint: %q has more than a scheme, a host, a port and, over HTTP, a path", u.Redacted())
	}
	if u.Port() == "" {
		e.host += ":" + port
		u.Host = e.host
	}
	path := strings.TrimSuffix(u.Path, "/")
	if !strings.HasSuffix(path, "/v1/traces") {
		path += "/v1/traces"
	}
	u.Path = path
	e.url = u.String()
	return e, nil
}
