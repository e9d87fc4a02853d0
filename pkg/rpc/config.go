package rpc

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/inflight"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
	"github.com/metaflowys/metaflow-server/pkg/values"
)

// Config is what an operator may set. Start from DefaultConfig.
type Config struct {
	// Listen: host:port to receive OTLP on; port 0 picks a free one.
	Listen string `mapstructure:"listen" doc:"host:port to receive OTLP on; port 0 picks a free one"`
	// MaxRequestBytes: maximum request size after decompression; larger
	// requests are refused for good.
	MaxRequestBytes int64 `mapstructure:"max_request_bytes" unit:"bytes" doc:"maximum request size after decompression; larger requests are refused for good"`
	// MaxBytesInFlight: maximum bytes of unanswered requests; beyond it
	// clients are told to retry. Too small refuses bursts, too large takes
	// memory while Kafka is slow.
	MaxBytesInFlight int64 `mapstructure:"max_bytes_in_flight" unit:"bytes" doc:"maximum bytes of unanswered requests; beyond it clients are told to retry. Too small refuses bursts, too large takes memory while Kafka is slow"`
	// MaxRequestsInFlight: maximum unanswered requests; beyond it clients
	// are told to retry.
	MaxRequestsInFlight int `mapstructure:"max_requests_in_flight" doc:"maximum unanswered requests; beyond it clients are told to retry"`
	// MaxConcurrentStreams: maximum concurrent requests on one connection;
	// further ones wait in the client.
	MaxConcurrentStreams int `mapstructure:"max_concurrent_streams" doc:"maximum concurrent requests on one connection; further ones wait in the client"`
	// PeerShare: share of the free in-flight bounds that one address may
	// hold, so that it cannot shut out others; 1 means no limit.
	PeerShare float64 `mapstructure:"peer_share" doc:"share of the free in-flight bounds that one address may hold, so that it cannot shut out others; 1 means no limit"`
	// BodyTimeout: timeout for a request, from its headers to its last
	// byte. Too short cuts off slow lines, too long lets idle calls occupy
	// the bounds.
	BodyTimeout time.Duration `mapstructure:"body_timeout" doc:"timeout for a request, from its headers to its last byte. Too short cuts off slow lines, too long lets idle calls occupy the bounds"`
	// MaxConnections: maximum connections; further ones are closed at once.
	// Each takes some 50 KiB.
	MaxConnections int `mapstructure:"max_connections" doc:"maximum connections; further ones are closed at once. Each takes some 50 KiB"`
	// MaxConnectionsPerPeer: maximum connections from one IPv4 address or
	// IPv6 /64; raise it if many agents connect through one NAT.
	MaxConnectionsPerPeer int `mapstructure:"max_connections_per_peer" doc:"maximum connections from one IPv4 address or IPv6 /64; raise it if many agents connect through one NAT"`
	// RetryDelay: mean delay after which clients are asked to retry; each
	// is told between half and one and a half of it.
	RetryDelay time.Duration `mapstructure:"retry_delay" doc:"mean delay after which clients are asked to retry; each is told between half and one and a half of it"`
	// ConnectionAge: age at which a client is asked to reconnect, so that
	// load spreads over new replicas; 0 means never.
	ConnectionAge time.Duration `mapstructure:"connection_age" doc:"age at which a client is asked to reconnect, so that load spreads over new replicas; 0 means never"`
	// ConnectionAgeGrace: time for requests to finish on a connection that
	// has reached its age; keep it above kafka.produce_timeout.
	ConnectionAgeGrace time.Duration `mapstructure:"connection_age_grace" doc:"time for requests to finish on a connection that has reached its age; keep it above kafka.produce_timeout"`
	// ConnectionIdle: a connection without calls for this long is closed; 0
	// means never.
	ConnectionIdle time.Duration `mapstructure:"connection_idle" doc:"a connection without calls for this long is closed; 0 means never"`
	Keepalive      Keepalive     `mapstructure:"keepalive"`
	// Reflection: serve gRPC reflection, for tools such as grpcurl; on by
	// default in standalone.
	Reflection bool             `mapstructure:"reflection" doc:"serve gRPC reflection, for tools such as grpcurl; on by default in standalone"`
	TLS        tlsconfig.Server `mapstructure:"tls"`
	// Insecure: accept plain text on an address that other hosts reach;
	// without this or tls, the server does not start on one.
	Insecure bool `mapstructure:"insecure" doc:"accept plain text on an address that other hosts reach; without this or tls, the server does not start on one"`
}

// Keepalive detects dead connections and disconnects clients that ping too often.
type Keepalive struct {
	// Time: a connection silent for this long is pinged.
	Time time.Duration `mapstructure:"time" doc:"a connection silent for this long is pinged"`
	// Timeout: a connection is closed if a ping is not answered within this
	// time.
	Timeout time.Duration `mapstructure:"timeout" doc:"a connection is closed if a ping is not answered within this time"`
	// MinClientInterval: clients that ping more often than this are
	// disconnected.
	MinClientInterval time.Duration `mapstructure:"min_client_interval" doc:"clients that ping more often than this are disconnected"`
}

// DefaultConfig returns the configuration of a gateway on its documented port.
func DefaultConfig() Config {
	return Config{
		Listen:                "127.0.0.1:20035",
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

// Limits returns the bounds of requests in flight.
func (c Config) Limits() inflight.Limits {
	return inflight.Limits{
		RequestBytes: c.MaxRequestBytes, Bytes: c.MaxBytesInFlight, Requests: c.MaxRequestsInFlight, PeerShare: c.PeerShare,
	}
}

// maxOtherBytesInFlight bounds headers and messages of all calls but exports: some KiB
// for the stream of each of 10,000 agents, and the reports of pods.
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
	if err := values.CheckListen(c.Listen); err != nil {
		errs = append(errs, fmt.Errorf("listen: %q %w", c.Listen, err))
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
