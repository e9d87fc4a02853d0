package upstream

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
	"github.com/metaflowys/metaflow-server/schema"
	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// Options are set by code. The zero value is usable.
type Options struct {
	Logger     *slog.Logger          // nil logs nothing
	Registerer prometheus.Registerer // nil registers nothing
	AgentID    string                // sent with every call; empty sends none
	Secret     string                // proves the agent's identity; sent with every call; empty sends none
	// LookupHost returns the IP addresses of a name. Default: the system's
	// resolver.
	LookupHost func(ctx context.Context, host string) ([]string, error)
}

// Client connects to all replicas of the server. Use New.
type Client struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	conn    *grpc.ClientConn

	certificates *tlsconfig.Source // nil without TLS
	common       []grpc.DialOption // of every connection
	replicas     *replicas

	// Metadata of calls, shared: gRPC only reads it.
	plain, resend metadata.MD
}

// withToken is per-call credentials: the token, which may change.
type withToken struct{ token *tokens.FileToken }

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (w withToken) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{schema.MetadataToken: w.token.Token()}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials. In plain text the
// program warns at its start.
func (withToken) RequireTransportSecurity() bool { return false }

// New validates cfg, reads its certificates and returns a Client that has not
// dialled yet. The caller must close it.
func New(cfg Config, opts Options) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("server config: %w", err)
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.LookupHost == nil {
		opts.LookupHost = net.DefaultResolver.LookupHost
	}
	c := &Client{cfg: cfg, log: opts.Logger, plain: metadata.MD{}}
	c.metrics = newMetrics(opts.Registerer, c)
	if opts.AgentID != "" {
		c.plain.Set(schema.MetadataAgent, opts.AgentID)
	}
	if opts.Secret != "" {
		c.plain.Set(schema.MetadataSecret, opts.Secret)
	}
	c.resend = metadata.Join(c.plain, metadata.Pairs(schema.MetadataResend, "1"))

	var err error
	if c.certificates, err = cfg.TLS.Source("tls", opts.Logger); err != nil {
		return nil, fmt.Errorf("server config: %w", err)
	}
	creds := insecure.NewCredentials()
	if c.certificates != nil {
		creds = &reloading{TransportCredentials: credentials.NewTLS(c.certificates.Config()), source: c.certificates}
	}
	c.common = []grpc.DialOption{
		grpc.WithDisableServiceConfig(),
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec())),
		grpc.WithDisableRetry(),
		grpc.WithNoProxy(), // servers are nearby; a web proxy would only hide where requests go
		grpc.WithUserAgent("metaflow-agent"),
	}
	if cfg.Token != "" || cfg.TokenFile != "" {
		token, err := tokens.OpenFile("server.token_file", cfg.Token, cfg.TokenFile)
		if err != nil {
			return nil, err
		}
		c.common = append(c.common, grpc.WithPerRPCCredentials(withToken{token}))
	}
	c.common = slices.Clip(c.common)
	c.replicas = &replicas{cfg: cfg, lookupHost: opts.LookupHost, log: opts.Logger, metrics: c.metrics}
	c.conn, err = grpc.NewClient(scheme+":///servers", append(c.common,
		grpc.WithResolvers(c.replicas),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		grpc.WithConnectParams(grpc.ConnectParams{
			MinConnectTimeout: cfg.ConnectTimeout,
			Backoff: backoff.Config{
				BaseDelay:  min(500*time.Millisecond, cfg.MaxBackoff),
				Multiplier: 1.6,
				Jitter:     0.2,
				MaxDelay:   cfg.MaxBackoff,
			},
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time:                cfg.Keepalive.Time,
			Timeout:             cfg.Keepalive.Timeout,
			PermitWithoutStream: true, // detect a dead server before the next request
		}),
		grpc.WithIdleTimeout(0))...)
	if err != nil {
		return nil, fmt.Errorf("create client of %v: %w", cfg.Addresses, err)
	}
	return c, nil
}

// Close ends all calls and connections. It may be called more than once.
func (c *Client) Close() {
	c.conn.Close() // the only error is that it was closed before
}

// Ready reports whether a connection to some server is up. It never blocks; the
// first call starts connecting.
func (c *Client) Ready() bool { return c.state() == connectivity.Ready }

// state returns the connection state, and starts connecting if the channel is
// idle.
func (c *Client) state() connectivity.State {
	state := c.conn.GetState()
	if state == connectivity.Idle {
		c.conn.Connect()
	}
	return state
}

// WaitReady blocks until a connection to some server is up. It returns an error
// if ctx ends or the Client is closed first.
func (c *Client) WaitReady(ctx context.Context) error {
	for {
		state := c.state()
		switch state { //nolint:exhaustive // wait in all other states
		case connectivity.Ready:
			return nil
		case connectivity.Shutdown:
			return fmt.Errorf("connect to %v: the client is closed", c.cfg.Addresses)
		}
		if !c.conn.WaitForStateChange(ctx, state) {
			return fmt.Errorf("connect to %v: %w", c.cfg.Addresses, context.Cause(ctx))
		}
	}
}

// Connect opens the control stream to one of the replicas. It fails at once if
// none is reachable. The stream lives until ctx ends or the server ends it; the
// caller must read it to its end or cancel ctx.
func (c *Client) Connect(ctx context.Context) (agentv1.ControlService_ConnectClient, error) {
	if state := c.state(); state != connectivity.Ready && state != connectivity.TransientFailure {
		return nil, notReady(state)
	}
	stream, err := agentv1.NewControlServiceClient(c.conn).Connect(metadata.NewOutgoingContext(ctx, c.plain))
	if err != nil {
		return nil, fmt.Errorf("open control stream: %w", err)
	}
	return stream, nil
}
