// Package gateway takes OTLP requests, and the flow data of agents, from the network to Kafka.
//
// A request's bytes are walked once: validated, judged span by span or flow by flow and
// regrouped by partition (pkg/signal/traces, pkg/signal/flows). Each partition's part becomes one record
// that carries its content hash. The caller gets its answer only after Kafka has
// acknowledged all records of the request with acks=all; on any doubt the answer is
// an error that makes the client send the same bytes again, which the writer
// recognizes by the hash.
//
// The gateway holds no data of its own: what is in memory belongs to a
// request that has not been answered. Its receiver bounds how much that is.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/metaflowys/metaflow-server/pkg/cors"
	"github.com/metaflowys/metaflow-server/pkg/fault"
	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/rpc"
	"github.com/metaflowys/metaflow-server/pkg/signal"
	"github.com/metaflowys/metaflow-server/pkg/signal/traces"
)

// Config is what an operator may set.
type Config struct {
	// AcceptPast: How long before its first receipt a span or flow may have
	// started or ended; older ones are rejected with a reason. Too much
	// lets broken clocks open old partitions in ClickHouse.
	AcceptPast time.Duration `mapstructure:"accept_past" doc:"How long before its first receipt a span or flow may have started or ended; older ones are rejected with a reason. Too much lets broken clocks open old partitions in ClickHouse."`
	// AcceptFuture: How far the times of a span or flow may lie after its
	// first receipt, for clocks that are ahead.
	AcceptFuture time.Duration `mapstructure:"accept_future" doc:"How far the times of a span or flow may lie after its first receipt, for clocks that are ahead."`
	// AcceptDelayed: How long an agent may have kept a request in its spool
	// and have it judged by the time at which the agent received it; a
	// longer delay counts as this long. Keep it at what the tables keep or
	// above.
	AcceptDelayed time.Duration `mapstructure:"accept_delayed" doc:"How long an agent may have kept a request in its spool and have it judged by the time at which the agent received it; a longer delay counts as this long. Keep it at what the tables keep or above."`
	// CheckAgents: Refuse flow data that comes from another address than
	// those of the agent it names, where the role control knows that agent.
	// Set it to false when agents reach the servers through proxies that
	// change addresses.
	CheckAgents bool `mapstructure:"check_agents" doc:"Refuse flow data that comes from another address than those of the agent it names, where the role control knows that agent. Set it to false when agents reach the servers through proxies that change addresses."`

	// HTTPListen: host:port to receive OTLP/HTTP on (POST /v1/traces),
	// usually 0.0.0.0:4318; port 0 picks a free one, empty receives none.
	// The bounds of requests and the certificates are those of the section
	// grpc.
	HTTPListen string `mapstructure:"http_listen" doc:"host:port to receive OTLP/HTTP on (POST /v1/traces), usually 0.0.0.0:4318; port 0 picks a free one, empty receives none. The bounds of requests and the certificates are those of the section grpc."`
	// HTTPMaxConnections: Connections of OTLP/HTTP; over it the one that
	// has been idle the longest is closed. Each costs 20 to 30 KB.
	HTTPMaxConnections int         `mapstructure:"http_max_connections" doc:"Connections of OTLP/HTTP; over it the one that has been idle the longest is closed. Each costs 20 to 30 KB."`
	HTTPCORS           cors.Policy `mapstructure:"http_cors"`
}

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
		if _, _, err := net.SplitHostPort(c.HTTPListen); err != nil {
			errs = append(errs, fmt.Errorf("http_listen: %w", err))
		}
		if c.HTTPMaxConnections <= 0 {
			errs = append(errs, fmt.Errorf("http_max_connections: %d is not positive", c.HTTPMaxConnections))
		}
	}
	return errors.Join(append(errs, c.HTTPCORS.Validate("http_cors"))...)
}

