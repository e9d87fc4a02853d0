package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/sasl"

	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

const (
	clientID = "metaflow"
	// metadataTTL bounds the age of the leader cache; the library draws the actual age at
	// random below it. A moved leader does not wait for it: see Client.refreshOnError.
	metadataTTL = 10 * time.Second
	// refreshInterval is the minimum time between two renewals of all connections.
	refreshInterval = time.Second
	// controlTimeout bounds requests that a broker answers from memory.
	controlTimeout = 10 * time.Second
	dialTimeout    = 5 * time.Second
)

// Options are set by code.
type Options struct {
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil means none
}

// Client holds the connections to one Kafka cluster.
type Client struct {
	cfg       Config
	log       *slog.Logger
	metrics   *metrics
	codec     codec
	addr      net.Addr
	transport *kafkago.Transport
	tls       *tlsconfig.Source
	sasl      sasl.Mechanism

	mu        sync.Mutex
	refreshed time.Time                                   // when refresh last did something
	versions  map[string]map[protocol.ApiKey]versionRange // what brokers know, by address
	located   map[logName]located                         // for Fetch, which keeps nothing else
}

// New checks cfg, reads the files it names and returns a Client. It does not
// connect: that happens with the first request.
func New(cfg Config, opts Options) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("kafka config: %w", err)
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Client{cfg: cfg, log: opts.Logger, addr: kafkago.TCP(cfg.Brokers...)}
	var err error
	if c.codec, err = codecByName(cfg.Compression); err != nil {
		return nil, err
	}
	if c.tls, err = cfg.TLS.Source("tls", opts.Logger); err != nil {
		return nil, err
	}
	if c.sasl, err = cfg.SASL.mechanism(); err != nil {
		return nil, err
	}
	if c.metrics, err = newMetrics(opts.Registerer); err != nil {
		return nil, err
	}
	c.transport = &kafkago.Transport{
		ClientID:    clientID,
		DialTimeout: dialTimeout,
		MetadataTTL: metadataTTL,
		Dial:        c.dial, // c.dial does TLS, because the library would keep the certificates of the start
		SASL:        c.sasl,
	}
	return c, nil
}

func (c *Client) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		// Notices within eleven seconds that a broker's host has vanished.
		Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3,
	}}
	conn, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return c.tls.Encrypt(ctx, conn, addr)
}

// Close closes the idle connections; the others close when their request ends. The Client
// stays usable.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Ping returns nil when a broker answers.
func (c *Client) Ping(ctx context.Context) error {
	// The library answers metadata requests from its cache even when every broker is
	// gone. ApiVersions goes over the wire.
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	client := kafkago.Client{Addr: c.addr, Transport: c.transport}
	answer, err := client.ApiVersions(ctx, &kafkago.ApiVersionsRequest{})
	if err == nil {
		err = answer.Error
	}
	if err != nil {
		c.refreshOnError(err)
		return fmt.Errorf("ask kafka for its versions: %w", c.explain(ctx, err))
	}
	return nil
}

// Partitions returns the number of partitions of topic. An unknown topic is an error.
func (c *Client) Partitions(ctx context.Context, topic string) (int, error) {
	leaders, err := c.leaders(ctx, topic)
	return len(leaders), err
}

// leaders returns the leader of each partition of topic, negative where there is none at
// the moment.
func (c *Client) leaders(ctx context.Context, topic string) ([]int32, error) {
	answer, err := c.roundTrip(ctx, controlTimeout, &metadata.Request{TopicNames: []string{topic}})
	if err != nil {
		return nil, fmt.Errorf("ask kafka for topic %s: %w", topic, err)
	}
	t := answer.(*metadata.Response).Topics[0]
	if err := codeError(t.ErrorCode, ""); err != nil {
		return nil, fmt.Errorf("ask kafka for topic %s: %w", topic, err)
	}
	leaders := make([]int32, len(t.Partitions))
	for i := range leaders {
		leaders[i] = -1
	}
	for _, p := range t.Partitions {
		if int(p.PartitionIndex) < len(leaders) && p.ErrorCode == 0 {
			leaders[p.PartitionIndex] = p.LeaderID
		}
	}
	return leaders, nil
}

// roundTrip routes one request to its broker and waits at most timeout for the response.
// The deadline also frees the connection, because the library's connections do not watch
// contexts.
func (c *Client) roundTrip(ctx context.Context, timeout time.Duration, req protocol.Message) (protocol.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := c.transport.RoundTrip(ctx, c.addr, req)
	if err != nil {
		err = c.explain(ctx, err)
		c.refreshOnError(err)
		return nil, err
	}
	return answer, nil
}

// explain finds the cause of a failed request. Before any broker was reached, the library
// returns "topic not found", or nothing until the deadline; its own metadata request has
// the cause.
func (c *Client) explain(ctx context.Context, err error) error {
	noRoute := errors.Is(err, protocol.ErrNoTopic) || errors.Is(err, protocol.ErrNoPartition) || errors.Is(err, protocol.ErrNoLeader)
	if noRoute && ctx.Err() == nil {
		if _, merr := c.transport.RoundTrip(ctx, c.addr, &metadata.Request{TopicNames: []string{}}); merr != nil {
			err = merr
		}
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w (%s)", err, c.hangUpHint())
	}
	return err
}

// hangUpHint explains why a broker may close a connection without an error.
func (c *Client) hangUpHint() string {
	switch {
	case c.sasl != nil:
		return "the broker closed the connection: it restarts, or it refused the login of sasl.username by authentication with sasl.mechanism"
	case c.tls == nil:
		return "the broker closed the connection: it restarts, or it wants TLS or a login"
	default:
		return "the broker closed the connection: it restarts, or it wants a login"
	}
}

// refresh drops the cached leaders and the idle connections, so that the next request
// looks both up again. The library has no other way to renew its metadata, and a moved
// leader or a restarted broker leaves dead connections behind anyway. Requests in flight
// are not disturbed.
func (c *Client) refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.refreshed) >= refreshInterval {
		c.refreshed = now
		clear(c.versions)
		c.transport.CloseIdleConnections()
	}
}
