// Package gateway takes the requests of a signal from the network to Kafka.
//
// One walk over a request's bytes validates them, judges each item and regroups
// the items by partition (pkg/signal). Each partition's part becomes one record
// that carries its content hash. The caller gets its answer only after Kafka has
// acknowledged all records of the request with acks=all. On any doubt the answer
// is an error that makes the client send the same bytes again, which the writer
// recognizes by the hash.
//
// The gateway holds no data of its own: the data in memory belongs to requests
// that are not answered yet. Its receiver bounds how much that is. While a request waits
// for Kafka it holds its records and not its body, so it takes little more than its size.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/metaflowys/metaflow-server/pkg/cors"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/inflight"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
	"github.com/metaflowys/metaflow-server/pkg/values"
)

// Config is what an operator may set.
type Config struct {
	// AcceptPast: How long before its first receipt a span or flow may have
	// started or ended; older ones are rejected with a reason. Too much
	// lets broken clocks open old partitions in ClickHouse.
	AcceptPast time.Duration `mapstructure:"accept_past" doc:"How long before its first receipt a span or flow may have started or ended; older ones are rejected with a reason. Too much lets broken clocks open old partitions in ClickHouse."`
	// AcceptFuture: How far after its first receipt the times of a span or
	// flow may lie, for clocks that are ahead.
	AcceptFuture time.Duration `mapstructure:"accept_future" doc:"How far after its first receipt the times of a span or flow may lie, for clocks that are ahead."`
	// AcceptDelayed: Maximum delay in an agent's spool for which a request
	// is judged by the agent's time of receipt; a longer delay counts as
	// this long. Keep it at or above the tables' retention.
	AcceptDelayed time.Duration `mapstructure:"accept_delayed" doc:"Maximum delay in an agent's spool for which a request is judged by the agent's time of receipt; a longer delay counts as this long. Keep it at or above the tables' retention."`
	// CheckAgents: Refuse flow data from an address that the named agent
	// does not have, if the role control knows that agent. Set it to false
	// if agents reach the servers through proxies that change addresses.
	CheckAgents bool `mapstructure:"check_agents" doc:"Refuse flow data from an address that the named agent does not have, if the role control knows that agent. Set it to false if agents reach the servers through proxies that change addresses."`

	// HTTPListen: host:port to receive OTLP/HTTP on (POST /v1/traces),
	// usually 0.0.0.0:4318; port 0 picks a free one, empty disables it.
	// Request bounds and certificates are those of the section grpc.
	HTTPListen string `mapstructure:"http_listen" doc:"host:port to receive OTLP/HTTP on (POST /v1/traces), usually 0.0.0.0:4318; port 0 picks a free one, empty disables it. Request bounds and certificates are those of the section grpc."`
	// HTTPInsecure: Accept plain text on http_listen from other hosts;
	// without this or grpc.tls, the server does not start on an address
	// that other hosts reach.
	HTTPInsecure bool `mapstructure:"http_insecure" doc:"Accept plain text on http_listen from other hosts; without this or grpc.tls, the server does not start on an address that other hosts reach."`
	// HTTPMaxConnections: Maximum connections of OTLP/HTTP; beyond it the
	// longest idle one is closed. Each takes 20 to 30 KB.
	HTTPMaxConnections int         `mapstructure:"http_max_connections" doc:"Maximum connections of OTLP/HTTP; beyond it the longest idle one is closed. Each takes 20 to 30 KB."`
	HTTPCORS           cors.Policy `mapstructure:"http_cors"`
	// BearerTokens: Tokens of which OTLP clients other than agents must
	// send one, as authorization: Bearer TOKEN, over gRPC and HTTP; list
	// several during a rotation. If empty, none is required. They need
	// tokens or certificates of agents too.
	BearerTokens []string `mapstructure:"bearer_tokens" doc:"Tokens of which OTLP clients other than agents must send one, as authorization: Bearer TOKEN, over gRPC and HTTP; list several during a rotation. If empty, none is required. They need tokens or certificates of agents too." secret:"true"`
	// BearerTokensFile: File with further bearer_tokens, one a line; read
	// again within seconds when it changes.
	BearerTokensFile string `mapstructure:"bearer_tokens_file" doc:"File with further bearer_tokens, one a line; read again within seconds when it changes."`
}

// Bearers returns where the bearer tokens come from.
func (c Config) Bearers() tokens.List {
	return tokens.List{Key: BearerKey, Values: c.BearerTokens, File: c.BearerTokensFile}
}