// firstReceipt returns the time by which req is judged, and which its records carry on. An agent's word is
// taken for it within bounds: its clock may be wrong, and a time after now would lift the bound on times in the
// future. Requests of other clients are received here first.
func (c Config) firstReceipt(req *rpc.Request, now time.Time) time.Time {
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

// Options are set by code.
type Options struct {
	MaxRecordBytes int                   // larger parts are split; a span or flow that does not fit is rejected
	DedupWindow    time.Duration         // in which the writers recognize equal records
	Now            func() time.Time      // nil means time.Now
	Registerer     prometheus.Registerer // nil means none
}

func (o *Options) fill() {
	if o.Now == nil {
		o.Now = time.Now
	}
}

// Gateway consumes OTLP traces. Make it with New; its methods may be called concurrently.
type Gateway struct {
	cfg     Config
	opts    Options
	metrics *metrics
	sender  sender
	work    sync.Pool // of *work
}

// work is the memory that one request needs.
type work struct {
	splitter traces.Splitter
	batch    []kafka.Outgoing
}

// New returns a Gateway. It starts nothing.
func New(cfg Config, producer Producer, opts Options) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	opts.fill()
	g := &Gateway{cfg: cfg, opts: opts, metrics: newMetrics(opts.Registerer, "spans")}
	g.sender = sender{producer: producer, metrics: g.metrics, now: opts.Now, window: opts.DedupWindow, split: g.split}
	g.work.New = func() any { return new(work) }
	return g, nil
}

// ConsumeTraces stores the spans of req in Kafka. It implements
// otlpgrpc.Consumer: a nil error means that every span but those counted in
// the result is durable. An error of class fault.Rejected means that req is not OTLP.
func (g *Gateway) ConsumeTraces(ctx context.Context, req rpc.Request) (rpc.Result, error) {
	w := g.work.Get().(*work)
	defer g.work.Put(w)
	now := g.opts.Now()
	received := g.cfg.firstReceipt(&req, now)
	layout := g.sender.producer.Layout()
	window := signal.WindowAt(received, g.cfg.AcceptPast, g.cfg.AcceptFuture)
	records, rejected, err := w.splitter.Split(req.Body, traces.Options{
		Partitions: layout.Partitions, Window: window, MaxRecordBytes: g.opts.MaxRecordBytes,
	})
	if err != nil {
		g.metrics.malformed.Inc()
		return rpc.Result{}, fault.As(fault.Rejected, fmt.Errorf("read ExportTraceServiceRequest: %w", err))
	}
	spans := 0
	w.batch = w.batch[:0]
	from := request{Request: &req, received: received, marked: g.sender.marks(layout, now)}
	oversize := g.sender.oversizeAt(now)
	for _, r := range records {
		spans += r.Spans
		w.batch = append(w.batch, from.outgoing(r.Partition, r.Value, r.Content, len(r.Value) >= oversize))
	}
	g.metrics.repaired.Add(float64(rejected.RepairedTexts))
	countReceived(g.metrics, spans, &rejected)
	if err := g.sender.send(ctx, &from, w.batch, spans); err != nil {
		return rpc.Result{}, err
	}
	if rejected.Total() == 0 {
		return rpc.Result{}, nil
	}
	return rpc.Result{Rejected: rejected.Total(), Message: rejected.Message(window, g.opts.MaxRecordBytes)}, nil
}

// split is what the sender splits records of spans with.
func (g *Gateway) split(value []byte, size int) ([][]byte, error) {
	var s traces.Splitter
	records, rejected, err := s.Split(value, traces.Options{
		Partitions: 1, Window: anyTime, MaxRecordBytes: g.opts.MaxRecordBytes, SplitBytes: size,
	})
	if err == nil && rejected.Total() > 0 {
		err = errors.New(rejected.Message(anyTime, g.opts.MaxRecordBytes))
	}
	values := make([][]byte, len(records))
	for i := range records {
		values[i] = records[i].Value
	}
	return values, err
}
