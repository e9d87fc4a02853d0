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
	// metadataTTL bounds the age of what is known of leaders. The library draws
	// the real age at random below it. A moved leader does not wait for it: see
	// Client.refresh.
	metadataTTL = 10 * time.Second
	// refreshInterval bounds how often a suspicion makes all connections new.
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
		Dial:        c.dial, // TLS included: the library would keep the certificates of the start
		SASL:        c.sasl,
	}
	return c, nil
}

func (c *Client) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		// A broker's host that has gone without a word is noticed within eleven seconds.
		Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3,
	}}
	conn, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return c.tls.Encrypt(ctx, conn, addr)
}

// Close ends the idle connections; those in use end with their request. The
// Client can be used again.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Ping returns nil when a broker answers.
func (c *Client) Ping(ctx context.Context) error {
	// The library answers requests for metadata from its cache, also when every
	// broker has gone. ApiVersions goes over the wire.
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	client := kafkago.Client{Addr: c.addr, Transport: c.transport}
	answer, err := client.ApiVersions(ctx, &kafkago.ApiVersionsRequest{})
	if err == nil {
		err = answer.Error
	}
	if err != nil {
		c.suspect(err)
		return fmt.Errorf("ask kafka for its versions: %w", c.explain(ctx, err))
	}
	return nil
}

// Partitions returns how many partitions topic has. An unknown topic is an
// error.
func (c *Client) Partitions(ctx context.Context, topic string) (int, error) {
	leaders, err := c.leaders(ctx, topic)
	return len(leaders), err
}

// leaders returns the broker that leads each partition of topic, negative
// where there is none at the moment.
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

// roundTrip sends one request to wherever it belongs and waits for the answer
// at most timeout. The deadline also frees the connection: the library's connections
// do not notice that a context was canceled.
func (c *Client) roundTrip(ctx context.Context, timeout time.Duration, req protocol.Message) (protocol.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := c.transport.RoundTrip(ctx, c.addr, req)
	if err != nil {
		err = c.explain(ctx, err)
		c.suspect(err)
		return nil, err
	}
	return answer, nil
}

// explain finds the reason of a failed request. While no broker could be reached
// yet the library says "topic not found", or nothing at all until the deadline; the reason
// is what its own request for metadata met.
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

// hangUpHint says why a broker may close a connection without a word.
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

// refresh makes the next request ask for the leaders again and use new
// connections. The library has no other way to ask; a moved leader and a restarted broker
// are the occasions, and both leave dead connections behind anyway. Requests under way
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