// BearerKey is the key of the bearer tokens.
const BearerKey = "gateway.bearer_tokens"

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		AcceptPast: 7 * 24 * time.Hour, AcceptFuture: time.Hour, AcceptDelayed: 30 * 24 * time.Hour, CheckAgents: true,
		HTTPMaxConnections: 4096, // as many SDKs, at 100 MB
		HTTPCORS:           cors.DefaultPolicy(),
	}
}

// Validate reports every problem, each by its key.
func (c Config) Validate() error {
	var errs []error
	if c.AcceptPast <= 0 {
		errs = append(errs, fmt.Errorf("accept_past: %s is not positive", c.AcceptPast))
	}
	if c.AcceptFuture < 0 {
		errs = append(errs, fmt.Errorf("accept_future: %s is negative", c.AcceptFuture))
	}
	if c.AcceptDelayed < 0 {
		errs = append(errs, fmt.Errorf("accept_delayed: %s is negative", c.AcceptDelayed))
	}
	if c.HTTPListen != "" {
		if err := values.CheckListen(c.HTTPListen); err != nil {
			errs = append(errs, fmt.Errorf("http_listen: %q %w", c.HTTPListen, err))
		}
		if c.HTTPMaxConnections <= 0 {
			errs = append(errs, fmt.Errorf("http_max_connections: %d is not positive", c.HTTPMaxConnections))
		}
	}
	bearers := c.Bearers()
	bearers.Key = "bearer_tokens"
	return errors.Join(append(errs, bearers.Validate(), c.HTTPCORS.Validate("http_cors"))...)
}

// firstReceipt returns the time by which req is judged, and which its records
// carry on. It takes an agent's word within bounds: the agent's clock may be
// wrong, and a time after now would lift the bound on times in the future.
// Requests of other clients are received here first.
func (c Config) firstReceipt(req *signal.Request, now time.Time) time.Time {
	switch t := req.Received; {
	case req.Agent == "" || t.IsZero() || t.After(now):
		return now
	case now.Sub(t) > c.AcceptDelayed:
		return now.Add(-c.AcceptDelayed)
	default:
		return t
	}
}

// Producer writes records to Kafka.
type Producer interface {
	// Produce returns nil only when every record is acknowledged by all in-sync replicas, and a
	// kafka.TooLargeError when every record is but those that it names. It keeps nothing of batch.
	Produce(ctx context.Context, batch []kafka.Outgoing) error
	// Layout returns the topic's partitions, at least 1, and when they changed. It does no I/O.
	Layout() kafka.Layout
	// Unstorable tells operators of a record for which nothing can be done here.
	Unstorable(partition int, err error)
}

// Agents knows the agents that are connected.
type Agents interface {
	// AgentHosts returns the addresses that an agent may speak from, nothing when
	// it is not connected to any server. It never blocks.
	AgentHosts(id string) []netip.Addr
}

// Options are set by code.
type Options struct {
	MaxRecordBytes int                   // larger parts are split; an item that does not fit is rejected
	DedupWindow    time.Duration         // in which the writers recognize equal records
	Agents         Agents                // nil disables the check of where agents connect from
	Quotas         *Quotas               // of the agents' groups; nil means no limits
	Now            func() time.Time      // nil means time.Now
	Registerer     prometheus.Registerer // nil means none
}

func (o *Options) fill() {
	if o.Now == nil {
		o.Now = time.Now
	}
}

// Gateway consumes the requests of one signal. Make it with New; its methods may
// be called concurrently.
type Gateway struct {
	cfg     Config
	signal  *signal.Signal
	opts    Options
	metrics *metrics
	sender  sender

	splitters sync.Pool // of *signal.Splitter
	waits     sync.Pool // of *waiting
	values    inflight.Buffers
}

// waiting is the memory of a request that waits for Kafka.
type waiting struct {
	batch  []kafka.Outgoing
	values *[]byte               // of the batch's records; nil for none
	buffer func(size int) []byte // sets values
}

func (g *Gateway) newWaiting() *waiting {
	w := new(waiting)
	w.buffer = func(size int) []byte {
		w.values = g.values.Get(size)
		return *w.values
	}
	return w
}

func (g *Gateway) release(w *waiting) {
	clear(w.batch)
	w.batch = w.batch[:0]
	if w.values != nil {
		g.values.Put(w.values)
		w.values = nil
	}
	g.waits.Put(w)
}

