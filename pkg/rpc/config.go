package rpc

import (
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/inflight"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

// Config is what an operator may set. Start from DefaultConfig.
type Config struct {
	// Listen: host:port to receive OTLP on; port 0 picks a free one.
	Listen string `mapstructure:"listen" doc:"host:port to receive OTLP on; port 0 picks a free one"`
	// MaxRequestBytes: largest request after decompression; larger ones are
	// refused for good.
	MaxRequestBytes int64 `mapstructure:"max_request_bytes" unit:"bytes" doc:"largest request after decompression; larger ones are refused for good"`
	// MaxBytesInFlight: bytes of requests not yet answered; over it clients
	// are told to come back. Too small refuses bursts, too large is memory
	// while Kafka is slow.
	MaxBytesInFlight int64 `mapstructure:"max_bytes_in_flight" unit:"bytes" doc:"bytes of requests not yet answered; over it clients are told to come back. Too small refuses bursts, too large is memory while Kafka is slow"`
	// MaxRequestsInFlight: requests not yet answered; over it clients are
	// told to come back.
	MaxRequestsInFlight int `mapstructure:"max_requests_in_flight" doc:"requests not yet answered; over it clients are told to come back"`
	// MaxConcurrentStreams: requests at a time on one connection; more wait
	// at the client.
	MaxConcurrentStreams int `mapstructure:"max_concurrent_streams" doc:"requests at a time on one connection; more wait at the client"`
	// PeerShare: largest part of the bounds in flight that one address may
	// hold of what others leave free, so that nobody shuts out the others;
	// 1 sets no limit.
	PeerShare float64 `mapstructure:"peer_share" doc:"largest part of the bounds in flight that one address may hold of what others leave free, so that nobody shuts out the others; 1 sets no limit"`
	// BodyTimeout: time for a request to arrive, from its headers to its
	// last byte. Too short cuts off slow lines, too long lets idle calls
	// hold their place.
	BodyTimeout time.Duration `mapstructure:"body_timeout" doc:"time for a request to arrive, from its headers to its last byte. Too short cuts off slow lines, too long lets idle calls hold their place"`
	// MaxConnections: connections at a time; more are closed at once. Each
	// takes some 50 KiB.
	MaxConnections int `mapstructure:"max_connections" doc:"connections at a time; more are closed at once. Each takes some 50 KiB"`
	// MaxConnectionsPerPeer: connections at a time from one IPv4 address or
	// IPv6 /64; raise it where many agents come through one NAT.
	MaxConnectionsPerPeer int `mapstructure:"max_connections_per_peer" doc:"connections at a time from one IPv4 address or IPv6 /64; raise it where many agents come through one NAT"`
	// RetryDelay: how long clients are asked to wait before they send
	// again; each is told between half of it and one and a half.
	RetryDelay time.Duration `mapstructure:"retry_delay" doc:"how long clients are asked to wait before they send again; each is told between half of it and one and a half"`
	// ConnectionAge: age at which a client is asked to connect again, so
	// that load spreads over new replicas; 0 is never.
	ConnectionAge time.Duration `mapstructure:"connection_age" doc:"age at which a client is asked to connect again, so that load spreads over new replicas; 0 is never"`
	// ConnectionAgeGrace: time for requests to finish on a connection that
	// has reached its age; keep it above the time Kafka may take.
	ConnectionAgeGrace time.Duration `mapstructure:"connection_age_grace" doc:"time for requests to finish on a connection that has reached its age; keep it above the time Kafka may take"`
	// ConnectionIdle: a connection without calls for this long is closed; 0
	// is never.
	ConnectionIdle time.Duration `mapstructure:"connection_idle" doc:"a connection without calls for this long is closed; 0 is never"`
	Keepalive      Keepalive     `mapstructure:"keepalive"`
	// Reflection: serve gRPC reflection, by which tools such as grpcurl
	// learn the services; standalone does unless told otherwise.
	Reflection bool             `mapstructure:"reflection" doc:"serve gRPC reflection, by which tools such as grpcurl learn the services; standalone does unless told otherwise"`
	TLS        tlsconfig.Server `mapstructure:"tls"`
}

// Keepalive finds dead connections and turns away clients that ping too often.
type Keepalive struct {
	// Time: a connection silent for this long is pinged.
	Time time.Duration `mapstructure:"time" doc:"a connection silent for this long is pinged"`
	// Timeout: a connection is closed when a ping is not answered within
	// this time.
	Timeout time.Duration `mapstructure:"timeout" doc:"a connection is closed when a ping is not answered within this time"`
	// MinClientInterval: clients that ping more often than this are
	// disconnected.
	MinClientInterval time.Duration `mapstructure:"min_client_interval" doc:"clients that ping more often than this are disconnected"`
}

// DefaultConfig returns the configuration of a gateway on its documented port.
func DefaultConfig() Config {
	return Config{
		Listen:                "0.0.0.0:20035",
		MaxRequestBytes:       64 << 20, // the size that OTLP receivers accept by convention
		MaxBytesInFlight:      256 << 20,
		MaxRequestsInFlight:   1024,
		MaxConcurrentStreams:  128,
		PeerShare:             0.5,
		BodyTimeout:           20 * time.Second, // as long as an agent waits for an answer
		MaxConnections:        12_000,           // the agents of control.max_streams, and others
		MaxConnectionsPerPeer: 1000,
		RetryDelay:            time.Second,
		ConnectionAge:         10 * time.Minute,
		ConnectionAgeGrace:    30 * time.Second,
		ConnectionIdle:        5 * time.Minute,
		Keepalive: Keepalive{
			Time:              time.Minute,
			Timeout:           20 * time.Second,
			MinClientInterval: 10 * time.Second, // the least that grpc-go clients can be set to
		},
	}
}

// Limits are the bounds of requests in flight.
func (c Config) Limits() inflight.Limits {
	return inflight.Limits{
		RequestBytes: c.MaxRequestBytes, Bytes: c.MaxBytesInFlight, Requests: c.MaxRequestsInFlight, PeerShare: c.PeerShare,
	}
}

// maxOtherBytesInFlight is for headers and messages of all calls but exports: some KiB for the stream of
// each of 10,000 agents, and the reports of pods.
const maxOtherBytesInFlight = 160 << 20

func (c Config) otherLimits() inflight.Limits {
	return inflight.Limits{
		RequestBytes: maxDecodedBytes + callBytes + maxHeaderBytes, Bytes: maxOtherBytesInFlight, Requests: c.MaxConnections, PeerShare: c.PeerShare,
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
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		errs = append(errs, fmt.Errorf("listen: %w", err))
	}
	check(c.MaxRequestBytes > 0 && c.MaxRequestBytes <= math.MaxInt32,
		"max_request_bytes: %d is not between 1 and %d", c.MaxRequestBytes, math.MaxInt32)
	check(c.MaxBytesInFlight >= c.MaxRequestBytes,
		"max_bytes_in_flight: %d is less than max_request_bytes (%d), so the largest request could never be accepted", c.MaxBytesInFlight, c.MaxRequestBytes)
	check(c.MaxRequestsInFlight > 0, "max_requests_in_flight: %d is not positive", c.MaxRequestsInFlight)
	check(c.MaxConcurrentStreams > 0 && c.MaxConcurrentStreams <= math.MaxInt32,
		"max_concurrent_streams: %d is not between 1 and %d", c.MaxConcurrentStreams, math.MaxInt32)
	check(c.PeerShare > 0 && c.PeerShare <= 1, "peer_share: %g is not above 0 and at most 1", c.PeerShare)
	check(c.BodyTimeout >= 100*time.Millisecond, "body_timeout: %s is less than 100ms", c.BodyTimeout)
	check(c.MaxConnections > 0, "max_connections: %d is not positive", c.MaxConnections)
	check(c.MaxConnectionsPerPeer > 0, "max_connections_per_peer: %d is not positive", c.MaxConnectionsPerPeer)
	check(c.ConnectionIdle >= 0, "connection_idle: %s is negative", c.ConnectionIdle)
	check(c.RetryDelay > 0, "retry_delay: %s is not positive", c.RetryDelay)
	check(c.ConnectionAge >= 0, "connection_age: %s is negative", c.ConnectionAge)
	check(c.ConnectionAgeGrace > 0, "connection_age_grace: %s is not positive", c.ConnectionAgeGrace)
	check(c.Keepalive.Time >= time.Second, "keepalive.time: %s is less than 1s", c.Keepalive.Time)
	check(c.Keepalive.Timeout > 0, "keepalive.timeout: %s is not positive", c.Keepalive.Timeout)
	check(c.Keepalive.MinClientInterval > 0, "keepalive.min_client_interval: %s is not positive", c.Keepalive.MinClientInterval)
	return errors.Join(append(errs, c.TLS.Validate("tls"))...)
}
