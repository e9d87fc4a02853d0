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
	// MaxRequestBytes: largest request, before and after decompression;
	// larger ones are refused for good.
	MaxRequestBytes int64 `mapstructure:"max_request_bytes" unit:"bytes" doc:"largest request, before and after decompression; larger ones are refused for good"`
	// MaxBytesInFlight: bytes of requests not yet answered; over it clients
	// are told to come back. Too small refuses bursts, too large is memory
	// while servers are slow.
	MaxBytesInFlight int64 `mapstructure:"max_bytes_in_flight" unit:"bytes" doc:"bytes of requests not yet answered; over it clients are told to come back. Too small refuses bursts, too large is memory while servers are slow"`
	// MaxRequestsInFlight: requests not yet answered; over it clients are
	// told to come back.
	MaxRequestsInFlight int `mapstructure:"max_requests_in_flight" doc:"requests not yet answered; over it clients are told to come back"`
	// PeerShare: largest part of the bounds in flight that one address may
	// hold of what others leave free, so that nobody shuts out the others;
	// 1 sets no limit.
	PeerShare float64 `mapstructure:"peer_share" doc:"largest part of the bounds in flight that one address may hold of what others leave free, so that nobody shuts out the others; 1 sets no limit"`
	// MaxConnections: connections; over it one without a request is closed,
	// of the address that has the most, the longest idle first. Each costs
	// 20 to 30 KB.
	MaxConnections int `mapstructure:"max_connections" doc:"connections; over it one without a request is closed, of the address that has the most, the longest idle first. Each costs 20 to 30 KB"`
	// MaxConnectionsPerPeer: connections from one IPv4 address or IPv6 /64;
	// over it the one of the address that has been idle the longest is
	// closed.
	MaxConnectionsPerPeer int `mapstructure:"max_connections_per_peer" doc:"connections from one IPv4 address or IPv6 /64; over it the one of the address that has been idle the longest is closed"`
	// HeaderTimeout: time for the headers of a request to arrive.
	HeaderTimeout time.Duration `mapstructure:"header_timeout" doc:"time for the headers of a request to arrive"`
	// BodyGrace: time for a body to arrive, besides what min_body_rate
	// allows for its bytes.
	BodyGrace time.Duration `mapstructure:"body_grace" doc:"time for a body to arrive, besides what min_body_rate allows for its bytes"`
	// MinBodyRate: bytes a second below which a client is cut off, once
	// body_grace is used up.
	MinBodyRate int64 `mapstructure:"min_body_rate" unit:"bytes" doc:"bytes a second below which a client is cut off, once body_grace is used up"`
	// BodyTimeout: time for a body to arrive, however large it is.
	BodyTimeout time.Duration `mapstructure:"body_timeout" doc:"time for a body to arrive, however large it is"`
	// IdleTimeout: a connection without a request for this long is closed;
	// shorter than the clients' own makes them meet closed connections.
	IdleTimeout time.Duration `mapstructure:"idle_timeout" doc:"a connection without a request for this long is closed; shorter than the clients' own makes them meet closed connections"`
	// RetryDelay: how long clients are asked to wait before they send
	// again, in whole seconds; each is told between half of it and one and
	// a half.
	RetryDelay time.Duration `mapstructure:"retry_delay" doc:"how long clients are asked to wait before they send again, in whole seconds; each is told between half of it and one and a half"`
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