// New returns a Gateway that hands records of sig to producer. It starts nothing.
func New(cfg Config, sig *signal.Signal, producer Producer, opts Options) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	opts.fill()
	g := &Gateway{cfg: cfg, signal: sig, opts: opts, metrics: newMetrics(opts.Registerer, sig)}
	g.sender = sender{
		producer: producer, metrics: g.metrics, now: opts.Now, window: opts.DedupWindow,
		signal: sig, maxRecordBytes: opts.MaxRecordBytes,
	}
	g.splitters.New = func() any { return sig.NewSplitter() }
	g.waits.New = func() any { return g.newWaiting() }
	return g, nil
}

// Consume stores the items of req in Kafka. A nil error means that every item
// but those counted in the result is durable. An error of class fault.Rejected
// means that req is not a request of the signal, or does not come from the agent that it names.
// A [QuotaError] means that the agent's group has used up a limit.
func (g *Gateway) Consume(ctx context.Context, req signal.Request) (signal.Result, error) {
	bill, err := g.opts.Quotas.admit(req.Agent)
	if err != nil {
		return signal.Result{}, err
	}
	w := g.waits.Get().(*waiting)
	defer g.release(w)
	now := g.opts.Now()
	from := request{Request: &req, received: g.cfg.firstReceipt(&req, now)}
	layout := g.sender.producer.Layout()
	from.marked = g.sender.marks(layout, now)
	options := signal.Options{
		Partitions: layout.Partitions, Window: signal.WindowAt(from.received, g.cfg.AcceptPast, g.cfg.AcceptFuture),
		MaxRecordBytes: g.opts.MaxRecordBytes, Buffer: w.buffer,
	}
	items, rejected, err := g.split(w, &from, options, now)
	if err != nil {
		return signal.Result{}, err
	}
	bill.charge(g.signal, items, len(req.Body))
	g.metrics.received(items, &rejected)
	req.ReleaseBody() // only the records wait
	if err := g.sender.send(ctx, &from, w.batch, items); err != nil {
		return signal.Result{}, err
	}
	if rejected.Total() == 0 {
		return signal.Result{}, nil
	}
	return signal.Result{Rejected: rejected.Total(), Message: g.signal.Explain(&rejected, options.Window, g.opts.MaxRecordBytes)}, nil
}

// split makes w.batch the records of a request, and returns how many items they have.
func (g *Gateway) split(w *waiting, from *request, options signal.Options, now time.Time) (items int, rejected signal.Rejected, err error) {
	splitter := g.splitters.Get().(*signal.Splitter)
	defer g.splitters.Put(splitter)
	records, rejected, err := splitter.Split(from.Body, options)
	if err != nil {
		g.metrics.malformed.Inc()
		return 0, rejected, fault.As(fault.Rejected, fmt.Errorf("read %s: %w", g.signal.Request, err))
	}
	if g.signal.Sender != nil {
		if err := g.checkSender(from.Request); err != nil {
			g.metrics.foreign.Inc()
			return 0, rejected, fault.As(fault.Rejected, err)
		}
	}
	oversize := g.sender.oversizeAt(now)
	for _, r := range records {
		items += r.Items
		w.batch = append(w.batch, from.outgoing(r.Partition, r.Value, r.Content, len(r.Value) >= oversize))
	}
	return items, rejected, nil
}

// maxAgentID is several times as long as ids are, and short enough for an
// answer.
const maxAgentID = 256

// checkSender checks that a request names the agent that sent it. Counters under
// another agent's id would be taken for that agent's.
func (g *Gateway) checkSender(req *signal.Request) error {
	id := string(g.signal.Sender(req.Body))
	switch {
	case id == "":
		return errors.New("agent_id: it is empty")
	case len(id) > maxAgentID:
		return fmt.Errorf("agent_id: it has %d bytes, more than %d", len(id), maxAgentID)
	case id != req.Agent:
		return fmt.Errorf("agent_id: it is %q, and the call's metadata says %q", id, req.Agent)
	case g.opts.Agents == nil || !g.cfg.CheckAgents || !req.Peer.IsValid():
		return nil
	}
	if hosts := g.opts.Agents.AgentHosts(id); len(hosts) > 0 && !slices.Contains(hosts, req.Peer.Addr()) {
		return fmt.Errorf("agent_id: agent %q is connected from %v, and this request comes from %s (see gateway.check_agents)", id, hosts, req.Peer.Addr())
	}
	return nil
}
