package otlphttp

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/cors"
	"github.com/metaflowys/metaflow-server/pkg/values"
)

// Config is what an operator may set. Start from DefaultConfig.
type Config struct {
	// Listen: host:port to receive OTLP on; port 0 picks a free one.
	Listen string `mapstructure:"listen" doc:"host:port to receive OTLP on; port 0 picks a free one"`
	// MaxRequestBytes: maximum request size before and after decompression;
	// larger requests are refused for good.
	MaxRequestBytes int64 `mapstructure:"max_request_bytes" unit:"bytes" doc:"maximum request size before and after decompression; larger requests are refused for good"`
	// MaxBytesInFlight: maximum bytes of unanswered requests; beyond it
	// clients are told to retry. Too small refuses bursts, too large takes
	// memory while servers are slow.
	MaxBytesInFlight int64 `mapstructure:"max_bytes_in_flight" unit:"bytes" doc:"maximum bytes of unanswered requests; beyond it clients are told to retry. Too small refuses bursts, too large takes memory while servers are slow"`
	// MaxRequestsInFlight: maximum unanswered requests; beyond it clients
	// are told to retry.
	MaxRequestsInFlight int `mapstructure:"max_requests_in_flight" doc:"maximum unanswered requests; beyond it clients are told to retry"`
	// PeerShare: share of the free in-flight bounds that one address may
	// hold, so that it cannot shut out others; 1 means no limit.
	PeerShare float64 `mapstructure:"peer_share" doc:"share of the free in-flight bounds that one address may hold, so that it cannot shut out others; 1 means no limit"`
	// MaxConnections: maximum connections; beyond it the longest idle
	// connection of the address with the most connections is closed. Each
	// takes 20 to 30 KB.
	MaxConnections int `mapstructure:"max_connections" doc:"maximum connections; beyond it the longest idle connection of the address with the most connections is closed. Each takes 20 to 30 KB"`
	// MaxConnectionsPerPeer: maximum connections from one IPv4 address or
	// IPv6 /64; beyond it the address's longest idle connection is closed.
	MaxConnectionsPerPeer int `mapstructure:"max_connections_per_peer" doc:"maximum connections from one IPv4 address or IPv6 /64; beyond it the address's longest idle connection is closed"`
	// HeaderTimeout: timeout for the headers of a request.
	HeaderTimeout time.Duration `mapstructure:"header_timeout" doc:"timeout for the headers of a request"`
	// BodyGrace: time for a body to arrive, in addition to the time that
	// min_body_rate allows for its bytes.
	BodyGrace time.Duration `mapstructure:"body_grace" doc:"time for a body to arrive, in addition to the time that min_body_rate allows for its bytes"`
	// MinBodyRate: bytes per second below which a client is cut off, once
	// body_grace is used up.
	MinBodyRate int64 `mapstructure:"min_body_rate" unit:"bytes" doc:"bytes per second below which a client is cut off, once body_grace is used up"`
	// BodyTimeout: timeout for a body of any size.
	BodyTimeout time.Duration `mapstructure:"body_timeout" doc:"timeout for a body of any size"`
	// IdleTimeout: a connection without a request for this long is closed;
	// a value below the clients' own idle timeout makes them hit closed
	// connections.
	IdleTimeout time.Duration `mapstructure:"idle_timeout" doc:"a connection without a request for this long is closed; a value below the clients' own idle timeout makes them hit closed connections"`
	// RetryDelay: mean delay after which clients are asked to retry, in
	// whole seconds; each is told between half and one and a half of it.
	RetryDelay time.Duration `mapstructure:"retry_delay" doc:"mean delay after which clients are asked to retry, in whole seconds; each is told between half and one and a half of it"`
	CORS       cors.Policy   `mapstructure:"cors"`
}

// DefaultConfig returns the configuration of an agent on its documented port.
func DefaultConfig() Config {
	return Config{
		Listen:                "0.0.0.0:38086",
		MaxRequestBytes:       64 << 20, // the size that OTLP receivers accept by convention
		MaxBytesInFlight:      128 << 20,
		MaxRequestsInFlight:   512,
		PeerShare:             0.5,
		MaxConnections:        1024, // several times the pods of a large node
		MaxConnectionsPerPeer: 512,  // all processes of the host's own network are one address
		HeaderTimeout:         10 * time.Second,
		BodyGrace:             10 * time.Second,
		MinBodyRate:           16 << 10, // a batch of an SDK in half a minute
		BodyTimeout:           2 * time.Minute,
		IdleTimeout:           2 * time.Minute, // exporters close theirs after 90 s
		RetryDelay:            2 * time.Second,
		CORS:                  cors.DefaultPolicy(),
	}
}

// Validate reports every problem at once, each by its key.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	if err := values.CheckListen(c.Listen); err != nil {
		errs = append(errs, fmt.Errorf("listen: %q %w", c.Listen, err))
	}
	check(c.MaxRequestBytes > 0 && c.MaxRequestBytes <= math.MaxInt32,
		"max_request_bytes: %d is not between 1 and %d", c.MaxRequestBytes, math.MaxInt32)
	check(c.MaxBytesInFlight >= c.MaxRequestBytes,
		"max_bytes_in_flight: %d is less than max_request_bytes (%d), so the largest request could never be accepted", c.MaxBytesInFlight, c.MaxRequestBytes)
	check(c.MaxRequestsInFlight > 0, "max_requests_in_flight: %d is not positive", c.MaxRequestsInFlight)
	check(c.PeerShare > 0 && c.PeerShare <= 1, "peer_share: %g is not above 0 and at most 1", c.PeerShare)
	check(c.MaxConnections > 0, "max_connections: %d is not positive", c.MaxConnections)
	check(c.MaxConnectionsPerPeer > 0, "max_connections_per_peer: %d is not positive", c.MaxConnectionsPerPeer)
	check(c.MinBodyRate > 0, "min_body_rate: %d is not positive", c.MinBodyRate)
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"header_timeout", c.HeaderTimeout},
		{"body_grace", c.BodyGrace},
		{"body_timeout", c.BodyTimeout},
		{"idle_timeout", c.IdleTimeout},
		{"retry_delay", c.RetryDelay},
	} {
		check(d.value > 0, "%s: %s is not positive", d.key, d.value)
	}
	return errors.Join(append(errs, c.CORS.Validate("cors"))...)
}
